"""The long scripts on stores, shortened: kills of three ranks, and damaged copies."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from store_damage import damage_many
from store_kills import kill_many


@pytest.mark.parametrize("embeddings", [False, True])
def test_every_damaged_store_is_found_or_reads_the_same(tmp_path, embeddings):
    outcomes = damage_many(tmp_path, 200, seed=1, embeddings=embeddings)
    assert outcomes["wrong"] == []
    assert sum(found.get("found", 0) for found in outcomes["outcomes"].values()) > 150


def test_kills_at_random_moments_leave_no_wrong_block(tmp_path):
    found = kill_many(tmp_path, 5, seed=1)
    assert found["kills"] == 5
    assert found["not_opened"] + found["blocks_wrong"] + found["stores_different"] + found["failed"] == 0
