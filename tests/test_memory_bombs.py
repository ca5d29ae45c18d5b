"""Small files that unpack to much: torch files, npy, npz, zips and parts; refused in one line before the memory is taken."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.hostile import ending

from fastkd.data.beton.build import build_part
from fastkd.data.beton.dataset import open_dataset
from fastkd.data.beton.manifest import manifest_text
from fastkd.data.beton.part import MOST_ROWS, MOST_TIMES, require_rows
from fastkd.data.beton.read import manifest_path
from fastkd.data.sources.open import open_source
from fastkd.fingerprint import fingerprint
from fastkd.models.checkpoint import read_checkpoint
from fastkd.prune.masks.mask import Mask
from fastkd.prune.scores.published import read_published
from fastkd.train.resume import RESUME_MAGIC, load_resume

HUGE = 2**30


class Call:
    """What is pickled as a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def _saved(content: object, *, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def _with_pickle(content: object) -> bytes:
    """A torch file of a tensor, with another pickle in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_saved({"x": torch.ones(4)}))) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickle.dumps(content, 2) if name.endswith("data.pkl") else old.read(name))
    return file.getvalue()


def _nested_encodings() -> object:
    from _codecs import encode

    value: object = b"\0" * 1000
    for _ in range(24):
        value = Call(encode, value, "hex")
    return {"x": value}


def _compressed() -> bytes:
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(_saved({"x": torch.zeros(HUGE // 16)}))) as old,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return file.getvalue()


TORCH_FILES = {
    "an expanded tensor": lambda: _saved({"x": torch.zeros(1).expand(HUGE)}),
    "an expanded tensor of the old format": lambda: _saved({"x": torch.zeros(1).expand(HUGE)}, zipped=False),
    "overlapping rows": lambda: _saved({"x": torch.zeros(2**15).as_strided((2**14, 2**14), (1, 1))}),
    "a tensor in lists": lambda: _saved({"x": [({"y": torch.zeros(1).expand(HUGE)},)]}),
    "a tensor without values": lambda: _saved({"x": torch.zeros(HUGE, device="meta")}),
    "a bytearray": lambda: _with_pickle({"x": Call(bytearray, HUGE)}),
    "a tensor of a size": lambda: _with_pickle({"x": Call(torch.Tensor, HUGE)}),
    "texts encoded again and again": lambda: _with_pickle(_nested_encodings()),
    "compressed members": _compressed,
}


def _as_resume(path: Path, content: bytes) -> None:
    path.write_bytes(content + RESUME_MAGIC + fingerprint([content]).encode())


@pytest.mark.parametrize("form", TORCH_FILES)
def test_a_torch_file_that_takes_more_than_it_has_is_refused_by_all_that_read_one(form, tmp_path):
    content = TORCH_FILES[form]()
    (tmp_path / "x.pt").write_bytes(content)
    _as_resume(tmp_path / "resume.pt", content)
    for read, name in ((read_checkpoint, "x.pt"), (read_published, "x.pt"), (load_resume, "resume.pt")):
        told = ending(lambda read=read, name=name: read(tmp_path / name), tmp_path)
        assert told.startswith(f"{tmp_path / name}: "), told


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_that_share_memory_or_are_views_are_read(zipped, tmp_path):
    weight = torch.randn(16, 8)
    state = {"a": weight, "b": weight, "turned": weight.T, "row": weight[3], "empty": torch.empty(0, 4)}
    (tmp_path / "x.pt").write_bytes(_saved(state, zipped=zipped))
    found = read_checkpoint(tmp_path / "x.pt").state_dict
    assert {name: value.tolist() for name, value in found.items()} == {name: v.tolist() for name, v in state.items()}


def test_lists_that_hold_themselves_end(tmp_path):
    ring: list = []
    ring += [ring, ring]
    (tmp_path / "x.pt").write_bytes(_with_pickle({"x": ring}))
    assert "holds no state dict" in ending(lambda: read_checkpoint(tmp_path / "x.pt"), tmp_path)


def _npy(dtype: str, shape: tuple[int, ...]) -> bytes:
    """A header of an array, and 64 bytes of it."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(64)


def _npz(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("scores.npy", content)
    return file.getvalue()


NUMPY_FILES = {
    "npy": lambda: _npy("<f8", (HUGE,)),
    "npy of many axes": lambda: _npy("<f8", (2**31, 2**31, 2**31)),
    "npy of values without bytes": lambda: _npy("<U0", (HUGE,)),
    "npz": lambda: _npz(_npy("<f8", (HUGE,))),
    "npz of zeros": lambda: _npz(_npy("<f8", (HUGE // 8,)) + bytes(HUGE // 2)),
}


@pytest.mark.parametrize("form", NUMPY_FILES)
def test_an_array_that_promises_more_than_its_file_has_is_refused(form, tmp_path):
    (tmp_path / "x").write_bytes(NUMPY_FILES[form]())
    told = ending(lambda: read_published(tmp_path / "x"), tmp_path)
    assert told.startswith(f"{tmp_path / 'x'}: "), told


def test_packed_scores_of_a_large_data_set_are_read(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", scores=np.zeros(4_000_000))
    assert len(read_published(tmp_path / "x.npz").values) == 4_000_000


@pytest.mark.parametrize("said", [None, 100])
def test_a_zip_member_that_unpacks_to_much_is_refused(said, tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("cat/a.png", bytes(300 << 20))
    if said is not None:  # in the directory and at the member alike
        content = path.read_bytes()
        path.write_bytes(content.replace(struct.pack("<I", 300 << 20), struct.pack("<I", said)))
    told = ending(lambda: open_source(str(path)).read(0), tmp_path)
    assert told.startswith(f"{path}: member 'cat/a.png' "), told


def test_a_part_that_claims_to_be_of_far_more_samples_is_refused(raw_beton, raw_mask, tmp_path):
    full, path = open_dataset(raw_beton), tmp_path / "part.beton"
    build_part(full.beton, Mask.load(raw_mask).sample_ids, path, full_fingerprint=full.fingerprint)
    manifest = json.loads(manifest_path(path).read_text())
    manifest["part_of"]["num_samples"] = 2**31 - 1
    manifest_path(path).write_text(manifest_text(manifest))
    assert "a part of 200 of 2,147,483,647 samples" in ending(lambda: open_dataset(path), tmp_path)


def test_a_part_of_a_thousandth_is_read_whatever_it_is_of():
    require_rows("x", 10, MOST_ROWS)
    require_rows("x", MOST_ROWS, MOST_ROWS * MOST_TIMES)
