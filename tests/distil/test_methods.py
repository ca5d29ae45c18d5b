"""The methods that look inside the teacher: their layers, what of them is trained, and how they join the loss."""

import re

import numpy as np
import pytest
import torch
from helpers.commands import fastkd
from helpers.runs import records
from helpers.stores import NORM, save_teacher
from torch import nn

from fastkd.data.beton.dataset import open_dataset
from fastkd.data.views.draw import Views
from fastkd.distil.contrast import Contrast
from fastkd.distil.methods import METHODS, native_weight
from fastkd.errors import OptionError
from fastkd.feed.loader import Loader
from fastkd.models.registry import create_model
from fastkd.models.taps import Taps, embedding_name, stage_names
from fastkd.prune.masks.mask import Mask
from fastkd.teacher.network import load_teacher
from fastkd.train.learner import make_learner
from fastkd.train.recipe import Recipe
from fastkd.train.student import train


@pytest.fixture(scope="module")
def loader(raw_beton, raw_mask) -> Loader:
    views = Views("crop-flip", 32, 3)
    return Loader(open_dataset(raw_beton), views, mask=Mask.load(raw_mask), batch_size=100, shuffle=True, num_workers=1)


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("methods") / "t.safetensors", seed=5, name="resnet14")


@pytest.mark.parametrize("kd", METHODS)
def test_every_method_trains_as_the_sum_of_appendix_e(kd, loader, teacher_file, tmp_path):
    recipe = Recipe(model="resnet8", epochs=1, batch_size=100, kd=kd, alpha=0.7, beta=0.25, lr=0.01)
    train(recipe, loader, tmp_path, norm=NORM, teacher=load_teacher(str(teacher_file)), inputs={}, params={})
    found = records(tmp_path, "step")
    assert len(found) == 2
    for line in found:
        assert line[kd] != 0
        assert line["loss"] == pytest.approx(line["ce"] + 0.7 * line["kd"] + 0.25 * line[kd], rel=1e-5)


def test_the_student_starts_the_same_whatever_the_method(loader, teacher_file):
    recipes = [Recipe(model="resnet8", batch_size=100, kd=kd) for kd in ("kd", "vid", "crd")]
    found = []
    for recipe in recipes:
        torch.manual_seed(3)
        found.append(make_learner(recipe, loader, load_teacher(str(teacher_file)))[0].model.state_dict())
    for state in found[1:]:
        assert all(torch.equal(state[key], found[0][key]) for key in state)


def test_the_variance_of_vid_is_trained(loader, teacher_file):
    torch.manual_seed(0)
    learner, live = make_learner(Recipe(model="resnet8", kd="vid"), loader, load_teacher(str(teacher_file)))
    learner.norm = NORM
    before = [var.detach().clone() for (var,) in learner.method.variances()]
    assert [tuple(var.shape) for var in before] == [(16,), (32,), (64,)]
    for var in before:
        torch.testing.assert_close(var, torch.full_like(var, 5.0))
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    batch = next(iter(loader.epoch(0)))
    _, layers = live(batch.images)
    means = []
    for regressor in learner.method.regressors:
        regressor.register_forward_hook(lambda module, inputs, mean: means.append(mean.detach()))
    learner(batch.images, batch, layers, 0)[1].backward()
    optimizer.step()
    for old, (new,), mean, its in zip(before, learner.method.variances(), means, layers, strict=True):
        error = (mean - its).pow(2).mean((0, 2, 3))  # where the variance is at home
        far = (error - old).abs() > 0.5
        assert far.sum() > len(far) / 2
        assert torch.equal((new > old)[far], (error > old)[far])


def test_the_teacher_is_not_trained(loader, teacher_file, tmp_path):
    teacher = load_teacher(str(teacher_file))
    before = {key: value.clone() for key, value in teacher.model.state_dict().items()}
    recipe = Recipe(model="resnet8", epochs=1, batch_size=100, kd="ft")
    train(recipe, loader, tmp_path, norm=NORM, teacher=teacher, inputs={}, params={})
    assert all(torch.equal(value, before[key]) for key, value in teacher.model.state_dict().items())


def contrast(labels: list[int], num_negatives: int) -> Contrast:
    torch.manual_seed(0)
    ids = torch.tensor(np.random.default_rng(0).permutation(1000)[: len(labels)])
    return Contrast(4, 6, ids, torch.tensor(labels), seed=1, num_negatives=num_negatives)


def test_crd_draws_negatives_of_other_classes_from_few_samples_of_uneven_classes():
    labels = [0] * 14 + [1] * 2 + [2] * 1 + [4] * 3  # class 3 has none
    own = contrast(labels, num_negatives=500)
    drawn = own.negatives(torch.tensor([0, 1, 2, 4]), step=7)
    assert drawn.shape == (4, 500)
    for label, rows in zip((0, 1, 2, 4), drawn, strict=True):
        others = [row for row, its in enumerate(labels) if its != label]
        assert sorted(set(rows.tolist())) == others  # all of them, and nothing else


def test_crd_draws_anew_every_step_and_again_after_a_resume():
    own = contrast([0, 1] * 20, 64)
    labels = torch.tensor([0, 1])
    assert torch.equal(own.negatives(labels, 5), own.negatives(labels, 5))
    assert not torch.equal(own.negatives(labels, 5), own.negatives(labels, 6))


def test_crd_remembers_the_embeddings_of_the_batch_alone():
    own = contrast([0, 1, 2, 0, 1, 2], 16)
    before = own.teacher_memory.clone()
    ids = own.ids[[2, 4]]
    rows = own.rows[torch.searchsorted(own.ids, ids)]
    labels = torch.tensor([0, 1, 2, 0, 1, 2])[rows]
    loss, _ = own([torch.randn(2, 4)], [torch.randn(2, 6)], labels=labels, sample_ids=ids, step=0)
    loss.backward()
    moved = (own.teacher_memory != before).any(1).nonzero()[:, 0]
    assert moved.tolist() == sorted(rows.tolist())
    assert own.student_head.weight.grad.abs().sum() > 0
    assert own.teacher_head.weight.grad.abs().sum() > 0


def test_crd_learns_to_tell_samples_apart():
    """Fixed embeddings, 30 steps: the loss of pairs falls below what a critic that knows nothing pays."""
    own = contrast(list(range(8)), 7)
    student, teacher = torch.randn(8, 4), torch.randn(8, 6)
    ids = own.ids[torch.argsort(own.rows)]
    optimizer = torch.optim.SGD(own.parameters(), lr=0.2)
    losses = []
    for step in range(30):
        loss, _ = own([student], [teacher], labels=torch.arange(8), sample_ids=ids, step=step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < losses[0]


def test_crd_of_one_class_is_refused():
    with pytest.raises(OptionError, match="--kd crd: all 3 samples are of one class"):
        contrast([2, 2, 2], 4)


@pytest.mark.parametrize(
    ("name", "stages", "embedding"),
    [
        ("resnet20", ["layer1", "layer2", "layer3"], "fc:input"),
        ("wrn_40_2", ["block1", "block2", "block3"], "fc:input"),
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"], "fc:input"),
        ("mobilenet_v2", [], "classifier.1:input"),
    ],
)
def test_stages_and_embedding_are_found_by_their_usual_names(name, stages, embedding):
    model = create_model(name, 10)
    assert stage_names(model) == stages
    assert embedding_name(model) == embedding


def test_taps_catch_outputs_and_inputs_in_the_order_of_the_names():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    taps = Taps(model, ["2:input", "0"], "--layers")
    x = torch.randn(5, 3)
    model(x)
    after, before = taps.take()
    assert torch.equal(before, model[0](x))
    assert torch.equal(after, before.relu())


def test_torchvision_networks_are_looked_into_by_name(loader, tmp_path):
    teacher = load_teacher(str(save_teacher(tmp_path / "t.safetensors", name="resnet18")))
    layers = {"layers": ("features.3", "features.6"), "teacher_layers": ("layer1.1.conv2", "layer2")}
    learner, live = make_learner(Recipe(model="mobilenet_v2", kd="at", **layers), loader, teacher)
    learner.norm = NORM
    batch = next(iter(loader.epoch(0)))
    _, maps = live(batch.images)
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 8, 8), (128, 4, 4)]
    assert float(learner(batch.images, batch, maps, 0)[1].detach()) > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kd": "vid"}, "--kd vid looks inside the teacher, which a store does not hold: give --teacher CKPT"),
        ({"kd": "at", "layers": ("layr2",)}, "--layers layr2: CifarResNet has no such module: did you mean layer2"),
        ({"kd": "at", "layers": ("layer1",), "teacher_layers": ("layer9",)}, "--teacher-layers layer9: .* no such"),
        (
            {"kd": "at", "layers": ("layer1",), "teacher_layers": ("layer1", "layer2")},
            "1 layers of the student .layer1. and 2",
        ),
        ({"kd": "at", "layers": ("fc",)}, "--kd at looks at feature maps, layer fc is of shape .10,.: choose another"),
        ({"kd": "rkd", "layers": ("layer3",)}, "--kd rkd looks at vectors, layer layer3 is of shape .64, 8, 8."),
        ({"kd": "vid", "model": "mobilenet_v2"}, "no stages named layer1 … or block1 …: name them with --layers"),
        ({"kd": "fsp", "model": "resnet18"}, "5 layers of the student"),
    ],
)
def test_what_cannot_be_looked_at_is_one_clear_line(options, words, loader, teacher_file):
    teacher = None if options == {"kd": "vid"} else load_teacher(str(teacher_file))
    with pytest.raises(OptionError, match=words) as error:
        make_learner(Recipe(**{"model": "resnet8"} | options), loader, teacher)
    assert "\n" not in str(error.value)


def test_native_weights_are_repdistillers():
    found = {name: native_weight(name) for name in METHODS if name != "cc"}
    assert found == {
        **{"at": 1000, "ft": 200, "sp": 3000, "hint": 100, "vid": 1, "nst": 50, "ab": 1, "fsp": 50},
        **{"rkd": 1, "pkt": 30000, "crd": 0.8},
    }
    with pytest.raises(OptionError, match="no weight is known for --kd cc"):
        native_weight("cc")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--kd", "vid"], "--kd vid looks inside the teacher, which a store does not hold: give --teacher CKPT"),
        (["--kd", "vid", "--teacher", "T10", "--layers", "stem"], "--layers stem: CifarResNet has no such module"),
        (["--kd", "vid", "--teacher", "T7"], r"raw.beton has 10 classes, .*seven.safetensors has 7"),
        (["--kd", "vidd"], "--kd vidd: expected one of kd, dkd, dist"),
        (["--beta", "2"], "--beta 2 is the weight of what --kd adds to KD"),
        (["--alpha", "0.5", "--alpha-rule", "0.1:1"], "--alpha-rule 0.1:1 is for --alpha auto"),
        (["--teacher-layers", "layer1"], "--teacher-layers layer1: --kd kd looks at logits alone; give a --kd"),
        (["--teacher-norm", "cifar"], "--teacher-norm does nothing without --teacher"),
        (["--val-every", "5"], "--val-every does nothing without --val"),
        (["--dual-window", "5"], "--dual-window does nothing without --record"),
        (["--alpha", "0", "--model", "alexnet"], "alexnet: does not run on images of 32 pixels .*give another --size"),
        (["--alpha", "0", "--lr", "1000", "--batch-size", "10"], "is (nan|inf): training diverged; lower --lr"),
    ],
)
def test_bad_options_are_one_line_of_the_command(options, words, raw_beton, teacher_file, tmp_path):
    seven = save_teacher(tmp_path / "seven.safetensors", num_classes=7)
    options = [{"T10": teacher_file, "T7": seven}.get(option, option) for option in options]
    common = ["--model", "resnet8", "--epochs", 1, "--batch-size", 200, "--device", "cpu", "--out", tmp_path / "run"]
    outcome = fastkd("train", raw_beton, *common, *options)
    assert outcome.code == 1
    lines = [line for line in outcome.err.splitlines() if "error" in line]
    assert len(lines) == 1
    assert re.search(words, lines[0])
    assert "Traceback" not in outcome.err
