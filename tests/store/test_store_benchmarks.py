"""The long scripts on stores, shortened: kills of three ranks, ranks of unequal speed, and damaged copies."""

import pytest
from helpers.scripts import benchmark


@pytest.mark.parametrize("embeddings", [False, True])
def test_every_damaged_store_is_found_or_reads_the_same(tmp_path, embeddings):
    outcomes = benchmark("store.store_damage").damage_many(tmp_path, 200, seed=1, embeddings=embeddings)
    assert outcomes["wrong"] == []
    assert sum(found.get("found", 0) for found in outcomes["outcomes"].values()) > 150


def test_kills_at_random_moments_leave_no_wrong_block(tmp_path):
    found = benchmark("store.store_kills").kill_many(tmp_path, 5, seed=1)
    assert found["kills"] == 5
    assert found["not_opened"] + found["blocks_wrong"] + found["stores_different"] + found["failed"] == 0


def test_ranks_of_unequal_speed_fill_the_same_bytes_and_so_do_two_after_a_kill(tmp_path):
    script = benchmark("store.skewed_fill")
    found = script.measure_skew(tmp_path, 120, 0.02)
    assert sum(found["blocks_of_each_rank"]) == 120
    assert found["blocks_of_each_rank"][script.SLOW] < 120 / 4
    assert 0.2 <= found["done_when_killed"] < 1
