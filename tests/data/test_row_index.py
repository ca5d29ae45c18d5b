"""The row index beside a beton: who makes it, what it is believed, what is told of a wrong one."""

import os
import shutil
import signal

import numpy as np
import pytest
from helpers.commands import fastkd as run
from helpers.ranks import forked, wait_for
from helpers.scripts import benchmark
from helpers.synthetic import PAGE, build, encoded, overwrite, photo, write_files

import fastkd.data.beton.pages
from fastkd.data.beton.build import build_beton, build_part
from fastkd.data.beton.dataset import open_dataset
from fastkd.data.beton.encode import WriteOptions
from fastkd.data.beton.part import numbered_as_full
from fastkd.data.beton.read import Beton, manifest_path, open_beton
from fastkd.data.beton.row_index import (
    damaged_entries,
    entry_of,
    open_row_index,
    row_index_path,
    write_row_index,
)
from fastkd.data.beton.verify import verify_beton
from fastkd.data.loader import ViewLoader
from fastkd.data.sources.open import open_source
from fastkd.data.views.draw import Views
from fastkd.errors import FormatError, MismatchError, OptionError

damaged_indexes = benchmark("data.damaged_indexes")
VIEWS = Views("rrc", 40, 5)
NUM_IMAGES = 10


def pictures(seed: int) -> dict[str, bytes]:
    """Regular JPEGs, one that is progressive, one that is small."""
    options = [{"subsampling": i % 3} for i in range(NUM_IMAGES - 2)] + [{"progressive": True}, {}]
    sides = [(90 + i, 120 - i) for i in range(NUM_IMAGES - 1)] + [(16, 16)]
    return {f"a/{i:02}.jpg": encoded(photo(seed + i, *sides[i]), **options[i]) for i in range(NUM_IMAGES)}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Beton:
    folder = tmp_path_factory.mktemp("index")
    return build(write_files(folder / "images", pictures(0)), folder / "x.beton", "keep")


@pytest.fixture
def beton(made, tmp_path) -> Beton:
    """A copy, with its manifest and index."""
    for path in (made.path, manifest_path(made.path), row_index_path(made.path)):
        shutil.copy(path, tmp_path)
    return open_beton(tmp_path / "x.beton")


def pixels(beton: Beton, views: Views = VIEWS, epoch: int = 1, **options) -> np.ndarray:
    batches = ViewLoader(beton, views, batch_size=4, num_workers=1, **options).epoch(epoch)
    return np.concatenate([batch.images.numpy() for batch in batches])


def test_build_beton_makes_an_index_of_the_images_that_are_decoded_by_it(beton):
    data, starts = open_row_index(beton)
    assert np.flatnonzero(starts).tolist() == list(range(NUM_IMAGES - 2))
    for i in range(NUM_IMAGES - 2):
        entry = entry_of(beton, i)
        assert entry
        assert data[int(starts[i]) :][: len(entry)].tobytes() == entry


@pytest.mark.parametrize("views", [VIEWS, Views("rrc", 40, 5, mix="cutmix"), Views("center", 40)], ids=str)
def test_views_are_the_same_with_an_index_and_without(beton, views):
    epoch = 0 if views.kind == "center" else 3
    with_index = pixels(beton, views, epoch)
    row_index_path(beton.path).unlink()
    np.testing.assert_array_equal(pixels(beton, views, epoch), with_index)


def test_a_beton_of_raw_images_has_no_index(tmp_path):
    beton = build(write_files(tmp_path / "images", pictures(0)), tmp_path / "x.beton", "raw")
    assert not row_index_path(beton.path).exists()
    assert write_row_index(beton) == 0
    assert not row_index_path(beton.path).exists()
    assert len(open_row_index(beton)[0]) == 0


def test_a_build_leaves_no_older_index_and_no_piece_of_one(beton, tmp_path):
    build(write_files(tmp_path / "images", pictures(0)), beton.path, "raw", force=True)
    assert sorted(path.name for path in tmp_path.glob("x.beton*")) == ["x.beton", "x.beton.json"]
    build(write_files(tmp_path / "other", pictures(50)), beton.path, "keep", force=True)
    assert sorted(path.name for path in tmp_path.glob("x.beton*")) == ["x.beton", "x.beton.json", "x.beton.rows"]
    assert verify_beton(open_beton(beton.path)) == []


def test_a_build_that_was_killed_and_gone_on_with_has_the_index_of_an_undisturbed_one(tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (8, 560, 560, 3), dtype=np.uint8)
    source = write_files(tmp_path / "images", {f"a/{i}.jpg": encoded(noise[i], quality=98) for i in range(8)})

    def build_until(at: int) -> None:
        def die(done: int, total: int) -> None:
            if done == at:
                os.kill(os.getpid(), signal.SIGKILL)

        fastkd.data.beton.pages._COMMIT_BYTES = PAGE
        options = WriteOptions(mode="keep", page_size=PAGE)
        build_beton(open_source(source), tmp_path / "x.beton", options, num_workers=1, progress=die)

    assert wait_for([forked(lambda: build_until(6))]) == [-signal.SIGKILL]
    assert (tmp_path / "x.beton.journal").stat().st_size > 200
    beton = build(source, tmp_path / "x.beton", "keep")
    assert verify_beton(beton) == []
    assert np.count_nonzero(open_row_index(beton)[1]) == 8
    whole = build(source, tmp_path / "y.beton", "keep")
    assert row_index_path(beton.path).read_bytes() == row_index_path(whole.path).read_bytes()
    assert sorted(path.name for path in tmp_path.glob("x.*")) == ["x.beton", "x.beton.json", "x.beton.rows"]


def test_verify_makes_the_index_of_a_beton_that_has_none(beton):
    path = row_index_path(beton.path)
    content = path.read_bytes()
    path.unlink()
    assert run("verify", beton.path).code == 0
    assert not path.exists()
    done = run("verify", beton.path, "--write-manifest")
    assert done.code == 0
    assert f"x.beton.rows: rows of {NUM_IMAGES - 2} images" in done.err
    assert path.read_bytes() == content


def test_a_part_is_decoded_by_an_index_of_its_own(made, tmp_path):
    full = open_dataset(made.path)
    ids = np.array([7, 2, 9, 0, 5])
    build_part(made, ids, tmp_path / "part.beton", full_fingerprint=full.fingerprint)
    part = numbered_as_full(open_beton(tmp_path / "part.beton"))
    data, starts = open_row_index(part)
    assert np.flatnonzero(starts).tolist() == [0, 2, 5, 7]
    for i in (0, 2, 5, 7):
        entry = entry_of(made, i)
        assert data[int(starts[i]) :][: len(entry)].tobytes() == entry
    np.testing.assert_array_equal(pixels(part, ids=ids), pixels(made, ids=ids))


def test_a_link_to_a_beton_has_its_index(beton, tmp_path):
    (tmp_path / "there").mkdir()
    os.symlink(beton.path, tmp_path / "there" / "y.beton")
    assert open_row_index(open_beton(tmp_path / "there" / "y.beton"))[1].any()


def test_the_index_of_another_beton_is_refused(beton, tmp_path):
    other = build(write_files(tmp_path / "other", pictures(50)), tmp_path / "y.beton", "keep")
    shutil.copy(row_index_path(other.path), row_index_path(beton.path))
    with pytest.raises(
        MismatchError, match=r"x\.beton\.rows: belongs to another beton than x\.beton stands here; `fastkd"
    ):
        ViewLoader(beton, VIEWS)
    done = run("verify", beton.path)
    assert done.code == 1
    assert "x.beton.rows: belongs to another beton" in done.out
    assert run("verify", beton.path, "--write-manifest").code == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({0: b"PK"}, "begins with b'PKstkd rows 1"),
        ({12: b"2"}, r"begins with b'fastkd rows 2"),
        ({30: b"\x7f"}, "its head does not match its checksum"),
        ({63: b"\x01"}, "its head does not match its checksum"),
    ],
)
def test_a_damaged_head_is_refused_with_the_way_out(beton, changes, told):
    overwrite(row_index_path(beton.path), changes)
    with pytest.raises(FormatError, match=rf"x\.beton\.rows: .*{told}.*--write-manifest .*x\.beton` makes it again"):
        ViewLoader(beton, VIEWS)


@pytest.mark.parametrize("size", [0, 10, 64, -8, -300])
def test_a_cut_index_is_refused(beton, size):
    path = row_index_path(beton.path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(FormatError, match=r"x\.beton\.rows: [\d,]+ bytes, "):
        ViewLoader(beton, VIEWS)


def test_an_entry_that_is_damaged_or_of_another_image_changes_no_pixel_and_is_found_by_verify(beton):
    path, expected = row_index_path(beton.path), pixels(beton)
    data, starts = open_row_index(beton)
    first, second = int(starts[1]), int(starts[4])
    swapped = data[second : second + 8 + 10 * 6].tobytes()
    overwrite(path, {first: swapped, int(starts[2]) + 20: b"\xaa"})
    np.testing.assert_array_equal(pixels(beton), expected)
    assert damaged_entries(beton) == [1, 2]
    (problem,) = verify_beton(beton)
    assert problem.startswith(
        "x.beton.rows: 2 entries are not those of their images, that of sample 1 first; `fastkd verify"
    )


def test_an_index_that_points_anywhere_changes_no_pixel(beton):
    path, expected = row_index_path(beton.path), pixels(beton)
    table = path.stat().st_size - 8 * NUM_IMAGES
    for start in (0, 1, 63, 64, 65, path.stat().st_size - 1, path.stat().st_size, 2**40, 2**63, 2**64 - 1):
        overwrite(path, {table + 8 * i: start.to_bytes(8, "little") for i in range(NUM_IMAGES)})
        np.testing.assert_array_equal(pixels(beton), expected)


def test_a_file_of_its_name_that_is_no_index_is_not_written_over(tmp_path):
    source = write_files(tmp_path / "images", pictures(0))
    row_index_path(tmp_path / "x.beton").write_text("a table of mine")
    with pytest.raises(OptionError, match=r"x\.beton\.rows: is there, and no row index of fastkd's"):
        build(source, tmp_path / "x.beton", "keep", force=True)
    assert row_index_path(tmp_path / "x.beton").read_text() == "a table of mine"


def test_no_damaged_index_of_three_hundred_changes_a_pixel(tmp_path):
    found = damaged_indexes.campaign(tmp_path, 300, seed=3)
    assert found["wrong"] == 0
    assert min(found["same"], found["refused"]) > 30
