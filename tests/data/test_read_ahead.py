import os
import time

import numpy as np
import pytest
from helpers.synthetic import build, encoded, photo, write_files

from fastkd.data.beton.read import Beton, open_beton
from fastkd.data.beton.read_ahead import ask_for, is_cold, reading_ahead
from fastkd.data.loader import ViewLoader
from fastkd.data.views.draw import Views


@pytest.fixture(scope="module")
def several_pages(tmp_path_factory) -> Beton:
    """Sixteen raw pictures, of which a page of the beton holds four."""
    folder = tmp_path_factory.mktemp("reading")
    files = {f"a/{i:02}.png": encoded(photo(i, 300, 500), "PNG", compress_level=1) for i in range(16)}
    return build(write_files(folder / "images", files), folder / "x.beton")


def opened_cold(beton: Beton) -> Beton:
    """The beton opened anew, none of it in the page cache; skips where the system does not let go of it."""
    fresh = open_beton(beton.path)
    file = os.open(beton.path, os.O_RDONLY)
    try:
        os.fsync(file)
        for _ in range(100):  # what was read a moment ago may not be let go of yet
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            try:
                os.preadv(file, [bytearray(1)], int(fresh.ptrs[8]), os.RWF_NOWAIT)
            except BlockingIOError:
                return fresh
            except OSError:
                break
            time.sleep(0.01)
    finally:
        os.close(file)
    pytest.skip("the file system keeps the file in memory")


def test_a_file_that_was_just_read_is_warm(several_pages):
    several_pages.path.read_bytes()
    assert not is_cold(several_pages, np.arange(16))


def test_a_file_that_left_the_page_cache_is_cold(several_pages):
    assert is_cold(opened_cold(several_pages), np.arange(16))


def test_a_file_is_looked_at_where_its_name_is_another_ones(several_pages, tmp_path):
    path = tmp_path / "x.beton"
    path.write_bytes(several_pages.path.read_bytes())
    beton = open_beton(path)
    path.unlink()
    path.write_bytes(b"")
    assert not is_cold(beton, np.arange(16))


def test_no_samples_are_never_cold(several_pages):
    assert not is_cold(several_pages, np.empty(0, np.int64))


def test_samples_that_are_asked_for_are_read_and_those_of_other_pages_are_not(several_pages):
    beton = opened_cold(several_pages)
    ask_for(beton, np.array([0, 1]))
    ends = time.monotonic() + 60
    while is_cold(beton, np.array([0, 1])) and time.monotonic() < ends:
        time.sleep(0.01)
    assert not is_cold(beton, np.array([0, 1]))
    assert is_cold(beton, np.array([13, 14]))


@pytest.mark.parametrize("num_jobs", [0, 1, 3, 4, 9])
def test_jobs_come_as_they_are_and_no_sooner_than_they_are_ahead(several_pages, num_jobs):
    taken = []

    def jobs():
        for i in range(num_jobs):
            taken.append(i)
            yield np.array([i]), i

    for number, (ids, aug_seed) in enumerate(reading_ahead(several_pages, jobs(), 3)):
        assert (ids.tolist(), aug_seed) == ([number], number)
        assert len(taken) == min(number + 4, num_jobs)
    assert len(taken) == num_jobs


def test_a_cold_file_is_loaded_to_the_same_views(several_pages):
    def views(beton: Beton) -> list[bytes]:
        loader = ViewLoader(beton, Views("rrc", 24, 3), batch_size=3, shuffle=True, num_workers=1)
        return [batch.images.numpy().tobytes() for batch in loader.epoch(1)]

    several_pages.path.read_bytes()
    warm = views(several_pages)
    assert views(opened_cold(several_pages)) == warm
