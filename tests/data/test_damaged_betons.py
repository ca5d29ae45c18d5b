"""The long script on damaged betons, shortened."""

import pytest
from helpers.scripts import benchmark

damaged_betons = benchmark("data.damaged_betons")


@pytest.mark.parametrize("kind", ["raw", "jpg"])
def test_every_damaged_beton_is_refused_or_found_or_reads_the_same(tmp_path, kind):
    damaged_betons.write_fastkd(tmp_path)
    outcomes = damaged_betons.child(tmp_path, kind, 200, seed=1)
    told = [result for results in outcomes.values() for result in results.elements()]
    assert len(told) == 200
    assert set(told) <= {"refused", "found", "harmless"}
    assert len(told) - told.count("harmless") > 100
