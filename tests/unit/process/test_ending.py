"""A command's process ends at once, and its memory is cleared away behind it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

WITH_MEMORY = """
import atexit, os, sys
from pathlib import Path
from saverestore.process import ending

atexit.register(print, "torn down")
memory = bytearray(b"x" * (32 << 20))
"""


def run(script: str, *arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    more = {"env": buffered, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.run(
        [sys.executable, "-c", WITH_MEMORY + script, *arguments], text=True, check=False, timeout=60, **more
    )


def test_what_was_printed_is_written_and_python_is_not_torn_down():
    done = run("print('said'); print('told', file=sys.stderr); ending.end(3)")
    assert (done.returncode, done.stdout, done.stderr) == (3, "said\n", "told\n")


def test_what_cannot_be_printed_is_told_as_python_tells_it():
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    done = run("print('said'); ending.end(0)", stdout=write_fd)
    os.close(write_fd)
    assert done.returncode == 120
    assert "Broken pipe" in done.stderr


def is_there(pid: int) -> bool:
    """Not one that has ended and that nobody has waited for: there may be no init in a container."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def assert_ends(pid: int) -> None:
    deadline = time.monotonic() + 10
    while is_there(pid):
        assert time.monotonic() < deadline, "it has not ended"
        time.sleep(0.01)


def test_another_process_takes_the_memory_over_and_ends_as_well(tmp_path):
    pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)
    told = tmp_path / "told"
    done = run(
        """
end = os._exit
def look(code):  # in place of the end: who has the memory, and what is open
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    Path(sys.argv[1]).write_text(f"{children};{len(os.listdir('/proc/self/fd'))}")
    end(code)
os._exit = look
print("said")
ending.let_memory_follow()
ending.end(3)
""",
        str(told),
    )
    assert (done.returncode, done.stdout) == (3, "said\n")
    children, nr_open = told.read_text().split(";")
    (child,) = map(int, children.split())
    assert int(nr_open) == 1  # of the look itself
    assert_ends(child)


def test_it_is_ended_by_the_end_of_a_process_that_was_killed(tmp_path):
    pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)
    told = tmp_path / "told"
    done = run(
        """
import signal
def look(code):
    Path(sys.argv[1]).write_text(Path(f"/proc/self/task/{os.getpid()}/children").read_text())
    os.kill(os.getpid(), signal.SIGKILL)
os._exit = look
ending.let_memory_follow()
ending.end(0)
""",
        str(told),
    )
    assert done.returncode == -9
    (child,) = map(int, told.read_text().split())
    assert_ends(child)


def test_where_no_process_can_take_it_over_the_end_is_as_ever():
    pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)
    done = run(
        """
import pyxc.process
from pyxc.errors import XenError
def refused():
    raise XenError("clone", 11)
pyxc.process.leave_memory_behind = refused
print("said")
ending.let_memory_follow()
ending.end(3)
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "said\n", "")
