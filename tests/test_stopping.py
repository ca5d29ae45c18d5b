"""SIGTERM where there is no step to end: it ends the command at once, and nothing is lost."""

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from helpers.commands import finish, start
from helpers.ranks import forked, wait_for

from fastkd.stopping import exit_on_sigterm


def open_for_writing(fifo: Path, reader: subprocess.Popen) -> int:
    """A descriptor of a named pipe, as soon as the process reads from it."""
    while reader.poll() is None:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads yet
            time.sleep(0.005)
    raise AssertionError(reader.communicate())


@pytest.mark.parametrize("option", ["--config", "--init"])  # before and after torch is loaded
def test_sigterm_before_the_first_step_asks_for_another_start(raw_beton, tmp_path, option):
    """The command waits in the middle of its start: for a file that never comes."""
    fifo, out = tmp_path / "never.pt", tmp_path / "run"
    os.mkfifo(fifo)
    process = start(
        "train", raw_beton, option, fifo, "--alpha", 0, "--model", "resnet8", "--out", out, "--device", "cpu"
    )
    writer = open_for_writing(fifo, process)
    process.send_signal(signal.SIGTERM)
    ended = finish(process)
    os.close(writer)
    assert ended.code == 75
    assert ended.err == "fastkd: error: stopped by SIGTERM; the same command goes on\n"
    assert ended.out == ""
    assert not out.exists()


def test_sigterm_ends_a_rank_that_waits_for_another(raw_beton, tmp_path):
    with socket.socket() as listener:  # the other rank: it takes the call and says nothing
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        host, port = listener.getsockname()
        meeting = {"MASTER_ADDR": host, "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
        options = ["--alpha", 0, "--model", "resnet8", "--out", tmp_path / "run", "--device", "cpu"]
        process = start("train", raw_beton, *options, env=meeting)
        listener.settimeout(120)
        with listener.accept()[0]:
            process.send_signal(signal.SIGTERM)
            assert finish(process).code == 75


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_stops_a_run_as_sigterm_does_and_a_second_one_waits_for_nothing(raw_beton, tmp_path, times):
    out = tmp_path / "run"
    options = ["--alpha", 0, "--model", "resnet8", "--epochs", 500, "--out", out, "--device", "cpu"]
    process = start("train", raw_beton, *options)
    while not (out / "resume.pt").exists():
        assert process.poll() is None, finish(process).err
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    if times == 2:
        process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert ended.code == 130
    last = ended.err.splitlines()[-1]
    assert re.fullmatch(
        r"fastkd: error: stopped by Ctrl-C after step \d+ of epoch \d+; the same command goes on", last
    ) or (times == 2 and last == "fastkd: interrupted")


def test_ctrl_c_before_the_first_step_ends_a_command_with_130(raw_beton, tmp_path):
    fifo = tmp_path / "never.pt"
    os.mkfifo(fifo)
    options = ["--alpha", 0, "--model", "resnet8", "--out", tmp_path / "run", "--device", "cpu"]
    process = start("train", raw_beton, "--init", fifo, *options)
    writer = open_for_writing(fifo, process)
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    os.close(writer)
    assert (ended.code, ended.err.strip()) == (130, "fastkd: interrupted; the same command goes on")


def test_a_forked_child_keeps_its_signals_to_itself():
    """SIGTERM to a child that a library forks must not end the command that it was forked from."""
    with exit_on_sigterm():
        child = forked(lambda: time.sleep(60))
        os.kill(child, signal.SIGTERM)
        os.kill(child, signal.SIGKILL)
        wait_for([child])
        time.sleep(0.05)
