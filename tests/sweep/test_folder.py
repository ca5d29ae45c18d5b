"""What the folder of sweeps keeps of its suites."""

import threading
import time

import pytest
from helpers.suites import planned

from fastkd.errors import BusyError
from fastkd.sweep import folder
from fastkd.writing import claim


def test_shards_that_start_at_one_moment_keep_their_suite_in_turns(tmp_path, monkeypatch):
    plan, asked, waits = planned(folder=tmp_path), {"text": "x"}, threading.Event()
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: (waits.set(), sleep(seconds)))
    kept = tmp_path / "suites" / "s.json"
    kept.parent.mkdir()
    other = threading.Thread(target=folder.remember, args=(plan, asked))
    with claim(kept):
        other.start()
        assert waits.wait(60)
        assert not kept.exists()
    other.join()
    assert '"text": "x"' in kept.read_text()
    before = kept.stat().st_mtime_ns
    with claim(kept):  # what says the same already need not be written
        folder.remember(plan, asked)
    assert kept.stat().st_mtime_ns == before


def test_a_suite_that_somebody_writes_without_end_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "_PATIENCE_S", 0.1)
    kept = tmp_path / "suites" / "s.json"
    kept.parent.mkdir()
    told = []

    def remember() -> None:
        with pytest.raises(BusyError, match=r"s\.json: is being written by another process"):
            folder.remember(planned(folder=tmp_path), {"text": "x"})
        told.append(True)

    with claim(kept):
        other = threading.Thread(target=remember)
        other.start()
        other.join()
    assert told == [True]
