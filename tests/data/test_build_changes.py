"""Sources whose files change between a kill and the resume of a build, or while it runs."""

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.ranks import forked, wait_for
from helpers.shards import as_parquet, as_tars
from helpers.synthetic import PAGE, encoded, photo, write_files, write_zip

import fastkd.data.beton.pages
from fastkd.data.beton.build import build_beton, build_part
from fastkd.data.beton.dataset import open_dataset
from fastkd.data.beton.encode import WriteOptions
from fastkd.data.beton.read import open_beton
from fastkd.data.sources.open import open_source
from fastkd.errors import SourceError
from fastkd.prune.masks.mask import Mask

PICTURES, ROWS = 20, 2_500  # images of a folder or zip, of which a page holds four; of a data set of arrays
_KILLED = 77


def touch(path: Path, seconds: int) -> None:
    """A later time of change, as a file gets that is written a while afterwards."""
    now = path.stat().st_mtime_ns
    os.utime(path, ns=(now, now + seconds * 10**9))


def pictures(seed: int) -> dict[str, bytes]:
    return {f"a/{i:02}.png": encoded(photo(i + seed, 300, 500), "PNG", compress_level=1) for i in range(PICTURES)}


def rows(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (ROWS, *shape), np.uint8)


def folder(path: Path, seed: int) -> tuple[str, list[Path]]:
    write_files(path / "images", pictures(seed))
    return str(path / "images"), sorted((path / "images").glob("*/*"))


def zipped(path: Path, seed: int) -> tuple[str, list[Path]]:
    return write_zip(path / "images.zip", pictures(seed)), [path / "images.zip"]


def cifar10(path: Path, seed: int) -> tuple[str, list[Path]]:
    names = ["batches.meta", *(f"data_batch_{i}" for i in range(1, 6))]
    (path / names[0]).write_bytes(pickle.dumps({"label_names": ["cat", "dog"]}, 2))
    for name, part in zip(names[1:], np.array_split(rows(seed, 3072), 5), strict=True):
        (path / name).write_bytes(pickle.dumps({"data": part, "labels": [0] * len(part)}, 2))
    return f"cifar10:{path}", [path / name for name in names]


def cifar100(path: Path, seed: int) -> tuple[str, list[Path]]:
    (path / "meta").write_bytes(pickle.dumps({"fine_label_names": ["cat", "dog"]}, 2))
    (path / "train").write_bytes(pickle.dumps({"data": rows(seed, 3072), "fine_labels": [1] * ROWS}, 2))
    return f"cifar100:{path}", [path / "meta", path / "train"]


def svhn(path: Path, seed: int) -> tuple[str, list[Path]]:
    file = path / "train_32x32.mat"
    pytest.importorskip("scipy.io").savemat(file, {"X": rows(seed, 32, 32, 3).transpose(1, 2, 3, 0), "y": [3] * ROWS})
    return f"svhn:{path}", [file]


def mnist(path: Path, seed: int) -> tuple[str, list[Path]]:
    found = []
    for name, array in (("images-idx3", rows(seed, 28, 28)), ("labels-idx1", np.ones(ROWS, np.uint8))):
        found.append(path / f"train-{name}-ubyte")
        sizes = struct.pack(f">{array.ndim}I", *array.shape)
        found[-1].write_bytes(bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes())
    return f"mnist:{path}", found


def fashion(path: Path, seed: int) -> tuple[str, list[Path]]:
    spec, files = mnist(path, seed)
    return "fashion-" + spec, files


def tars(path: Path, seed: int) -> tuple[str, list[Path]]:
    return as_tars(path, pictures(seed)), sorted(path.glob("*.tar"))


def parquet(path: Path, seed: int) -> tuple[str, list[Path]]:
    return as_parquet(path, pictures(seed)), sorted(path.glob("*.parquet"))


SOURCES = [folder, zipped, cifar10, cifar100, svhn, mnist, fashion, tars, parquet]
OF_MANY = SOURCES[1:]
"""Sources whose files hold many images each."""


def build(spec: str, path: Path, **options: object) -> list[str]:
    """Builds; gives the lines that are told."""
    lines: list[str] = []
    written = WriteOptions(mode="raw", page_size=PAGE)
    build_beton(open_source(spec), path, written, num_workers=1, log=lines.append, **options)
    return lines


def killed(spec: str, path: Path, share: float = 0.8, **options: object) -> None:
    """What is left of a build that writes down each page and is killed when this share of its samples is done."""

    def run() -> None:
        fastkd.data.beton.pages._COMMIT_BYTES = PAGE
        build(spec, path, progress=lambda done, total: os._exit(_KILLED) if done >= share * total else None, **options)

    assert wait_for([forked(run)]) == [_KILLED]


@pytest.mark.parametrize("make", SOURCES)
def test_a_source_that_did_not_change_is_gone_on_from(make, tmp_path):
    spec, _ = make(tmp_path, 0)
    killed(spec, tmp_path / "x.beton")
    first: list[int] = []
    assert build(spec, tmp_path / "x.beton", progress=lambda done, total: first.append(done)) == []
    assert first[0] > len(first) / 2
    build(spec, tmp_path / "whole.beton")
    assert (tmp_path / "x.beton").read_bytes() == (tmp_path / "whole.beton").read_bytes()


@pytest.mark.parametrize("make", SOURCES)
def test_a_source_that_changed_gives_no_beton_of_old_and_new_pictures(make, tmp_path):
    killed(make(tmp_path, 0)[0], tmp_path / "x.beton")
    spec, files = make(tmp_path, 1_000)
    for file in files:
        touch(file, 5)
    lines = build(spec, tmp_path / "x.beton")
    assert len(lines) == 1
    build(spec, tmp_path / "whole.beton")
    assert (tmp_path / "x.beton").read_bytes() == (tmp_path / "whole.beton").read_bytes()


@pytest.mark.parametrize("make", OF_MANY)
def test_any_file_of_a_data_set_that_changed_begins_the_build_anew(make, tmp_path):
    spec, files = make(tmp_path, 0)
    for number, file in enumerate(files):
        killed(spec, tmp_path / f"{number}.beton")
        touch(file, 5)
        (line,) = build(spec, tmp_path / f"{number}.beton")
        assert line == f"{tmp_path}/{number}.beton.journal: of another build, not gone on from: all is written anew"


@pytest.mark.parametrize(("changed", "goes_on_at"), [(0, 1), (3, 1), (4, 5), (11, 9), (17, None), (19, None)])
def test_of_a_folder_the_images_from_the_run_with_the_first_change_on_are_encoded_anew(tmp_path, changed, goes_on_at):
    spec, files = folder(tmp_path, 0)
    killed(spec, tmp_path / "x.beton")
    files[changed].write_bytes(encoded(photo(99, 300, 500), "PNG", compress_level=1))
    touch(files[changed], 5)
    done: list[int] = []
    lines = build(spec, tmp_path / "x.beton", progress=lambda now, total: done.append(now))
    expected = f"a/{changed:02}.png: changed since it was read; images from number {goes_on_at} on are encoded anew"
    assert lines == ([] if goes_on_at is None else [expected])
    assert done[0] == (goes_on_at or 13)
    build(spec, tmp_path / "whole.beton")
    assert (tmp_path / "x.beton").read_bytes() == (tmp_path / "whole.beton").read_bytes()


@pytest.mark.parametrize("what", ["size", "time"])
def test_a_file_of_another_size_or_another_time_counts_as_changed(tmp_path, what):
    spec, files = folder(tmp_path, 0)
    killed(spec, tmp_path / "x.beton")
    before = files[2].stat().st_mtime_ns
    if what == "size":
        files[2].write_bytes(files[2].read_bytes() + bytes(9))
    os.utime(files[2], ns=(before, before + (what == "time")))
    assert build(spec, tmp_path / "x.beton")[0].startswith("a/02.png: changed since it was read")


def test_a_bad_image_that_was_left_out_and_is_mended_is_taken(tmp_path):
    spec, files = folder(tmp_path, 0)
    whole = files[2].read_bytes()
    files[2].write_bytes(b"no picture")
    killed(spec, tmp_path / "x.beton", skip_bad=True)
    files[2].write_bytes(whole)
    build(spec, tmp_path / "x.beton", skip_bad=True)
    assert open_beton(tmp_path / "x.beton").num_samples == PICTURES


def test_a_folder_is_gone_on_from_where_it_was_stopped_again_after_a_change(tmp_path):
    spec, files = folder(tmp_path, 0)
    killed(spec, tmp_path / "x.beton")
    touch(files[5], 5)
    killed(spec, tmp_path / "x.beton", 0.7)
    done: list[int] = []
    assert build(spec, tmp_path / "x.beton", progress=lambda now, total: done.append(now)) == []
    assert done[0] == 13
    build(spec, tmp_path / "whole.beton")
    assert (tmp_path / "x.beton").read_bytes() == (tmp_path / "whole.beton").read_bytes()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda content: content[len(fastkd.data.beton.pages._MAGIC) :], "of another version of fastkd"),
        (lambda content: content.replace(b"journal 2", b"journal 3", 1), "of another version of fastkd"),
        (lambda content: content[:40] + b"0" * 9 + content[49:], "of another build"),
    ],
)
def test_a_journal_that_cannot_be_read_is_thrown_away_with_a_line(
    tmp_path, spoil: Callable[[bytes], bytes], reason: str
):
    spec, _ = folder(tmp_path, 0)
    killed(spec, tmp_path / "x.beton")
    journal = tmp_path / "x.beton.journal"
    journal.write_bytes(spoil(journal.read_bytes()))
    assert build(spec, tmp_path / "x.beton") == [f"{journal}: {reason}, not gone on from: all is written anew"]


def test_a_byte_of_the_journal_that_flips_is_never_believed(tmp_path):
    spec, _ = folder(tmp_path, 0)
    build(spec, tmp_path / "whole.beton")
    killed(spec, tmp_path / "x.beton", 0.5)
    journal, partial = tmp_path / "x.beton.journal", tmp_path / "x.beton.partial"
    content, pages = journal.read_bytes(), partial.read_bytes()
    start = len(fastkd.data.beton.pages._MAGIC) + 32
    for at in range(start, start + fastkd.data.beton.pages._COMMIT.itemsize, 3):
        partial.write_bytes(pages)
        journal.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        build(spec, tmp_path / "x.beton")
        assert (tmp_path / "x.beton").read_bytes() == (tmp_path / "whole.beton").read_bytes()


@pytest.mark.parametrize("make", OF_MANY)
def test_a_file_of_many_images_that_changes_while_it_is_read_is_told(make, tmp_path):
    spec, files = make(tmp_path, 0)

    def change(done: int, total: int) -> None:
        if done == total:
            touch(files[-1], 5)

    with pytest.raises(SourceError, match="changed while it was being read; call build-beton again") as caught:
        build(spec, tmp_path / "x.beton", progress=change)
    assert str(caught.value).startswith(f"{files[-1]}: ")
    assert not (tmp_path / "x.beton").exists()


def test_a_part_of_a_beton_that_was_written_anew_is_begun_anew(raw_beton, raw_mask, copy_of, tmp_path):
    full, ids, path = copy_of(raw_beton, manifest=True), Mask.load(raw_mask).sample_ids, tmp_path / "part.beton"

    def copied(**options: object) -> None:
        dataset = open_dataset(full)
        build_part(dataset.beton, ids, path, full_fingerprint=dataset.fingerprint, **options)

    assert wait_for([forked(lambda: copied(progress=lambda done, total: os._exit(_KILLED)))]) == [_KILLED]
    touch(full, 5)
    lines: list[str] = []
    copied(log=lines.append)
    assert lines == [f"{path}.journal: of another build, not gone on from: all is written anew"]
