"""Names of files that are no text, or hostile ones: listed, kept in the manifest, shown."""

import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import fastkd
from helpers.refusals import refused
from helpers.synthetic import build, encoded, photo, write_files, write_zip

from fastkd.data.beton.build import build_part
from fastkd.data.beton.dataset import open_dataset
from fastkd.data.beton.read import manifest_path, open_beton, read_manifest
from fastkd.data.beton.renew import renew_manifest
from fastkd.data.beton.verify import verify_beton
from fastkd.data.loader import ViewLoader
from fastkd.data.sources.open import open_source
from fastkd.data.sources.picture import IMAGE_SUFFIXES
from fastkd.data.views.draw import Views
from fastkd.errors import CorruptError, FormatError, SourceError, printable

PICTURE = encoded(photo(0, 12, 16), "PNG")
BYTES = sorted({*range(1, 256)} - {ord("/")})  # that a name can have
ESCAPES = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202egnp"


@pytest.fixture
def odd_folder(tmp_path) -> str:
    """A class whose pictures have each of the bytes that a name can have in theirs."""
    folder = os.fsencode(tmp_path / "images" / "a")
    os.makedirs(folder)
    for byte in BYTES:
        Path(os.fsdecode(folder + b"/x" + bytes([byte]) + b".png")).write_bytes(PICTURE)
    return str(tmp_path / "images")


def test_every_name_that_a_file_system_takes_comes_back_from_the_manifest(odd_folder, tmp_path):
    beton = build(odd_folder, tmp_path / "x.beton")
    names = read_manifest(beton, columns=True)["names"]
    assert sorted(map(os.fsencode, names)) == sorted(b"a/x" + bytes([byte]) + b".png" for byte in BYTES)
    assert "\\udce9.png" in manifest_path(beton.path).read_text(encoding="utf-8")


def test_a_manifest_of_odd_names_is_copied_into_parts_and_made_anew(odd_folder, tmp_path):
    build(odd_folder, tmp_path / "x.beton")
    dataset = open_dataset(tmp_path / "x.beton")
    names = read_manifest(dataset.beton, columns=True)["names"]
    ids = np.arange(len(names))[::-2].copy()
    manifest = build_part(dataset.beton, ids, tmp_path / "part.beton", full_fingerprint=dataset.fingerprint)
    assert manifest["names"] == [names[i] for i in ids]
    content = manifest_path(tmp_path / "x.beton").read_bytes()
    manifest_path(tmp_path / "x.beton").write_bytes(content.replace(b'"class_names"', b'"klass_names"', 1))
    assert renew_manifest(tmp_path / "x.beton")[0]["names"] == names


def test_a_source_that_itself_has_an_odd_name_is_built(tmp_path):
    folder = write_files(tmp_path / "im\udcffages", {"a/0.png": PICTURE})
    assert read_manifest(build(folder, tmp_path / "o\udcfft.beton"))["source"] == folder


@pytest.mark.parametrize("as_json", [True, False])
def test_a_command_whose_paths_are_odd_ends_well(tmp_path, as_json):
    folder = write_files(tmp_path / "im\udcffages", {"a/0.png": PICTURE})
    outcome = fastkd("build-beton", folder, "--out", tmp_path / "o\udcfft.beton", *["--json"] * as_json)
    assert outcome.code == 0, outcome.err
    assert (r"o\udcfft.beton" if as_json else r"o\xfft.beton") in outcome.out


@pytest.mark.parametrize("byte", BYTES)
def test_no_byte_of_a_name_reaches_the_terminal_as_a_control_character(byte):
    text = printable("a" + os.fsdecode(bytes([byte])) + "b")
    assert text.replace("\n", "").isprintable()
    text.encode()


@pytest.mark.parametrize("skip", [[], ["--skip-bad"]])
def test_a_bad_file_of_a_hostile_name_is_told_without_its_escapes(tmp_path, skip):
    files = {f"a/{ESCAPES}\udce9.png": b"no picture", "a/1.png": PICTURE}
    outcome = fastkd("build-beton", write_files(tmp_path / "images", files), *skip, "--out", tmp_path / "x.beton")
    assert outcome.code == (0 if skip else 1)
    assert r"a/\x1b]0;owned\x07\x1b[2J \x9b31m\u202egnp\xe9.png: cannot be decoded" in outcome.err
    assert outcome.err.replace("\n", "").isprintable()


@pytest.mark.parametrize("byte", range(0x80, 0x100))
def test_a_class_folder_whose_name_is_no_text_is_refused_when_it_is_listed(tmp_path, byte):
    name = os.fsdecode(b"caf" + bytes([byte]))
    folder = write_files(tmp_path / "images", {f"{name}/0.png": PICTURE, "b/0.png": PICTURE})
    assert rf"'caf\x{byte:02x}'" in refused(SourceError, open_source, folder)


@pytest.mark.parametrize("name", [" cat", "cat ", " cat ", "\tcat", "c at"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_class_with_outer_spaces_can_be_listed(tmp_path, name, end):
    folder = write_files(tmp_path / "images", {f"{name}/0.png": PICTURE, "dog/0.png": PICTURE})
    (tmp_path / "classes.txt").write_bytes(f"dog {end}{name}{end}".encode())
    assert open_source(folder, classes=tmp_path / "classes.txt").class_names == ["dog", name]


FILES = {f"{name}/{i}.png": PICTURE + bytes([i]) for name in "ab" for i in range(3)}
SPELLINGS = {
    "backslashes": lambda name: name.replace("/", "\\"),
    "dot and slash": lambda name: "./" + name,
    "dots and slashes": lambda name: "././" + name,
    "dot and backslash": lambda name: ".\\" + name.replace("/", "\\"),
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize(("top", "root"), [("", None), ("set/train/", "set/train"), ("set/train/", None)])
def test_a_zip_of_another_spelling_is_the_same_source(tmp_path, spell, top, root):
    path = write_zip(tmp_path / "x.zip", {spell(top + name): content for name, content in FILES.items()})
    source = open_source(path, root=root)
    assert source.names == list(FILES)
    assert [source.read(i) for i in range(len(source))] == list(FILES.values())


def test_a_backslash_in_a_zip_of_slashes_is_part_of_a_name(tmp_path):
    assert open_source(write_zip(tmp_path / "x.zip", {"a/x\\y.png": PICTURE})).names == ["a/x\\y.png"]


@pytest.mark.parametrize("suffix", [suffix for name in IMAGE_SUFFIXES for suffix in (name, name.upper())])
def test_every_suffix_of_a_format_that_is_read_is_an_image(tmp_path, suffix):
    assert open_source(write_files(tmp_path, {f"a/0{suffix}": PICTURE})).names == [f"a/0{suffix}"]


@pytest.mark.parametrize("write", [write_files, write_zip])
def test_files_that_are_no_images_are_counted_by_their_suffix(tmp_path, write):
    others = {"a/notes.txt": b"", "b/more.TXT": b"", "LICENSE": b"", "a/film.mp4": b"", "a/.hidden.txt": b""}
    source = open_source(write(tmp_path / "x.zip", FILES | others))
    assert source.names == list(FILES)
    assert source.left_aside == Counter({".txt": 2, "": 1, ".mp4": 1})


def test_files_that_are_no_images_are_said(tmp_path):
    folder = write_files(tmp_path / "images", FILES | {"a/notes.txt": b"", "b/more.txt": b"", "LICENSE": b""})
    outcome = fastkd("build-beton", folder, "--out", tmp_path / "x.beton")
    assert "left aside: 3 files that are not taken for images (2 .txt, 1 without suffix)" in outcome.err


@pytest.mark.parametrize("write", [write_files, write_zip])
@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN", "#recycle", ".ipynb_checkpoints"])
def test_folders_of_systems_are_no_classes(tmp_path, name, write):
    files = {f"{name}/0.jpg/SYNOPHOTO_THUMB_M.jpg": PICTURE, f"a/{name}/1.jpg": PICTURE}
    source = open_source(write(tmp_path / "x.zip", FILES | files))
    assert (source.class_names, source.names) == (["a", "b"], list(FILES))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_archive_is_told_to_be_unpacked(tmp_path, mode):
    path = tmp_path / ("x.tar" + mode[1:].replace(":", "."))
    write_files(tmp_path / "images", FILES)
    with tarfile.open(path, mode) as archive:
        archive.add(tmp_path / "images", "images")
    assert "found a tar archive" in refused(FormatError, open_source, str(path))


def test_a_tar_archive_is_known_by_its_content(tmp_path):
    write_files(tmp_path / "images", FILES)
    with tarfile.open(tmp_path / "images.bin", "w") as archive:
        archive.add(tmp_path / "images", "images")
    assert "found a tar archive" in refused(FormatError, open_source, str(tmp_path / "images.bin"))


def test_classes_that_leaving_out_empties_are_said(tmp_path):
    files = FILES | {f"{name}/0.png": b"no picture" for name in ("c", "d")} | {"a/0.png": b"no picture"}
    folder = write_files(tmp_path / "images", files)
    outcome = fastkd("build-beton", folder, "--skip-bad", "--out", tmp_path / "x.beton")
    assert f"{tmp_path / 'x.beton'}: no image is left of 'c', 'd'" in outcome.err.splitlines()
    assert len(json.loads(manifest_path(tmp_path / "x.beton").read_text())["class_names"]) == 4


# Names in messages about samples


@pytest.fixture
def broken(tmp_path) -> Path:
    """A beton of twelve JPEGs, of which the fourth is damaged after it was written."""
    files = {f"{'ab'[i > 5]}/{i:02}\udce9.jpg": encoded(photo(i, 40, 40)) for i in range(12)}
    beton = build(write_files(tmp_path / "images", files), tmp_path / "x.beton", "keep")
    with beton.path.open("r+b") as file:
        file.seek(int(beton.ptrs[3]) + 200)
        file.write(bytes(200))
    return beton.path


def test_the_loader_names_the_file_of_a_sample_that_does_not_decode(broken):
    loader = ViewLoader(open_beton(broken), Views("center", 16, 1), batch_size=4)
    with pytest.raises(CorruptError) as error:
        list(loader.epoch(0))
    assert str(error.value).startswith(rf"{broken}: sample 3: its JPEG does not decode (a/03\xe9.jpg); ")


def test_the_loader_names_the_file_of_a_sample_of_a_part(broken, tmp_path):
    full = open_dataset(broken)
    build_part(full.beton, np.array([11, 7, 3, 0]), tmp_path / "p.beton", full_fingerprint=full.fingerprint)
    loader = ViewLoader(open_dataset(tmp_path / "p.beton").beton, Views("center", 16, 1), batch_size=4)
    with pytest.raises(CorruptError, match=r"sample 3: its JPEG does not decode \(a/03\\xe9\.jpg\)"):
        list(loader.epoch(0))


@pytest.mark.parametrize("manifest", [None, b"{}"])
def test_the_loader_names_the_number_alone_where_no_manifest_has_the_name(broken, manifest):
    beton = open_beton(broken)
    manifest_path(broken).unlink()
    if manifest is not None:
        manifest_path(broken).write_bytes(manifest)
    with pytest.raises(CorruptError, match="sample 3: its JPEG does not decode;"):
        list(ViewLoader(beton, Views("center", 16, 1), batch_size=4).epoch(0))


def test_verify_names_the_file_of_a_damaged_sample(broken):
    assert "sample 3: its JPEG does not decode (a/03\udce9.jpg)" in verify_beton(open_beton(broken))
