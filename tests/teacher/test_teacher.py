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
from fastkd.models.checkpoint import save_weights
from fastkd.models.registry import create_model
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
