import argparse
import collections
import json
import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.damage import flipped
from torch import nn

from fastkd.errors import CorruptError, FastKDError, FormatError, ModelError, NotFoundError
from fastkd.models.checkpoint import load_model, read_checkpoint, save_weights
from fastkd.models.registry import weights_fingerprint


def assert_refused(path: Path, kind: type[FastKDError], *words: str) -> None:
    with pytest.raises(kind) as error:
        read_checkpoint(path)
    text = str(error.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    assert len(text) < len(str(path)) + 200
    assert all(word in text for word in words), text


def rewrite_metadata(path: Path, **changes: str) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"].update(changes)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def test_weights_round_trip(model, saved):
    checkpoint = read_checkpoint(saved)
    assert checkpoint.format == "fastkd"
    assert checkpoint.meta == {"model": "resnet8", "mean": [0.5, 0.5, 0.5], "note": "é"}
    loaded, meta = load_model(saved)
    assert not loaded.training
    assert meta == checkpoint.meta
    assert weights_fingerprint(loaded) == weights_fingerprint(model)


def test_any_safetensors_reader_reads_the_file(model, saved):
    state = safetensors.torch.load_file(saved)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    with safetensors.safe_open(saved, framework="np") as file:
        metadata = file.metadata()
    assert metadata["fastkd_kind"] == "checkpoint"
    assert metadata["format_version"] == "1"
    assert metadata["fingerprint"] == weights_fingerprint(model)
    assert json.loads(metadata["fastkd"])["model"] == "resnet8"


def test_the_same_weights_give_the_same_file(model, saved, tmp_path):
    wrapped = nn.DataParallel(model.to(memory_format=torch.channels_last))
    digest = save_weights(tmp_path / "b", wrapped, {"note": "é", "mean": [0.5, 0.5, 0.5], "model": "resnet8"})
    assert digest == weights_fingerprint(model)
    assert (tmp_path / "b").read_bytes() == saved.read_bytes()


def test_tied_weights_are_saved(tmp_path):
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    save_weights(tmp_path / "tied", tied, {})
    assert len(read_checkpoint(tmp_path / "tied").state_dict) == 4


def test_a_failing_write_leaves_the_old_file(model, saved, monkeypatch):
    before = saved.read_bytes()

    def fail(path, content):
        path.write_text("half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="no space"):
        save_weights(saved, model, {})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_missing_folder_is_named(model, tmp_path):
    with pytest.raises(NotFoundError, match="nowhere"):
        save_weights(tmp_path / "nowhere" / "a", model, {})


def test_every_flipped_bit_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_weights(path, nn.Linear(2, 1), {"model": "resnet8", "norm": "imagenet"})
    whole = path.read_bytes()
    for i in range(len(whole)):
        for bit in range(8):
            path.write_bytes(flipped(whole, i, bit))
            with pytest.raises((FormatError, CorruptError)) as error:
                read_checkpoint(path)
            assert "\n" not in str(error.value)


def test_a_flipped_weight_is_corrupt(saved):
    content = saved.read_bytes()
    saved.write_bytes(flipped(content, len(content) - 5, 3))
    assert_refused(saved, CorruptError, "fingerprint")


def test_every_cut_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_weights(path, nn.Linear(2, 1), {"model": "resnet8"})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert_refused(path, FormatError)


def test_a_newer_version_and_another_kind_are_refused(saved):
    whole = saved.read_bytes()
    rewrite_metadata(saved, format_version="2")
    assert_refused(saved, FormatError, "format version '2'", "reads 1")
    saved.write_bytes(whole)
    rewrite_metadata(saved, fastkd_kind="mask")
    assert_refused(saved, FormatError, "mask")


def test_safetensors_of_others_have_no_meta(model, tmp_path):
    safetensors.torch.save_file(model.state_dict(), tmp_path / "a.bin", metadata={"format": "pt"})
    checkpoint = read_checkpoint(tmp_path / "a.bin")
    assert checkpoint.format == "safetensors"
    assert checkpoint.meta == {}
    loaded, _ = load_model(tmp_path / "a.bin", "resnet8")
    assert weights_fingerprint(loaded) == weights_fingerprint(model)


@pytest.mark.parametrize("key", [None, "state_dict", "model", "net", "model_state_dict"])
@pytest.mark.parametrize("as_zip", [True, False])
def test_torch_files_are_unwrapped(model, tmp_path, key, as_zip):
    state = model.state_dict()
    content = state if key is None else {key: state, "epoch": 3, "optimizer": {"lr": 0.1}}
    torch.save(content, tmp_path / "a.safetensors", _use_new_zipfile_serialization=as_zip)
    checkpoint = read_checkpoint(tmp_path / "a.safetensors")
    assert checkpoint.format == "torch"
    assert list(checkpoint.state_dict) == list(state)


def test_repdistillers_files_load(model, tmp_path):
    options = argparse.Namespace(model="resnet8", lr=0.05, schedule=[150, 180])
    content = {"epoch": 240, "model": model.state_dict(), "accuracy": torch.tensor(70.0), "opt": options}
    torch.save(content, tmp_path / "resnet8_last.pth")
    loaded, meta = load_model(tmp_path / "resnet8_last.pth", "resnet8", 10)
    assert meta == {}
    assert weights_fingerprint(loaded) == weights_fingerprint(model)


class Explosive:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("exploded",)


def test_code_in_a_pickle_does_not_run(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, save in enumerate((torch.save, lambda content, path: Path(path).write_bytes(pickle.dumps(content)))):
        path = tmp_path / f"{i}.pth"
        save({"model": model.state_dict(), "bomb": Explosive()}, path)
        assert_refused(path, FormatError)
    assert not (tmp_path / "exploded").exists()


def test_objects_in_a_pickle_are_named(model, tmp_path):
    torch.save({"model": model.state_dict(), "path": Path("x")}, tmp_path / "a.pth")
    assert_refused(tmp_path / "a.pth", FormatError, "pathlib", "save the state_dict alone")


def test_a_torch_file_without_weights_is_refused(tmp_path):
    for content in ({"epoch": 3, "model": {"lr": 0.1}}, [1, 2], torch.zeros(3), {}):
        torch.save(content, tmp_path / "a.pth")
        assert_refused(tmp_path / "a.pth", FormatError, "holds no state dict")
    safetensors.torch.save_file({}, tmp_path / "b")
    assert_refused(tmp_path / "b", FormatError, "no tensors")


def test_a_cut_torch_file_is_refused(model, tmp_path):
    path = tmp_path / "a.pth"
    for as_zip in (True, False):
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=as_zip)
        whole = path.read_bytes()
        for length in (3, 9, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            assert_refused(path, FormatError)


def test_other_files_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    others = {
        "empty": b"",
        "text": b"epoch,loss\n1,2\n",
        "random": rng.bytes(5000),
        "zip": b"PK\x03\x04" + rng.bytes(500),
    }
    others["pickle"] = pickle.dumps({"a": collections.Counter("ab")})
    others["huge header"] = (1 << 62).to_bytes(8, "little") + b"{" + bytes(50)
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
        assert_refused(tmp_path / name, FormatError)
    with h5py.File(tmp_path / "hdf5", "w") as file:
        file["a"] = np.zeros(3)
    assert_refused(tmp_path / "hdf5", FormatError)
    assert_refused(tmp_path, FormatError, "folder")
    assert_refused(tmp_path / "nothing", NotFoundError)


def test_a_file_that_does_not_name_its_network_asks_for_the_option(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "a.pth")
    with pytest.raises(ModelError, match="does not say which network it holds: give --teacher-model NAME"):
        load_model(tmp_path / "a.pth", name_option="--teacher-model")


def test_two_names_must_agree(saved):
    load_model(saved, "ResNet8")
    with pytest.raises(ModelError, match="holds a resnet8, but --model-name says resnet20"):
        load_model(saved, "resnet20")


def test_weights_that_do_not_fit_name_the_file(saved, tmp_path):
    with pytest.raises(ModelError, match=r"a\.safetensors: resnet8: the weights have 10 classes, expected 100"):
        load_model(saved, num_classes=100)


def test_the_published_files_load_unchanged():
    if "FASTKD_TEST_DATA" not in os.environ:
        pytest.skip("needs FASTKD_TEST_DATA")
    folder = Path(os.environ["FASTKD_TEST_DATA"], "cifar10-resnets")
    for name in ("resnet20-12fca82f.th", "resnet32-d509ac18.th", "resnet56-4bfd9763.th"):
        loaded, meta = load_model(folder / name, name.split("-")[0], 10)
        assert meta == {}
        assert not loaded.training
        own, read = loaded.state_dict(), read_checkpoint(folder / name).state_dict
        assert len(read) == sum("num_batches" not in key for key in own)
        assert all(torch.equal(own[key[7:].replace("linear", "fc")], value) for key, value in read.items())
        assert loaded(torch.ones(2, 3, 32, 32)).isfinite().all()
    with pytest.raises(ModelError, match=r"resnet20-12fca82f.th: resnet56: .*the keys look like resnet20$"):
        load_model(folder / "resnet20-12fca82f.th", "resnet56")


WRONG_META = [
    *({name: value} for name in ("inputs", "params", "about", "norm") for value in ("x", 1, [1], True, 1e308)),
    *({"about": {"mask": value}} for value in ("x", 1, [1])),
    *({"norm": {"mean": mean, "std": [1, 1, 1]}} for mean in (None, "x", 1, [1], ["a"] * 3, [float("nan")] * 3, {})),
    *({"norm": {"mean": [0, 0, 0], "std": std}} for std in (None, [0, 1, 1], [-1, 1, 1], [True] * 3, [1e308] * 3)),
    *({"norm": {"mean": [0, 0, 0], "std": [1, 1, 1], "size": size}} for size in ("x", 0, -1, 1.5, [8], 2**40)),
]


@pytest.mark.parametrize("wrong", WRONG_META, ids=json.dumps)
def test_metadata_that_matches_its_digest_and_makes_no_sense_is_refused(model, tmp_path, wrong):
    save_weights(tmp_path / "a", model, {"model": "resnet8"} | wrong)
    assert_refused(tmp_path / "a", FormatError, "damaged checkpoint")
