"""One process writes a file at a time, it appears whole or not at all, and nothing is lost that somebody may miss."""

import os
import threading
import time

import pytest
from helpers.ranks import forked, wait_for

from fastkd.errors import BusyError, MismatchError, NotFoundError, OptionError
from fastkd.writing import atomic_path, claim, write_marked


def held_by_another(path):
    """Starts a process that claims a path until it is killed; returns its id once it has it."""

    def hold() -> None:
        with claim(path):
            (path.parent / "held").touch()
            time.sleep(60)

    pid = forked(hold)
    while not (path.parent / "held").exists():
        time.sleep(0.005)
    (path.parent / "held").unlink()
    return pid


def test_what_another_process_writes_is_busy_until_that_ends_however_it_ends(tmp_path):
    pid = held_by_another(tmp_path / "x")
    with pytest.raises(BusyError, match=r"x: is being written by another process"), atomic_path(tmp_path / "x"):
        pass
    os.kill(pid, 9)
    wait_for([pid])
    with atomic_path(tmp_path / "x") as partial:
        partial.write_bytes(b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_a_folder_that_another_process_writes_into_is_busy(tmp_path):
    pid = held_by_another(tmp_path / "run")
    with pytest.raises(BusyError), claim(tmp_path / "run", is_folder=True):
        pass
    os.kill(pid, 9)
    wait_for([pid])


def test_another_thread_of_this_process_is_another(tmp_path):
    found = []

    def write() -> None:
        try:
            with claim(tmp_path / "x"):
                found.append("claimed")
        except BusyError:
            found.append("busy")

    with claim(tmp_path / "x"):
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    write()
    assert found == ["busy", "claimed"]


def test_a_claim_holds_for_all_that_is_written_within_it(tmp_path):
    with claim(tmp_path / "run", is_folder=True):
        (tmp_path / "run").mkdir()
        with atomic_path(tmp_path / "run" / "a") as partial:
            partial.write_bytes(b"a")
    with claim(tmp_path / "x"), claim(tmp_path / "x"), atomic_path(tmp_path / "x") as partial:
        partial.write_bytes(b"x")
    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")) == ["run", "run/a", "x"]


def test_what_a_killed_process_had_begun_is_swept_away_by_the_next(tmp_path):
    def begin() -> None:
        with atomic_path(tmp_path / "x") as partial:
            partial.write_bytes(b"half")
            os.kill(os.getpid(), 9)

    wait_for([forked(begin)])
    assert [file.suffix for file in tmp_path.iterdir() if file.suffix == ".partial"] == [".partial"]
    (tmp_path / ".x.mine.partial").touch()  # of somebody else's
    with atomic_path(tmp_path / "x") as partial:
        partial.write_bytes(b"whole")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".x.mine.partial", "x"]


@pytest.mark.parametrize("way", ["itself", "symlink", "hard link"])
def test_an_output_is_no_input_by_whatever_name(tmp_path, way):
    (tmp_path / "a").write_bytes(b"input")
    path = tmp_path / ("a" if way == "itself" else "b")
    if way == "symlink":
        path.symlink_to(tmp_path / "a")
    elif way == "hard link":
        path.hardlink_to(tmp_path / "a")
    with pytest.raises(OptionError, match=r"is what .*a is read from"), claim(path, inputs=[tmp_path / "a"]):
        pass
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_only_a_file_is_written_over(tmp_path, kind):
    (tmp_path / "x").mkdir() if kind == "folder" else os.mkfifo(tmp_path / "x")
    with pytest.raises(OptionError, match="is a folder" if kind == "folder" else "is no regular file"):
        write_marked(tmp_path / "x", b"me", "me", force=True)
    assert (tmp_path / "x").is_dir() or (tmp_path / "x").is_fifo()


def test_a_folder_is_not_made_of_a_file(tmp_path):
    (tmp_path / "x").write_bytes(b"mine")
    with pytest.raises(OptionError, match="is a file, expected a folder"), claim(tmp_path / "x", is_folder=True):
        pass


@pytest.mark.parametrize("is_there", [True, False])
def test_a_symlink_is_followed_to_where_it_points(tmp_path, is_there):
    (tmp_path / "far").mkdir()
    if is_there:
        (tmp_path / "far" / "x").write_bytes(b"me, of old")
    (tmp_path / "x").symlink_to(tmp_path / "far" / "x")
    write_marked(tmp_path / "x", b"me, new", "me")
    assert (tmp_path / "x").is_symlink()
    assert (tmp_path / "far" / "x").read_bytes() == b"me, new"
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["far", "x", "x"]


def test_a_name_of_the_greatest_length_can_be_written(tmp_path):
    name = "ü" * 127
    with atomic_path(tmp_path / name) as partial:
        partial.write_bytes(b"x")
    assert os.listdir(tmp_path) == [name]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="no/such does not exist"), claim(tmp_path / "no" / "such" / "x"):
        pass


def test_a_page_of_another_job_is_replaced_only_where_that_is_asked_for(tmp_path):
    path = tmp_path / "x.html"
    write_marked(path, b"job 1, first", "job 1")
    write_marked(path, b"job 1, again", "job 1")
    with pytest.raises(MismatchError, match=r"x\.html: is there, and not from this job; .*--force"):
        write_marked(path, b"job 2", "job 2")
    assert path.read_bytes() == b"job 1, again"
    write_marked(path, b"job 2", "job 2", force=True)
    assert path.read_bytes() == b"job 2"
