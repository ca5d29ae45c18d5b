"""`fastkd verify --write-manifest`: what becomes of a manifest that is there."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.commands import Outcome, fastkd

from fastkd.data.beton.read import identify, manifest_path, open_beton, read_manifest


def renewed(path: Path) -> tuple[Outcome, dict]:
    """The command's outcome, and the manifest that is there afterwards."""
    outcome = fastkd("verify", path, "--write-manifest")
    return outcome, read_manifest(open_beton(path), columns=True)


@pytest.fixture
def beton(photo_raw, copy_of) -> Path:
    """A copy of a beton of 12 photos of the classes a, b and c, with its manifest."""
    return copy_of(photo_raw, manifest=True)


def damage(path: Path, old: str, new: str) -> None:
    text = manifest_path(path).read_text()
    assert text.count(old) == 1
    manifest_path(path).write_text(text.replace(old, new))


def test_a_whole_manifest_is_left_as_it_is(beton):
    before = manifest_path(beton).read_bytes()
    outcome = fastkd("verify", beton, "--write-manifest")
    assert (outcome.code, manifest_path(beton).read_bytes()) == (0, before)
    assert outcome.err.startswith(f"{beton}.json: whole, left as it is; fingerprint ")


@pytest.mark.parametrize(
    ("old", "new", "lost"),
    [
        ('"b/05.jpg"', '"b/15.jpg"', ["names"]),
        ('"names": [', '"names": ', ["names"]),
        ('"payload_crc32": [', '"payload_crc32": ', []),
        ('"class_names": ["a"', '"class_names": ["x"', ["class_names", "source", "options", "versions", "job"]),
        ('"mode": "raw"', '"mode": "raw', ["class_names", "source", "options", "versions", "job", "names"]),
    ],
)
def test_of_a_damaged_one_all_is_kept_that_a_checksum_vouches_for(beton, old, new, lost):
    whole = read_manifest(open_beton(beton), columns=True)
    damage(beton, old, new)
    outcome, manifest = renewed(beton)
    assert outcome.code == 0, outcome.err
    volatile = {"crc32", "names_crc32"}
    kept = {name: value for name, value in whole.items() if name not in {*lost, *volatile}}
    assert {name: value for name, value in manifest.items() if name not in volatile} == kept
    words = {"names": "file names", "class_names": "class names, which are numbers now"}
    told = " and ".join(words[name] for name in words if name in lost) or "nothing"
    assert outcome.err.splitlines()[0].startswith(f"{beton}.json: made anew; the old one was damaged, lost: {told}; f")
    assert identify(open_beton(beton))[1] == (["0", "1", "2"] if "class_names" in lost else ["a", "b", "c"])


def test_nothing_is_kept_of_another_betons(photo_raw, photo_jpg, copy_of):
    path = copy_of(photo_raw)
    shutil.copy(manifest_path(photo_jpg), manifest_path(path))
    outcome, manifest = renewed(path)
    assert "another beton's, nothing of it is kept" in outcome.err
    assert "class_names" not in manifest


def test_damaged_content_is_not_made_the_manifests(beton):
    damage(beton, '"b/05.jpg"', '"b/15.jpg"')
    before, content = manifest_path(beton).read_bytes(), open_beton(beton)
    at = int(content.ptrs[3]) + 7
    whole = beton.read_bytes()
    beton.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    outcome = fastkd("verify", beton, "--write-manifest")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "its content does not have the fingerprint in" in outcome.err
    assert manifest_path(beton).read_bytes() == before


def test_a_part_that_does_not_say_of_what_is_refused(raw_beton, raw_mask, tmp_path):
    part = tmp_path / "part.beton"
    assert fastkd("build-beton", raw_beton, "--mask", raw_mask, "--out", part).code == 0
    damage(part, '"part_of"', '"part_or"')
    outcome = fastkd("verify", part, "--write-manifest")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "damaged where it says what part.beton is a part of" in outcome.err


def test_a_newer_manifest_is_refused(beton):
    text = manifest_path(beton).read_text()
    damage(beton, '"format_version": 1', '"format_version": 3')
    outcome = fastkd("verify", beton, "--write-manifest")
    assert "beton manifest of version 3, this fastkd reads beton manifests of versions 1 and 2" in outcome.err
    assert json.loads(manifest_path(beton).read_text()) == json.loads(text) | {"format_version": 3}
