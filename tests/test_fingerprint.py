"""The fingerprint of weights."""

import torch
from torch import nn

from fastkd.models.registry import (
    create_model,
    state_fingerprint,
    weights_fingerprint,
)


def test_the_fingerprint_is_of_names_types_shapes_and_bytes():
    model = create_model("resnet8", 10)
    digest = weights_fingerprint(model)
    assert len(digest) == 32
    assert digest == weights_fingerprint(nn.DataParallel(model))
    state = model.state_dict()
    assert digest == state_fingerprint(dict(reversed(state.items())))
    assert digest != state_fingerprint({**state, "fc.bias": state["fc.bias"].double()})
    assert digest != state_fingerprint({**state, "conv1.weight": state["conv1.weight"].reshape(16, 27)})
    with torch.no_grad():
        model.fc.bias[3] += 1e-6
    assert digest != weights_fingerprint(model)


def test_the_fingerprint_takes_strides_and_bfloat16():
    tensor = torch.arange(6).reshape(2, 3).to(torch.bfloat16)
    assert state_fingerprint({"a": tensor}) == state_fingerprint({"a": tensor.t().contiguous().t()})
