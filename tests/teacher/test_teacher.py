import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.stores import cache, save_teacher

from fastkd.data.views.draw import Views
from fastkd.errors import (
    MismatchError,
    ModelError,
    NotFoundError,
    OptionError,
)
from fastkd.feed.loader import Loader
from fastkd.models.checkpoint import save_weights
from fastkd.models.registry import create_model
from fastkd.scoring.networks import ScoringOptions, score_networks
from fastkd.teacher.network import Teacher, load_teacher

VIEWS = Views("crop-flip", 32, 3)


@pytest.fixture
def teacher(teacher_file) -> Teacher:
    return load_teacher(str(teacher_file))


def test_a_teacher_of_other_classes_is_refused(dataset, tmp_path):
    path = save_teacher(tmp_path / "t.safetensors", num_classes=12)
    with pytest.raises(ModelError, match=r"t\.safetensors: .*12 classes, expected 10"):
        load_teacher(str(path), num_classes=10)
    with pytest.raises(MismatchError, match="the teacher has 12 outputs, the data 10 classes"):
        cache(tmp_path / "l.h5", dataset, load_teacher(str(path)), VIEWS)


def test_a_teacher_is_frozen_and_normalises_its_own_input(teacher):
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits = teacher(images)
    assert not teacher.model.training
    assert not logits.requires_grad
    assert torch.equal(logits, teacher.model(teacher.norm(images)).half().float())


def test_a_teacher_of_another_input_size_is_another_teacher(teacher, teacher_file):
    smaller = load_teacher(str(teacher_file), size=16)
    assert smaller.norm(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 3, 16, 16)
    assert smaller.fingerprint == teacher.fingerprint
    assert smaller.identity() != teacher.identity()


def test_a_checkpoint_without_normalisation_asks_for_the_option(tmp_path):
    model = create_model("resnet8", 10)
    torch.save(model.state_dict(), tmp_path / "t.pth")
    with pytest.raises(OptionError, match=r"t\.pth: .*--teacher-norm"):
        load_teacher(str(tmp_path / "t.pth"), model_name="resnet8")
    with pytest.raises(ModelError, match=r"t\.pth: .*--teacher-model"):
        load_teacher(str(tmp_path / "t.pth"), norm="cifar")
    given = load_teacher(str(tmp_path / "t.pth"), model_name="resnet8", norm=".1,.2,.3/1,2,3")
    assert given.norm.mean == (0.1, 0.2, 0.3)
    assert given.norm.std == (1, 2, 3)


def test_the_same_weights_are_the_same_teacher_in_any_file(teacher, tmp_path):
    torch.save(teacher.model.state_dict(), tmp_path / "t.pth")
    same = load_teacher(str(tmp_path / "t.pth"), model_name="ResNet8", norm=".5,.5,.5/.25,.25,.25")
    assert same.fingerprint == teacher.fingerprint
    assert same.identity() == teacher.identity()


def test_a_teacher_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NotFoundError, match=r"nothing\.pth"):
        load_teacher(str(tmp_path / "nothing.pth"))
    with pytest.raises(ModelError, match=r"resnet20: .*path of a checkpoint"):
        load_teacher("resnet20")
    with pytest.raises(OptionError, match="precision 'int8', expected one of fp32, bf16, fp16"):
        load_teacher("t.pth", precision="int8")


def test_weights_and_name_that_contradict_each_other_are_refused(tmp_path):
    save_weights(tmp_path / "t", create_model("resnet8", 10), {"model": "resnet20", "norm": None})
    with pytest.raises(ModelError, match=r"t: resnet20: the weights do not fit.*look like resnet8"):
        load_teacher(str(tmp_path / "t"), norm="cifar")


REDUCED = {"cuda.matmul": "tf32", "cudnn.conv": "tf32", "mkldnn.matmul": "bf16", "mkldnn.conv": "bf16"}
"""Where torch keeps how precise its float32 is, below `torch.backends`, and what a user may have put there."""


@pytest.fixture
def reduced():
    """A float32 that is none; gives what is set at the moment."""
    owners = {name: functools.reduce(getattr, name.split("."), torch.backends) for name in REDUCED}
    if not all(hasattr(owner, "fp32_precision") for owner in owners.values()):
        pytest.skip("this torch has allow_tf32 alone")

    def seen() -> dict[str, str]:
        return {name: owner.fp32_precision for name, owner in owners.items()}

    def put(settings: dict[str, str]) -> None:
        for name, owner in owners.items():
            owner.fp32_precision = settings[name]

    before = seen()
    put(REDUCED)
    yield seen
    put(before)


def spy(teacher: Teacher, look) -> tuple[Teacher, list]:
    """The teacher, and what `look` gives at each of its forward passes."""
    seen = []
    teacher.model.register_forward_pre_hook(lambda *_: seen.append(look()))
    return teacher, seen


def test_float32_is_float32_in_a_teacher_whatever_is_set_around_it(teacher_file, reduced):
    teacher, seen = spy(load_teacher(str(teacher_file)), reduced)
    teacher(torch.zeros((2, 3, 32, 32), dtype=torch.uint8))
    assert seen == [dict.fromkeys(REDUCED, "ieee")]
    assert reduced() == REDUCED


@pytest.mark.parametrize("grand_params", ["last", "all"])
def test_float32_is_float32_in_networks_that_score(dataset, teacher_file, reduced, grand_params):
    network, seen = spy(load_teacher(str(teacher_file)), reduced)
    loader = Loader(dataset, Views("center", 32), mask=np.arange(8), num_workers=1)
    score_networks([network], loader, ["grand"], options=ScoringOptions(grand_params=grand_params))
    assert seen
    assert all(found == dict.fromkeys(REDUCED, "ieee") for found in seen)
    assert reduced() == REDUCED


def test_with_the_settings_of_before_float32_is_float32_too(teacher_file, monkeypatch):
    owners = [SimpleNamespace(allow_tf32=True), SimpleNamespace(allow_tf32=True, enabled=True)]
    monkeypatch.setattr(torch.backends.cuda, "matmul", owners[0])
    monkeypatch.setattr(torch.backends, "cudnn", owners[1])
    teacher, seen = spy(load_teacher(str(teacher_file)), lambda: [owner.allow_tf32 for owner in owners])
    teacher(torch.zeros((2, 3, 32, 32), dtype=torch.uint8))
    assert seen == [[False, False]]
    assert [owner.allow_tf32 for owner in owners] == [True, True]
