"""Files that shrink under a command that has mapped them: one line that names the file, exit code 1, nothing half-written."""

import ctypes.util
import mmap
import os
import re
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import Outcome, fastkd_forked, own_port
from helpers.moments import at_call
from helpers.ranks import forked, wait_for
from helpers.stores import make_store, random_logits

from fastkd.cli import page_errors
from fastkd.cli.page_errors import telling_page_errors
from fastkd.data.beton.read import open_beton
from fastkd.data.views.decode import check_images
from fastkd.errors import MissingDependencyError

CPU = ("--device", "cpu", "--num-workers", 1)


@pytest.fixture
def files(raw_beton, raw_mask, teacher_store, teacher_file, tmp_path) -> dict[str, Path]:
    """Copies of a beton, twice, of a mask, a store and a teacher; and names of outputs."""
    originals = {"x.beton": raw_beton, "y.beton": raw_beton, "m.h5": raw_mask, "l.h5": teacher_store}
    for name, original in originals.items():
        shutil.copy(original, tmp_path / name)
    for name in ("x.beton.json", "y.beton.json"):
        shutil.copy(f"{raw_beton}.json", tmp_path / name)
    shutil.copy(teacher_store, tmp_path / "old.h5")
    shutil.copy(teacher_file, tmp_path / "t.safetensors")
    (tmp_path / "s.csv").write_text("score\n" + "\n".join(map(str, range(600))) + "\n")
    names = {"x": "x.beton", "y": "y.beton", "m": "m.h5", "l": "l.h5", "old": "old.h5", "t": "t.safetensors"}
    names |= {"csv": "s.csv", "out": "out.h5", "run": "run", "part": "part.beton", "png": "out.png"}
    return {key: tmp_path / name for key, name in names.items()}


def cut_at(path: Path, functions: str) -> Callable[[], None]:
    """Cuts a file to its first 4,096 bytes, see `at_call`."""
    return at_call(functions, lambda: os.truncate(path, 4096))


STUDENT = ("--model", "resnet8", "--epochs", 2, "--batch-size", 50, *CPU)
FROM_STORE = ("train", "{x}", "--mask", "{m}", "--logits", "{l}", *STUDENT, "--out", "{run}")
CACHE = ("cache-logits", "{x}", "--mask", "{m}", "--teacher", "{t}", "--views", "crop-flip", *CPU, "--out", "{out}")
COMMANDS: dict[str, tuple[str, str, tuple[object, ...]]] = {
    "build-beton": ("x", "payload", ("build-beton", "{x}", "--mask", "{m}", "--out", "{part}")),
    "score by networks": ("x", "_make", ("score", "{x}", "--method", "el2n", "--model", "{t}", *CPU, "--out", "{out}")),
    "prune": ("x", "find_allocations", ("prune", "{x}", "--keep", 0.3, "--method", "random", "--out", "{out}")),
    "import-scores": ("x", "find_allocations", ("import-scores", "{x}", "{csv}", "--higher", "hard", "--out", "{out}")),
    "plan": ("x", "find_allocations", ("plan", "{x}", "--num-seeds", 3)),
    "cache-logits": ("x", "_make", (*CACHE, "--num-seeds", 2)),
    "cache-logits --reuse": ("old", "read_rows", (*CACHE, "--num-seeds", 4, "--reuse", "{old}")),
    "merge": ("l", "numbers", ("merge", "{l}", "{old}", "--out", "{out}")),
    "train": ("x", "_make", FROM_STORE),
    "train from a store": ("l", "train_epoch _make", FROM_STORE),
    "train, measured": ("y", "evaluate", ("train", "{x}", "--alpha", 0, "--val", "{y}", *STUDENT, "--out", "{run}")),
    "evaluate": ("x", "_make", ("evaluate", "{x}", "--model", "{t}", *CPU)),
    "evaluate, a checkpoint": ("t", "_checked_meta", ("evaluate", "{x}", "--model", "{t}", *CPU)),
    "inspect": ("x", "find_allocations", ("inspect", "{x}")),
    "inspect --gallery": ("x", "_make", ("inspect", "{m}", "--beton", "{x}", "--gallery", "{png}")),
    "verify a beton": ("x", "digests", ("verify", "{x}")),
    "verify a store": ("l", "decode_rows", ("verify", "{l}")),
    "verify --against": ("x", "_make", ("verify", "{l}", "--against", "{x}", "--teacher", "{t}", "--rows", 20, *CPU)),
}
"""What a command reads from a mapping, at which functions it is cut, and the command."""
LOOKED_AT = {"train, measured"}
"""Where the next thing that is done with the file is to look at its length."""


def filled(command: tuple[object, ...], files: dict[str, Path]) -> list[str]:
    return [str(word).format(**files) for word in command]


def assert_told(outcome: Outcome, culprit: Path, *, by_signal: bool = True) -> None:
    """by_signal: whether the process was ended where it stood; else what reads looked at the file before it read."""
    assert outcome.code == 1, outcome
    assert outcome.out == ""
    told = [line for line in outcome.err.splitlines() if "error" in line]
    assert len(told) == 1, outcome.err
    start = (
        rf"fastkd: error: {re.escape(str(culprit))}: became shorter(, or could not be read,)? while it was being used"
    )
    found = re.match(start, told[0])
    assert found, told
    assert (found[1] is not None) == by_signal
    assert "put the whole file back and" in told[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_that_is_cut_under_a_command_is_named_in_one_line(files, name):
    victim, functions, command = COMMANDS[name]
    outcome = fastkd_forked(*filled(command, files), first=cut_at(files[victim], functions))()
    assert files[victim].stat().st_size == 4096
    assert_told(outcome, files[victim], by_signal=name not in LOOKED_AT)
    assert not files["part"].exists()
    assert not files["png"].exists()
    assert not (files["run"] / "result.json").exists()


def test_scores_of_a_store_that_is_cut_name_it(dataset, files):
    """Its own test: such a store holds all samples."""
    store = make_store(files["out"], random_logits(2, 600, 10), np.arange(600), dataset=dataset, block_rows=200)
    options = ["--method", "variance", "--logits", store, "--out", files["out"].with_name("s.h5"), *CPU]
    outcome = fastkd_forked("score", files["x"], *options, first=cut_at(store, "decode_rows"))()
    assert_told(outcome, store)


@pytest.mark.parametrize("name", ["cache-logits", "train from a store"])
def test_what_a_cut_file_ended_goes_on_once_the_file_is_whole_again(files, name):
    victim, functions, command = COMMANDS[name]
    whole = files[victim].read_bytes()
    elsewhere = files | {"out": files["out"].with_name("other.h5"), "run": files["run"].with_name("other")}
    assert fastkd_forked(*filled(command, elsewhere))().code == 0
    assert_told(fastkd_forked(*filled(command, files), first=cut_at(files[victim], functions))(), files[victim])
    files[victim].write_bytes(whole)
    assert fastkd_forked(*filled(command, files))().code == 0
    ends = ("out", "") if name == "cache-logits" else ("run", "model.safetensors")
    assert (files[ends[0]] / ends[1]).read_bytes() == (elsewhere[ends[0]] / ends[1]).read_bytes()


def test_a_mask_is_read_whole_and_may_be_cut_once_it_is(files):
    outcome = fastkd_forked(*filled(FROM_STORE, files), first=cut_at(files["m"], "kept_ids"))()
    assert outcome.code == 0, outcome.err
    assert files["m"].stat().st_size == 4096


def test_a_rank_whose_copy_is_cut_names_it_and_the_others_end_with_it(files):
    def as_rank(rank: int, port: int) -> Callable[[], Outcome]:
        def begin() -> None:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
            names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in names.items()})
            if rank:
                cut_at(files["y"], "train_epoch _make")()

        own = files | {"x": files["xy"[rank]]}
        return fastkd_forked(*filled(FROM_STORE, own), first=begin)

    with own_port() as port:
        first, second = (wait() for wait in [as_rank(0, port), as_rank(1, port)])
    assert_told(second, files["y"])
    assert first.code == 1
    assert "rank 1 has ended without a word" in first.err.splitlines()[-1]


# The mechanism


def mapped(path: Path) -> np.ndarray:
    path.write_bytes(bytes(2**16))
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def ended(function: Callable[[], object], capfd: pytest.CaptureFixture) -> tuple[int, str]:
    """The exit code and the stderr of a forked process that calls a function where page errors are told."""

    def run() -> None:
        with telling_page_errors():
            function()

    (code,) = wait_for([forked(run)])
    return code, capfd.readouterr().err


def test_compiled_code_of_worker_threads_is_ended_with_one_line(jpg_beton, tmp_path, capfd):
    beton = open_beton(shutil.copy(jpg_beton, tmp_path))
    images, data = beton.metadata[f"f{beton.image_field}"], beton.data
    check_images(0, 1, images, data, beton.sizes, np.zeros(24, np.int32))  # compiled before the fork
    os.truncate(beton.path, 4096)

    def decode(_number: int) -> None:
        check_images(0, 24, images, data, beton.sizes, np.zeros(24, np.int32))

    def decode_in_threads() -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(decode, range(4)))

    code, err = ended(decode_in_threads, capfd)
    assert (code, err.count("\n")) == (1, 1)
    assert str(beton.path) in err


def test_a_name_reaches_the_terminal_without_its_control_characters(tmp_path, capfd):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xc3\xa9\x1b[31m\xff\xc2\x9b\n\xe2\x82\xac.beton"))
    data = mapped(path)
    os.truncate(path, 0)
    code, err = ended(data.sum, capfd)
    assert code == 1
    assert r"/é\x1b[31m\xff\xc2\x9b\012€.beton: became" in err


def test_a_file_that_was_deleted_is_named_as_such(tmp_path, capfd):
    data = mapped(tmp_path / "x")
    os.truncate(tmp_path / "x", 0)
    os.unlink(tmp_path / "x")
    assert f"{tmp_path}/x (deleted): became shorter" in ended(data.sum, capfd)[1]


def test_a_bus_error_that_no_file_is_the_cause_of_does_what_it_did(tmp_path, capfd):
    def fail() -> None:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        with telling_page_errors():
            os.kill(os.getpid(), signal.SIGBUS)

    (code,) = wait_for([forked(fail)])
    assert (code, capfd.readouterr().err) == (-signal.SIGBUS, "")


def test_python_keeps_its_handler_outside_of_commands():
    library = ctypes.CDLL(None)

    def handler() -> int:
        now = (ctypes.c_char * 256)()
        library.sigaction(signal.SIGBUS, None, now)
        return int.from_bytes(now[:8], "little")

    before = handler()
    with telling_page_errors():
        assert handler() != before
    assert handler() == before


def test_a_library_of_older_sources_is_refused(monkeypatch):
    monkeypatch.setattr(page_errors, "LIBRARY", ctypes.util.find_library("c") or "libc.so.6")
    with (
        pytest.raises(MissingDependencyError, match="was built from older sources; install fastkd again"),
        telling_page_errors(),
    ):
        pass
