from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from xenlab import runstate
from xenlab.errors import LabError
from xenlab.machine import Machine


def state_of_this_process() -> runstate.RunState:
    pid = os.getpid()
    ticks = runstate.start_ticks(pid)
    assert ticks is not None
    return runstate.RunState(pid, ticks, 2222, 0.0, 6144, 2560, "key")


@pytest.fixture
def run_folder(lab_cache: Path) -> Path:
    folder = runstate.run_folder("4.17")
    folder.mkdir(parents=True)
    return folder


def test_state_of_a_live_process_is_read_back(run_folder: Path) -> None:
    state = state_of_this_process()
    runstate.write("4.17", state)
    assert runstate.read("4.17") == state
    assert runstate.read("4.20") is None


def test_reused_pid_counts_as_down(run_folder: Path) -> None:
    state = dataclasses.replace(state_of_this_process(), start_ticks=1)
    runstate.write("4.17", state)
    assert runstate.read("4.17") is None


def test_process_that_is_gone_counts_as_down(run_folder: Path) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    runstate.write("4.17", dataclasses.replace(state_of_this_process(), pid=child.pid))
    assert runstate.read("4.17") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', "null"])
def test_torn_or_foreign_state_file_counts_as_down(run_folder: Path, text: str) -> None:
    (run_folder / "state.json").write_text(text)
    assert runstate.read("4.17") is None


def test_down_of_a_machine_that_is_down_removes_the_stale_record(run_folder: Path) -> None:
    (run_folder / "state.json").write_text("{}")
    assert Machine("4.17").down() is False
    assert not (run_folder / "state.json").exists()


def test_command_in_a_machine_that_is_down_says_how_to_start_it(lab_cache: Path) -> None:
    with pytest.raises(LabError, match=r"tools/lab up --xen 4\.20"):
        Machine("4.20").run("true")


def test_unknown_variant_names_the_ones_there_are() -> None:
    with pytest.raises(LabError, match=r"4\.17-shadow"):
        Machine("5.0")


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5s"), (125, "2m"), (3 * 3600 + 300, "3h05m"), (2e5, "2d07h")]
)
def test_age_is_said_as_people_say_it(seconds: float, text: str) -> None:
    assert runstate.age_text(seconds) == text


LEADERLESS = """
import ctypes, signal, threading
threading.Thread(target=signal.pause).start()
print(flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_machine_lives_as_long_as_its_last_thread():
    with subprocess.Popen([sys.executable, "-c", LEADERLESS], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        status = Path(f"/proc/{process.pid}/stat")
        try:
            deadline = time.monotonic() + 10
            while ") Z " not in status.read_text():  # its first thread
                assert time.monotonic() < deadline
            assert runstate.start_ticks(process.pid) is not None
            process.kill()
            while runstate.start_ticks(process.pid) is not None:
                assert time.monotonic() < deadline
            assert ") Z " in status.read_text()  # nobody has waited for it yet
        finally:
            process.kill()
