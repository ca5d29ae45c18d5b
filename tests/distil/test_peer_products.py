"""`--beta native` times R is RepDistiller's weighted loss, for the tensors below: numbers of its own code (b84f547)."""

import numpy as np
import pytest
import torch
from torch import nn

from fastkd.distil.methods import METHODS, Context, choose_layers, native_weight
from fastkd.distil.parts import Boundaries, Factors, Regressed

SHAPES = [(4, 8, 8), (6, 4, 4), (8, 2, 2)]


def wave(seed: int, *shape: int) -> torch.Tensor:
    values = (torch.arange(np.prod(shape), dtype=torch.float64) * (seed + 0.5)).sin() * 2
    return values.reshape(shape).float()


STUDENT = [wave(i + 1, 5, *shape) for i, shape in enumerate(SHAPES)]
TEACHER = [wave(i + 11, 5, *shape) for i, shape in enumerate(SHAPES)]
EMBEDDINGS = [wave(21, 5, 8)], [wave(31, 5, 8)]
NO_OPPOSITES = [wave(21, 5, 8) + 1], [wave(31, 5, 8) + 1]
"""For pkt: of two embeddings whose cosine is near -1 it has the logarithm of 1 + cosine, which float32 rounds away."""
STEMS = wave(41, 5, 4, 8, 8), wave(42, 5, 4, 8, 8)

# -b of its sample scripts times what its criterion gives; fsp's is the script's, where the loop adds 0 after the first stage.
PEER = {
    "at": 1000 * 0.007640035,
    "nst": 50 * 3.253136,
    "sp": 3000 * 0.1305179,
    "hint": 100 * 3.973588,
    "ft": 200 * 0.06083139,
    "vid": 1 * 3.607205,
    "ab": 1 * 1.223447,
    "rkd": 1 * 11.75234,
    "pkt": 30000 * 0.01237265,
    "fsp": 50 * 1.278237,
}


def looked_at(name: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The tensors that a method is given, of those of both networks."""
    kind = METHODS[name].layers
    if kind == "embedding":
        return NO_OPPOSITES if name == "pkt" else EMBEDDINGS
    if kind == "flow":
        return [STEMS[0], *STUDENT], [STEMS[1], *TEACHER]
    chosen = choose_layers(name, ["0", "1", "2"], lambda: "", [])
    places = [int(layer.partition(":")[0]) for layer in chosen]
    return [STUDENT[i] for i in places], [TEACHER[i] for i in places]


def method_of(name: str) -> nn.Module:
    """The method for these tensors, its trained parts left out: the peer's criterion is given what comes out of them."""
    student, teacher = ([tuple(x.shape[1:]) for x in side] for side in looked_at(name))
    ids = torch.arange(5)
    method = METHODS[name].make(student, teacher, Context(num_samples=5, sample_ids=ids, labels=ids % 3, seed=0))
    if isinstance(method, Regressed):
        method.regressors = nn.ModuleList(nn.Identity() for _ in method.regressors)
    if isinstance(method, Factors):
        method.encoder = method.translator = method.decoder = nn.Identity()
    return method


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"cc", "crd"}))  # cc has no weight; crd is below
def test_the_native_weight_times_a_loss_is_the_peers(name):
    found, _ = method_of(name)(*looked_at(name))
    assert native_weight(name) * float(found.detach()) == pytest.approx(PEER[name], rel=1e-5)


def test_the_native_weight_times_crd_is_the_peers():
    """Eq. 17-19 of the paper over the module's own draws, in float64; each critic is scaled by its first batch's mean."""
    torch.manual_seed(0)
    ids, labels = torch.arange(6), torch.tensor([0, 1, 2, 0, 1, 2])
    context = Context(num_samples=6, sample_ids=ids, labels=labels, seed=3)
    method = METHODS["crd"].make([(8,)], [(8,)], context)
    memories = [method.teacher_memory.double().numpy(), method.student_memory.double().numpy()]
    rows = method.negatives(labels[:5], step=4).numpy()
    expected = 0.0
    for (embedding,), head, memory in zip(
        EMBEDDINGS, (method.student_head, method.teacher_head), memories, strict=True
    ):
        anchors = head(embedding).detach().double().numpy()
        anchors /= np.linalg.norm(anchors, axis=1, keepdims=True)
        scores = np.exp(anchors @ memory.T / 0.07)
        drawn = [np.concatenate([[scores[i, i]], scores[i, rows[i]]]) for i in range(5)]
        scale, noise = np.mean(drawn) * 6, rows.shape[1] / 6
        for one in drawn:
            one = one / scale
            expected -= (np.log(one[0] / (one[0] + noise)) + np.log(noise / (one[1:] + noise)).sum()) / 5
    found, _ = method(*EMBEDDINGS, labels=labels[:5], sample_ids=ids[:5], step=4)
    assert native_weight("crd") * float(found.detach()) == pytest.approx(0.8 * expected, rel=1e-4)


@pytest.mark.parametrize(("student_size", "teacher_size", "expected"), [(8, 4, 1.9732496), (4, 8, 17.365416)])
def test_vid_pools_the_larger_map_and_regresses_what_is_left(student_size, teacher_size, expected):
    """The peer's number for the same regressor, of 4 channels to 6."""
    shapes = (4, student_size, student_size), (6, teacher_size, teacher_size)
    student, teacher = wave(1, 5, *shapes[0]), wave(2, 5, *shapes[1])
    method = METHODS["vid"].make([shapes[0]], [shapes[1]], None)
    for i, weight in enumerate(method.regressors.parameters()):
        weight.data = wave(50 + i, *weight.shape)
    assert float(method([student], [teacher])[0].detach()) == pytest.approx(expected, rel=1e-5)


def test_ab_weighs_the_last_layer_most_and_connects_only_what_differs():
    method = Boundaries([(4, 8, 8), (6, 4, 4), (8, 2, 2)], [(4, 8, 8), (6, 2, 2), (9, 2, 2)])
    assert [isinstance(one, nn.Identity) for one in method.connectors] == [True, False, False]
    alone = Boundaries(SHAPES, SHAPES)
    assert not list(alone.parameters())
    gradients = []
    for i in range(3):
        student = [torch.zeros(5, *shape, requires_grad=True) for shape in SHAPES]
        alone(student, [torch.ones(5, *shape) for shape in SHAPES])[0].backward()
        gradients.append(float(student[i].grad.flatten()[0]))
    assert gradients == pytest.approx([-2 * 0.003 / 5 * share for share in (1 / 4, 1 / 2, 1)])


def test_ab_looks_at_stages_before_their_last_relu_unless_told_otherwise():
    assert choose_layers("ab", ["layer1", "layer2"], lambda: "", []) == ["layer1:preact", "layer2:preact"]
    assert choose_layers("ab", ["layer1", "layer2"], lambda: "", ["layer2"]) == ["layer2"]
