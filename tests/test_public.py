"""What Python users import: names, signatures, and that the functions do what the commands do."""

import inspect
import io
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import fastkd as run
from helpers.refusals import refused
from helpers.synthetic import coloured_noise
from PIL import Image

import fastkd
from fastkd import losses
from fastkd.data.beton.build import WriteOptions
from fastkd.data.beton.build import build_beton as write_beton
from fastkd.data.beton.dataset import open_dataset
from fastkd.data.sources.open import open_source, source_of
from fastkd.distil import methods
from fastkd.errors import MismatchError, OptionError, SourceError

FROZEN = Path(__file__).with_name("public_names.txt")
"""A line a name; `PYTHONPATH=tests python tests/test_public.py` prints them. A line that changes breaks the programs of others."""


def public_names() -> Iterator[str]:
    """Each public name with its signature: functions, classes and their methods, the losses."""
    for name in fastkd.__all__:
        thing = getattr(fastkd, name)
        if inspect.ismodule(thing):
            yield from (f"fastkd.{name}.{one}{signature(getattr(thing, one))}" for one in thing.__all__)
            continue
        yield f"fastkd.{name}{signature(thing)}"
        if inspect.isclass(thing) and not issubclass(thing, Exception):
            members = sorted(one for one in dir(thing) if not one.startswith("_"))
            yield from (f"fastkd.{name}.{one}{signature(getattr(thing, one))}" for one in members)


def signature(thing: object) -> str:
    """Names, kinds and defaults of the parameters; nothing of what is not called."""
    if not callable(thing):
        return ""
    parameters = [one.replace(annotation=one.empty) for one in inspect.signature(thing).parameters.values()]
    return re.sub(r"<function \S+ at \w+>", "…", str(inspect.Signature(parameters)))


def test_public_names_and_their_signatures_are_frozen():
    assert list(public_names()) == FROZEN.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", ["build_beton", "cache_logits", "train_student"])
def test_a_command_as_a_function_is_typed_and_explains_each_parameter(name):
    function = getattr(fastkd, name)
    for one in inspect.signature(function).parameters.values():
        assert one.annotation is not one.empty
        assert f"{one.name}" in function.__doc__.partition("Args:")[2]


def test_importing_fastkd_imports_nothing_else():
    code = "import fastkd, sys; print(sorted({'torch', 'numpy', 'ffcv', 'click', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", losses.__all__)
def test_every_loss_explains_itself(name):
    assert len(getattr(losses, name).__doc__ or "") > 40


def test_a_loss_of_ones_own_is_found_by_its_name():
    own = losses.LogitLoss(lambda s, t, labels, tau, beta, squared, weights: (s - t).square().mean())
    assert "mine" not in methods.NAMES
    losses.LOGIT_LOSSES["mine"] = own
    try:
        assert "mine" in methods.NAMES
        assert list(methods.NAMES)[:2] == ["kd", "dkd"]
    finally:
        del losses.LOGIT_LOSSES["mine"]


# Data from anywhere


def test_samples_of_all_kinds_give_the_beton_of_the_same_files(raw_folder, tmp_path):
    source = open_source(raw_folder)
    files = [source.read(i) for i in range(0, 600, 40)]
    labels = source.labels[::40].tolist()

    def pictures() -> Iterator[tuple[object, int]]:
        for i, (content, label) in enumerate(zip(files, labels, strict=True)):
            image = Image.open(io.BytesIO(content))
            yield [content, image, np.asarray(image.convert("RGB"))][i % 3], np.int64(label)

    found = fastkd.build_beton(pictures(), source.class_names, tmp_path / "x.beton")
    assert found["num_samples"] == 15
    dataset = open_dataset(tmp_path / "x.beton")
    assert dataset.class_names == source.class_names
    assert dataset.beton.labels.tolist() == labels
    whole = write_beton(source, tmp_path / "all.beton", WriteOptions(mode="raw"))
    everything = open_dataset(tmp_path / "all.beton").beton
    assert whole["num_samples"] == 600
    for i in range(15):
        assert np.array_equal(dataset.beton.payload(i), everything.payload(40 * i))


def test_jpeg_bytes_are_kept_and_samples_have_their_names(jpg_folder, tmp_path):
    source = open_source(jpg_folder)
    samples = [(source.read(i), int(label), source.names[i]) for i, label in enumerate(source.labels)]
    found = fastkd.build_beton(samples, source.class_names, tmp_path / "x.beton", mode="keep", num_workers=1)
    other = write_beton(source, tmp_path / "y.beton", WriteOptions(mode="keep"), num_workers=1)
    assert found["fingerprint"] == other["fingerprint"]
    assert open_dataset(tmp_path / "x.beton").beton.payload(3).tobytes() == samples[3][0]
    again = fastkd.build_beton(samples, source.class_names, tmp_path / "x.beton", mode="keep", num_workers=1)
    assert again["fingerprint"] == found["fingerprint"]
    with pytest.raises(MismatchError, match="another beton is there"):
        fastkd.build_beton(samples[1:], source.class_names, tmp_path / "x.beton", mode="keep")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == [
        *("x.beton", "x.beton.json", "x.beton.rows"),
        *("y.beton", "y.beton.json", "y.beton.rows"),
    ]


PIXELS = coloured_noise(0, 0, 10, 8)


def test_other_processes_read_the_samples_and_nothing_is_left_of_them(tmp_path):
    samples = [(coloured_noise(i, i % 2, 10, 8), i % 2) for i in range(5)]
    with source_of(samples, ["a", "b"], tmp_path) as source:
        path = pickle.loads(pickle.dumps(source)).reader.path
        content = subprocess.run(["cat", path], capture_output=True, check=True).stdout
        assert list(tmp_path.iterdir()) == []
    assert content == b"".join(pixels.tobytes() for pixels, _ in samples)


@pytest.mark.parametrize(
    ("sample", "class_names", "line"),
    [
        ((PIXELS, 2), ["a", "b"], "the label of sample 0 is 2, expected 0 … 1"),
        ((PIXELS, True), ["a", "b"], "the label of sample 0 is True (bool), expected a whole number, 0 … 1"),
        ((PIXELS, 0, 7), ["a"], "sample 0: its name is a int, expected text"),
        (PIXELS, ["a"], "sample 0 is a ndarray, expected (image, label) or (image, label, name)"),
        ((PIXELS / 255, 0), ["a"], "sample 0: found float64 of shape (8, 8, 3), expected uint8 (H, W) or (H, W, 3)"),
        ((PIXELS.transpose(2, 0, 1), 0), ["a"], "sample 0: found uint8 of shape (3, 8, 8), expected uint8 (H, W) or (H, W, 3)"),
        ((Image.new("F", (4, 4)), 0), ["a"], "sample 0: found Pillow's mode F, expected 8 bits a channel; give the bytes of its file"),
        (("x.jpg", 0), ["a"], "sample 0: found a str, expected Pillow's image, a uint8 array, or the bytes of an image file"),
        ((PIXELS, 0), "ab", "class_names are no list of texts, expected one for each label from 0 on"),
        ((PIXELS, 0), ["a", "a"], "class_names have 'a' 2 times, expected each class once"),
    ],
)  # fmt: skip
def test_what_is_no_sample_is_refused_in_a_line(tmp_path, sample, class_names, line):
    assert refused(OptionError, lambda: fastkd.build_beton([sample], class_names, tmp_path / "x.beton")) == line
    assert not [path for path in tmp_path.iterdir() if path.name[0] != "."]


def test_no_samples_and_bytes_of_no_image_are_refused(tmp_path):
    with pytest.raises(SourceError, match="no images"):
        fastkd.build_beton([], ["a"], tmp_path / "x.beton", mode="raw")
    with pytest.raises(SourceError, match="0: cannot be decoded"):
        fastkd.build_beton([(b"GIF87", 0)], ["a"], tmp_path / "x.beton")


# Commands as functions


def test_functions_do_what_the_commands_do(raw_beton, raw_mask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = list(sys.argv)
    cpu = {"device": "cpu", "num_workers": 1}
    some = {"model": "resnet8", "epochs": 1, "batch_size": 50, **cpu}
    teacher = fastkd.train_student(raw_beton, mask=raw_mask, alpha=0, out="t", **some)
    store = fastkd.cache_logits(raw_beton, mask=raw_mask, teacher=Path("t"), num_seeds=1, out="l.h5", **cpu)
    student = fastkd.train_student(raw_beton, mask=raw_mask, logits="l.h5", tau_squared=False, out="s", **some)
    assert (teacher["kind"], store["kind"], store["num_rows"]) == ("run", "logit-store", 200)
    typed = (
        f"train {raw_beton} --mask {raw_mask} --logits l.h5 --model resnet8 --epochs 1 --batch-size 50 --no-tau-squared"
    )
    told = run(*typed.split(), "--device", "cpu", "--num-workers", 1, "--out", "s", "--json").result
    assert told == student  # it is the same run, and finished
    assert sys.argv == argv


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"epochs": 1.5}, "epochs is 1.5, expected an integer"),
        ({"epoch": 1}, "train has no option 'epoch'"),
        ({"schedule": "cosin"}, "schedule: 'cosin' is not one of 'step', 'cosine', 'linear', 'constant', 'cyclic'."),
    ],
)
def test_options_are_taken_as_strictly_as_those_of_a_file(options, line):
    told = refused(OptionError, lambda: fastkd.train_student("x.beton", model="resnet8", out="run", **options))
    assert told.startswith(line)


if __name__ == "__main__":
    print("\n".join(public_names()))
