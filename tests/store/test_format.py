"""The logit store format as the README has it: its script, run on stores that were written once and never again."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import GOLDEN, ROOT
from helpers.stores import make_store, random_logits

from fastkd.store.logit_store import LogitStore
from fastkd.store.tables import read_tables
from fastkd.store.verify import verify_store

IDS = np.array([31, 4, 15, 92, 65, 3, 58])
PARAMS = {"views": {"kind": "crop-flip", "pad": 4, "size": 32, "version": 1}, "pixels": "some decoder"}
CODECS = ["fp16", "int8+top4", "int4+top8"]


@pytest.fixture(scope="module")
def scripts() -> dict:
    """What the two scripts of the store's page define; they know h5py and numpy and nothing of fastkd."""
    text = (ROOT / "fastkd" / "store" / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## Format, version 1") :]
    found = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[:2]
    names: dict = {}
    for script in found:
        assert len([line for line in script.splitlines() if line]) <= 20
        assert "fastkd" not in script
        exec(script, names)
    return names


@pytest.fixture(scope="module")
def read_logits(scripts) -> Callable[[Path, int, int], np.ndarray]:
    return scripts["read_logits"]


@pytest.mark.parametrize("codec", CODECS)
def test_the_script_of_the_readme_decodes_the_golden_stores(read_logits, codec):
    expected = np.load(GOLDEN / "logits.npy")[CODECS.index(codec)]
    for aug_seed in range(2):
        for row, sample_id in enumerate(IDS.tolist()):
            found = read_logits(GOLDEN / f"{codec}.h5", sample_id, aug_seed)
            assert np.array_equal(found, expected[aug_seed, row])


@pytest.mark.parametrize("codec", CODECS)
def test_the_golden_stores_are_read_as_ever(codec):
    path = GOLDEN / f"{codec}.h5"
    assert verify_store(path) == []
    store = LogitStore(path)
    for aug_seed in range(2):
        assert np.array_equal(store.read(IDS, aug_seed), np.load(GOLDEN / "logits.npy")[CODECS.index(codec), aug_seed])


def test_the_golden_embeddings_are_decoded_by_the_script_and_as_ever(scripts):
    path, expected = GOLDEN / "fp16+embedding.h5", np.load(GOLDEN / "embeddings.npy")
    assert verify_store(path) == []
    logits = np.load(GOLDEN / "logits.npy")[0]
    for aug_seed in range(2):
        assert np.array_equal(LogitStore(path).read_embeddings(IDS, aug_seed), expected[aug_seed])
        assert np.array_equal(LogitStore(path).read(IDS, aug_seed), logits[aug_seed])
        for row, sample_id in enumerate(IDS.tolist()):
            assert np.array_equal(scripts["read_embedding"](path, sample_id, aug_seed), expected[aug_seed, row])
            assert np.array_equal(scripts["read_logits"](path, sample_id, aug_seed), logits[aug_seed, row])


def test_a_store_of_the_same_embeddings_has_the_bytes_of_the_golden_one(tmp_path):
    logits, embeddings = np.load(GOLDEN / "logits.npy")[0], np.load(GOLDEN / "embeddings.npy")
    path = make_store(tmp_path / "l.h5", logits, IDS, block_rows=4, params=PARAMS, embeddings=embeddings)
    made, golden = read_tables(path), read_tables(GOLDEN / "fp16+embedding.h5")
    assert made.header == golden.header
    assert np.array_equal(made.top1, golden.top1)
    for ours, its in zip(made.outputs, golden.outputs, strict=True):
        assert np.array_equal(made.map_records(ours), golden.map_records(its))


@pytest.mark.parametrize("codec", CODECS)
def test_a_store_of_the_same_logits_has_the_bytes_of_the_golden_one(codec, tmp_path):
    logits = np.load(GOLDEN / "logits.npy")[0]
    path = make_store(tmp_path / "l.h5", logits, IDS, codec=codec, block_rows=4, params=PARAMS)
    made, golden = read_tables(path), read_tables(GOLDEN / f"{codec}.h5")
    assert made.header == golden.header
    for name in ("sample_ids", "done", "top1", "probes", "probe_crc32c"):
        assert np.array_equal(getattr(made, name), getattr(golden, name))
    assert np.array_equal(made.map_records(), golden.map_records())


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("num_classes", [1, 5, 11, 101])
def test_the_script_of_the_readme_decodes_any_number_of_classes(read_logits, codec, num_classes, tmp_path):
    path = make_store(tmp_path / "l.h5", random_logits(2, 7, num_classes), IDS, codec=codec)
    expected = LogitStore(path).read(IDS, 1)
    assert np.array_equal([read_logits(path, sample_id, 1) for sample_id in IDS.tolist()], expected)
