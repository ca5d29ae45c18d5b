import numpy as np
import pytest
import torch

from fastkd.errors import OptionError
from fastkd.models.norm import PRESETS, Norm, norm_of, parse_norm

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_what_torchvision_would_compute(name):
    norm = parse_norm(name)
    mean, std = (np.array(x).reshape(1, 3, 1, 1) for x in PRESETS[name])
    expected = (IMAGES.numpy() / 255 - mean) / std
    np.testing.assert_allclose(norm(IMAGES).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_channels_last_stays_channels_last():
    out = Norm(*PRESETS["cifar"])(IMAGES.contiguous(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.dtype == torch.float32


def test_images_of_another_size_are_resized_and_those_of_the_size_are_not():
    images = torch.full((1, 3, 8, 8), 51, dtype=torch.uint8)
    out = Norm((0, 0, 0), (1, 1, 1), 5)(images)
    assert out.shape == (1, 3, 5, 5)
    torch.testing.assert_close(out, torch.full((1, 3, 5, 5), 0.2))
    assert torch.equal(Norm(*PRESETS["none"], 8)(IMAGES), Norm(*PRESETS["none"])(IMAGES))


def test_numbers_are_mean_and_deviation_of_each_channel():
    assert parse_norm(".1,.2,.3/1,2,3", size=24) == Norm((0.1, 0.2, 0.3), (1.0, 2.0, 3.0), 24)


@pytest.mark.parametrize(
    "text", ["", "mnist", "1,2,3", "1,2/1,2", "1,2,3/1,2,0", "1,2,3/1,2,-1", "1,2,3/1,2,3/4", "a,b,c/1,1,1"]
)
def test_what_is_no_normalisation_is_refused(text):
    with pytest.raises(OptionError, match=r"^--teacher-norm .*cifar, imagenet, none"):
        parse_norm(text, "--teacher-norm")


@pytest.mark.parametrize("text", ["nan,0,0/1,1,1", "0,0,0/nan,1,1", "0,0,0/inf,1,1", "inf,0,0/1,1,1"])
def test_numbers_that_are_not_finite_are_refused(text):
    with pytest.raises(OptionError):
        parse_norm(text)


def test_what_a_checkpoint_records_is_what_is_used():
    norm = Norm((0.1, 0.2, 0.3), (1.0, 2.0, 3.0), 24)
    assert norm_of({"norm": norm.describe()}) == norm
    assert norm_of({"norm": norm.describe()}, 32).size == 32
    assert norm_of({}) is None
