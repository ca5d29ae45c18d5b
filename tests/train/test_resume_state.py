"""The state that a run goes on from."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.damage import flipped

from fastkd.errors import CorruptError, FormatError, NotFoundError
from fastkd.train.resume import load_resume, save_resume


def test_resume_state_round_trips(model, tmp_path):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    model(torch.zeros(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 7, "rng": torch.get_rng_state()}
    save_resume(tmp_path / "r", {**state, "log": [{"loss": 1.5, "note": None}], "sizes": (1, 2)})
    loaded = load_resume(tmp_path / "r")
    assert loaded["epoch"] == 7
    assert loaded["log"] == [{"loss": 1.5, "note": None}]
    assert loaded["sizes"] == (1, 2)
    torch.testing.assert_close(loaded["model"], state["model"], rtol=0, atol=0)
    optimizer.load_state_dict(loaded["optimizer"])
    assert torch.load(tmp_path / "r", weights_only=True)["epoch"] == 7


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    for value in (np.float64(1.0), np.zeros(3), Path("x"), {1, 2}):
        with pytest.raises(TypeError, match=r"state\['a'\]\[0\]"):
            save_resume(tmp_path / "r", {"a": [value]})
    assert not list(tmp_path.iterdir())


def test_every_damage_to_a_resume_state_is_refused(tmp_path):
    path = tmp_path / "r"
    save_resume(path, {"a": torch.arange(4.0), "epoch": 3})
    whole = path.read_bytes()
    damaged = [flipped(whole, i, i % 8) for i in range(len(whole))]
    for content in [*damaged, *(whole[:length] for length in range(0, len(whole), 7)), b"", b"text\n" * 50]:
        path.write_bytes(content)
        with pytest.raises((FormatError, CorruptError)) as error:
            load_resume(path)
        assert "\n" not in str(error.value)
    path.write_bytes(flipped(whole, 600, 1))
    with pytest.raises(CorruptError):
        load_resume(path)


def test_other_files_are_no_resume_state(saved, tmp_path):
    buffer = io.BytesIO()
    torch.save({"epoch": 3}, buffer)
    (tmp_path / "plain").write_bytes(buffer.getvalue())
    for path in (saved, tmp_path / "plain", tmp_path):
        with pytest.raises(FormatError):
            load_resume(path)
    with pytest.raises(NotFoundError):
        load_resume(tmp_path / "nothing")


def test_a_failing_write_leaves_the_old_resume_state(tmp_path, monkeypatch):
    save_resume(tmp_path / "r", {"epoch": 1})

    def fail(*args):
        raise OSError("input/output error")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="input/output"):
        save_resume(tmp_path / "r", {"epoch": 2})
    assert load_resume(tmp_path / "r") == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
