"""Builds that fail, are killed, go on or meet one another."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.ranks import forked, wait_for
from helpers.synthetic import PAGE, build, encoded, nearest, photo, stored, write_files

import fastkd.data.beton.pages
import fastkd.data.beton.workers
from fastkd.data.beton.build import build_beton
from fastkd.data.beton.encode import WriteOptions
from fastkd.data.beton.read import manifest_path, open_beton, read_manifest
from fastkd.data.beton.verify import verify_beton
from fastkd.data.sources.open import open_source
from fastkd.errors import BusyError, FastKDError, OptionError, SourceError

MODES = ("raw", "jpg", "keep")


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> str:
    """More images than one job of a worker takes."""
    files = {f"{'ab'[i % 2]}/{i:03}.png": encoded(photo(i, 17, 23), "PNG", compress_level=1) for i in range(150)}
    return write_files(tmp_path_factory.mktemp("many"), files)


def test_the_file_is_the_same_for_one_worker_and_two(many, tmp_path, monkeypatch):
    options = WriteOptions(mode="jpg", page_size=PAGE)
    monkeypatch.setattr("fastkd.data.beton.build._MIN_PARALLEL_S", 0)
    build_beton(open_source(many), tmp_path / "one.beton", options, num_workers=1)
    build_beton(open_source(many), tmp_path / "two.beton", options, num_workers=2)
    assert (tmp_path / "one.beton").read_bytes() == (tmp_path / "two.beton").read_bytes()
    assert manifest_path(tmp_path / "one.beton").read_text() == manifest_path(tmp_path / "two.beton").read_text()


@pytest.fixture
def with_bad(tmp_path) -> str:
    """Five images, the second of them cut and the fourth not one at all."""
    files = {f"{'ab'[i > 2]}/{i}.jpg": encoded(photo(i, 30, 30)) for i in range(5)}
    files["a/1.jpg"] = files["a/1.jpg"][:-200]
    files["b/3.jpg"] = b"no picture"
    return write_files(tmp_path / "images", files)


@pytest.mark.parametrize("mode", MODES)
def test_a_cut_jpeg_stops_the_build_with_its_name_and_leaves_no_file(with_bad, tmp_path, mode):
    with pytest.raises(SourceError, match=r"a/1\.jpg: cannot be decoded"):
        build(with_bad, tmp_path / "x.beton", mode)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize("mode", ["raw", "keep"])
def test_bad_images_are_told_and_left_out_where_that_is_asked_for(with_bad, tmp_path, mode):
    told: list[str] = []
    options = WriteOptions(mode=mode, page_size=PAGE)
    manifest = build_beton(open_source(with_bad), tmp_path / "x.beton", options, skip_bad=True, on_skip=told.append)
    assert [line.split(":")[0] for line in told] == ["a/1.jpg", "b/3.jpg"]
    assert manifest["names"] == ["a/0.jpg", "a/2.jpg", "b/4.jpg"]
    beton = open_beton(tmp_path / "x.beton")
    assert beton.labels.tolist() == [0, 0, 1]
    assert [nearest(stored(beton, i), [photo(k, 30, 30) for k in range(5)]) for i in range(3)] == [0, 2, 4]
    assert verify_beton(beton) == []


def test_a_source_without_one_good_image_is_an_error_even_then(tmp_path):
    folder = write_files(tmp_path / "images", {"a/0.jpg": b"no picture"})
    options = WriteOptions(mode="raw", page_size=PAGE)
    with pytest.raises(SourceError, match="none of its 1 images can be decoded"):
        build_beton(open_source(folder), tmp_path / "x.beton", options, skip_bad=True)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_an_older_beton_survives_a_build_that_fails(photo_folder, with_bad, tmp_path):
    beton = build(photo_folder, tmp_path / "x.beton")
    before = beton.path.read_bytes(), manifest_path(beton.path).read_bytes()
    with pytest.raises(SourceError):
        build(with_bad, beton.path, force=True)
    assert (beton.path.read_bytes(), manifest_path(beton.path).read_bytes()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "x.beton", "x.beton.json"]


def test_an_interrupted_build_leaves_nothing(photo_folder, tmp_path):
    def interrupt(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_beton(open_source(photo_folder), tmp_path / "x.beton", WriteOptions(mode="raw"), progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_a_build_that_was_killed_is_begun_anew(photo_folder, photo_raw, tmp_path):
    (tmp_path / "x.beton.partial").write_bytes(b"what a killed build left" * 10**6)
    assert build(photo_folder, tmp_path / "x.beton").path.read_bytes() == photo_raw.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.beton", "x.beton.json"]


def test_a_build_over_another_beton_replaces_its_manifest_too(photo_folder, many, tmp_path):
    build(many, tmp_path / "x.beton")
    beton = build(photo_folder, tmp_path / "x.beton", force=True)
    assert read_manifest(beton)["num_samples"] == 12


# Killed builds, small disks


@pytest.fixture(scope="module")
def several_pages(tmp_path_factory) -> str:
    """Twenty pictures, of which a page holds four."""
    files = {f"a/{i:02}.png": encoded(photo(i, 300, 500), "PNG", compress_level=1) for i in range(20)}
    return write_files(tmp_path_factory.mktemp("pages"), files)


def killed(folder: str, path: Path, at: int) -> None:
    """What a build that writes down each page is killed in, with some samples done."""

    def die(done: int, total: int) -> None:
        if done == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        fastkd.data.beton.pages._COMMIT_BYTES = PAGE
        build_beton(open_source(folder), path, WriteOptions(mode="raw", page_size=PAGE), num_workers=1, progress=die)

    assert wait_for([forked(run)]) == [-signal.SIGKILL]


@pytest.mark.parametrize("at", [2, 11, 20])
def test_a_killed_build_goes_on_and_gives_the_same_files(several_pages, tmp_path, monkeypatch, at):
    whole = build(several_pages, tmp_path / "whole.beton")
    killed(several_pages, tmp_path / "x.beton", at)
    assert not (tmp_path / "x.beton").exists()
    encoded_now: list[int] = []
    encode = fastkd.data.beton.workers.encode
    monkeypatch.setattr("fastkd.data.beton.workers.encode", lambda *a: encoded_now.append(1) or encode(*a))
    beton = build(several_pages, tmp_path / "x.beton")
    assert beton.path.read_bytes() == whole.path.read_bytes()
    assert manifest_path(beton.path).read_text() == manifest_path(whole.path).read_text()
    assert len(encoded_now) - 1 == 20 - (at - 1) // 4 * 4  # one more was looked at beforehand
    assert len(list(tmp_path.iterdir())) == 4


def test_a_killed_build_of_other_options_is_begun_anew(several_pages, tmp_path):
    killed(several_pages, tmp_path / "x.beton", 11)
    build(several_pages, tmp_path / "x.beton", max_size=400)
    build(several_pages, tmp_path / "whole.beton", max_size=400)
    assert (tmp_path / "x.beton").read_bytes() == (tmp_path / "whole.beton").read_bytes()


@pytest.mark.parametrize("what", ["a byte", "the end"])
def test_a_journal_that_is_damaged_does_no_harm(several_pages, tmp_path, what):
    killed(several_pages, tmp_path / "x.beton", 19)
    journal = tmp_path / "x.beton.journal"
    content = bytearray(journal.read_bytes())
    if what == "a byte":
        content[len(content) // 2] ^= 1
    journal.write_bytes(content if what == "a byte" else content[:-7])
    assert build(several_pages, tmp_path / "x.beton").path.read_bytes() == (
        build(several_pages, tmp_path / "whole.beton").path.read_bytes()
    )


def test_a_bad_image_far_in_keeps_what_was_written_for_the_next_try(several_pages, tmp_path, monkeypatch):
    monkeypatch.setattr("fastkd.data.beton.pages._COMMIT_BYTES", PAGE)
    bad = Path(several_pages) / "a/19.png"
    whole = bad.read_bytes()
    bad.write_bytes(b"no picture")
    with pytest.raises(SourceError, match=r"a/19\.png"):
        build(several_pages, tmp_path / "x.beton")
    assert {path.name for path in tmp_path.iterdir()} == {"x.beton.partial", "x.beton.journal"}
    bad.write_bytes(whole)
    build(several_pages, tmp_path / "x.beton")
    assert {path.name for path in tmp_path.iterdir()} == {"x.beton", "x.beton.json"}


def test_two_builds_of_one_file_are_told_apart(photo_folder, tmp_path):
    def another(done: int, total: int) -> None:
        with ThreadPoolExecutor(1) as other, pytest.raises(BusyError, match="is being written by another"):
            other.submit(build, photo_folder, tmp_path / "x.beton").result()

    build_beton(open_source(photo_folder), tmp_path / "x.beton", WriteOptions(mode="raw"), progress=another)


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(photo_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 5_000))
    with pytest.raises(OptionError, match="GiB free"):
        build(photo_folder, tmp_path / "x.beton")
    assert not list(tmp_path.iterdir())


def test_a_worker_that_is_killed_ends_the_build_and_leaves_nothing(many, tmp_path, monkeypatch):
    monkeypatch.setattr("fastkd.data.beton.build._MIN_PARALLEL_S", 0)
    shared = set(os.listdir("/dev/shm"))
    source = open_source(many)
    reader = replace(source, reader=Deadly())
    with pytest.raises(FastKDError, match="a worker process of build-beton was killed"):
        build_beton(reader, tmp_path / "x.beton", WriteOptions(mode="raw"), num_workers=2)
    assert not list(tmp_path.iterdir())
    ends = time.monotonic() + 60
    while (left := set(os.listdir("/dev/shm")) - shared) and time.monotonic() < ends:
        time.sleep(0.05)  # what other processes put there beside this test goes away
    assert not left


class Deadly:
    """A reader whose 100th image kills the process that reads it."""

    def read(self, i: int) -> np.ndarray:
        if i == 99:
            os.kill(os.getpid(), 9)
        return photo(i, 10, 10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGINT])
def test_workers_end_with_the_build_whatever_ends_it(number, several_pages, tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    picture = shutil.copy(next(Path(several_pages).rglob("*.png")), tmp_path)  # a file has no more than 65,000 names
    for i in range(20_000):  # some seconds of work
        (tmp_path / "images" / "a" / f"{i}.png").hardlink_to(picture)
    code = "import fastkd.data.beton.build as b; b._MIN_PARALLEL_S = 0; from fastkd.cli import main; main()"
    command = [sys.executable, "-c", code, "build-beton", tmp_path / "images", "--mode", "jpg", "--num-workers", "2"]

    def heed() -> None:
        """What started the tests may ignore signals, as nohup does."""
        for one in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(one, signal.SIG_DFL)

    out = tmp_path / "x.beton"
    process = subprocess.Popen(
        [*command, "--out", out], stderr=subprocess.PIPE, start_new_session=True, preexec_fn=heed
    )

    def alive() -> list[str]:
        """What still runs of the build's session: its worker processes, and what serves them."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
                if int(session) == process.pid and state != "Z":
                    found.append(stat.parent.name)
        return found

    def wait_until(condition: Callable[[], bool]) -> None:
        begin = time.monotonic()
        while not condition():
            assert time.monotonic() - begin < 60
            time.sleep(0.02)

    wait_until(lambda: len(alive()) >= 5)  # the build, two workers, their server, a tracker
    process.send_signal(number)
    process.communicate()
    wait_until(lambda: alive() == [])
    assert not (tmp_path / "x.beton").exists()
