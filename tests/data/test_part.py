import json
import struct

import numpy as np
import pytest
from helpers.commands import fastkd
from helpers.synthetic import stored

from fastkd.data.beton.build import build_part
from fastkd.data.beton.dataset import open_dataset, require_whole
from fastkd.data.beton.manifest import manifest_text
from fastkd.data.beton.part import numbered_as_full
from fastkd.data.beton.read import identify, manifest_path, open_beton, read_manifest
from fastkd.data.beton.verify import verify_beton
from fastkd.data.views.draw import Views
from fastkd.errors import FormatError, MismatchError, OptionError
from fastkd.feed.loader import Loader
from fastkd.prune.masks.mask import Mask, save_mask

VIEWS = Views("crop-flip", 32, 3)


@pytest.fixture(scope="module")
def part(raw_beton, raw_mask, tmp_path_factory):
    """The samples of `raw_mask` out of `raw_beton`, in a beton of their own."""
    path = tmp_path_factory.mktemp("part") / "part.beton"
    full = open_dataset(raw_beton)
    build_part(full.beton, Mask.load(raw_mask).sample_ids, path, full_fingerprint=full.fingerprint)
    return path


def views(path, **options) -> dict[int, tuple[int, bytes]]:
    """sample_id → label and pixels of one view."""
    return {
        int(sample_id): (int(label), image.permute(1, 2, 0).numpy().tobytes())
        for batch in Loader(path, VIEWS, **options).epoch(1)
        for image, label, sample_id in zip(batch.images, batch.labels, batch.sample_ids, strict=True)
    }


def test_a_part_gives_the_views_that_the_full_beton_gives(raw_beton, raw_mask, part):
    expected = views(raw_beton, mask=raw_mask)
    assert len(expected) == 200
    assert views(part, mask=raw_mask) == expected
    assert views(part) == expected
    assert views(part, shuffle=True, order="pages", batch_size=7) == expected


def test_a_smaller_mask_of_the_full_beton_goes_with_the_part(raw_beton, raw_mask, part, tmp_path):
    ids = Mask.load(raw_mask).sample_ids[:50]
    digest = identify(open_beton(raw_beton))[0]
    save_mask(tmp_path / "m.h5", ids, num_samples=600, beton_fingerprint=digest, params={})
    assert views(part, mask=tmp_path / "m.h5") == views(raw_beton, mask=tmp_path / "m.h5")


def test_a_mask_with_samples_that_the_part_lacks_is_refused(raw_beton, part, tmp_path):
    digest = identify(open_beton(raw_beton))[0]
    save_mask(tmp_path / "m.h5", np.arange(300), num_samples=600, beton_fingerprint=digest, params={})
    with pytest.raises(MismatchError, match=r"a part without \d+ of the 300 samples"):
        Loader(part, VIEWS, mask=tmp_path / "m.h5")


def test_ids_that_the_part_lacks_are_refused(raw_mask, part):
    absent = np.setdiff1d(np.arange(600), Mask.load(raw_mask).sample_ids)
    with pytest.raises(OptionError, match="a part without 3 of the ids"):
        Loader(part, VIEWS, mask=absent[:3])


def test_a_mask_of_another_beton_is_refused(part, tmp_path):
    save_mask(tmp_path / "m.h5", np.arange(3), num_samples=600, beton_fingerprint="0" * 32, params={})
    with pytest.raises(MismatchError, match="another beton"):
        Loader(part, VIEWS, mask=tmp_path / "m.h5")


def test_a_part_is_no_full_beton(part):
    with pytest.raises(MismatchError, match="200 of the 600 samples"):
        require_whole(open_dataset(part))


def test_a_part_says_what_it_is_part_of(raw_beton, part):
    full, manifest = open_dataset(raw_beton), read_manifest(open_beton(part), columns=True)
    assert manifest["part_of"] == {"fingerprint": full.fingerprint, "num_samples": 600}
    assert manifest["fingerprint"] != full.fingerprint
    names = read_manifest(full.beton, columns=True)["names"]
    ids = open_beton(part).metadata["f2"]
    assert manifest["names"] == [names[i] for i in ids]
    assert verify_beton(open_beton(part)) == []


def test_samples_lie_in_the_order_of_the_mask(raw_beton, raw_mask, part):
    ids, beton, full = Mask.load(raw_mask).sample_ids, open_beton(part), open_beton(raw_beton)
    assert beton.metadata["f2"].tolist() == ids.tolist()
    assert (np.diff(beton.ptrs) > 0).all()
    np.testing.assert_array_equal(stored(beton, 17), stored(full, ids[17]))


def test_a_part_without_its_manifest_is_another_beton(part, raw_mask, copy_of):
    path = copy_of(part)
    assert open_dataset(path).beton.num_samples == 200
    with pytest.raises(MismatchError, match="another beton"):
        Loader(path, VIEWS, mask=raw_mask)


@pytest.mark.parametrize(
    "value", [5, [], {}, {"fingerprint": "0" * 32}, {"fingerprint": "0" * 32, "num_samples": 2**60}]
)
def test_a_manifest_that_does_not_say_of_what_is_refused(part, copy_of, value):
    path = copy_of(part, manifest=True)
    manifest_path(path).write_text(manifest_text(json.loads(manifest_path(path).read_text()) | {"part_of": value}))
    with pytest.raises(FormatError):
        open_dataset(path)


@pytest.mark.parametrize("value", [-1, 600, 2**62])
def test_sample_ids_outside_the_full_beton_are_refused(part, copy_of, value):
    beton = open_beton(part)
    at = 24 + 3 * 1041 + 7 * beton.metadata.itemsize + beton.metadata.dtype.fields["f2"][1]
    path = copy_of(part, {at: struct.pack("<q", value)})
    manifest = json.loads(manifest_path(part).read_text()) | {"tables_crc32": open_beton(path).tables_crc32}
    manifest_path(path).write_text(manifest_text(manifest))
    with pytest.raises(FormatError, match="not distinct numbers below 600"):
        numbered_as_full(open_beton(path))


# The command


def test_the_command_copies_what_the_mask_keeps(raw_beton, raw_mask, part, tmp_path):
    result = fastkd("build-beton", raw_beton, "--mask", raw_mask, "--out", tmp_path / "x.beton", "--json").result
    assert (tmp_path / "x.beton").read_bytes() == part.read_bytes()
    assert manifest_path(tmp_path / "x.beton").read_bytes() == manifest_path(part).read_bytes()
    assert (result["num_samples"], result["num_classes"]) == (200, 10)
    assert result["full"] == identify(open_beton(raw_beton))[0]
    assert result["fingerprint"] == read_manifest(open_beton(part))["fingerprint"]
    assert fastkd("verify", tmp_path / "x.beton").code == 0


@pytest.mark.parametrize(
    "option", ["--mode keep", "--root a", "--split test", "--max-size 9", "--skip-bad", "--check", "--jpeg-quality 5"]
)
def test_options_that_say_how_to_encode_do_not_go_with_a_mask(raw_beton, raw_mask, tmp_path, option):
    outcome = fastkd("build-beton", raw_beton, "--mask", raw_mask, *option.split(), "--out", tmp_path / "x.beton")
    assert outcome.code == 1
    assert f"{option.split()[0]} does not go with --mask" in outcome.err
    assert not list(tmp_path.iterdir())


def test_a_beton_is_not_written_over_itself(raw_beton, raw_mask, copy_of):
    path = copy_of(raw_beton, manifest=True)
    outcome = fastkd("build-beton", path, "--mask", raw_mask, "--out", path)
    assert (outcome.code, "is what" in outcome.err) == (1, True)
    assert path.read_bytes() == raw_beton.read_bytes()


def test_the_command_refuses_a_mask_of_another_beton_and_writes_nothing(raw_beton, tmp_path):
    save_mask(tmp_path / "m.h5", np.arange(3), num_samples=600, beton_fingerprint="0" * 32, params={})
    outcome = fastkd("build-beton", raw_beton, "--mask", tmp_path / "m.h5", "--out", tmp_path / "x.beton")
    assert (outcome.code, outcome.err.count("\n"), "another beton" in outcome.err) == (1, 1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["m.h5"]


def test_check_is_of_keep(raw_folder, tmp_path):
    outcome = fastkd("build-beton", raw_folder, "--mode", "raw", "--check", "--out", tmp_path / "x.beton")
    assert (outcome.code, "--check goes with --mode keep" in outcome.err) == (1, True)
