"""A helper that waits: whoever runs the program that stands in for it gets what the helper itself would have done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from saverestore.errors import TransportError
from saverestore.process import ready, stand_in
from saverestore.process.ready import ready_helper
from saverestore.toolstack import helper_link
from saverestore.toolstack.helper_link import HELPER_VARIABLE, TASK_VARIABLE

PATIENCE_S = 30
WORDS = ["7", "1", "2", "3", "4", "5", "0"]


def run(
    variables: Mapping[str, str], words: Sequence[str], task: str = "", **more
) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **variables, TASK_VARIABLE: task}
    return subprocess.Popen(
        [variables[HELPER_VARIABLE], *words],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **more,
    )


def pid_told(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_alive(pid)


def says_and_waits(words: Sequence[str]) -> int:
    """Tell the pid, and wait for a signal."""
    os.write(1, b"%d\n" % os.getpid())
    time.sleep(PATIENCE_S)
    return 0


def nothing() -> None:
    """Everything is loaded."""


def test_it_gets_words_task_and_descriptors_and_its_exit_code_comes_back(tmp_path):
    def main(words: Sequence[str]) -> int:
        kind, io_fd, back_fd, *rest = words
        os.write(1, os.read(0, 100).upper())
        os.write(2, f"{kind} {' '.join(rest)} {os.environ[TASK_VARIABLE]}".encode())
        os.write(int(io_fd), b"stream")
        os.write(int(back_fd), b"back")
        return 42

    with (tmp_path / "stream").open("w+b") as stream, (tmp_path / "back").open("w+b") as back:
        fds = (stream.fileno(), back.fileno())
        with ready_helper(main, nothing) as variables:
            words = ["--restore-domain", str(fds[0]), str(fds[1]), *WORDS]
            process = run(variables, words, "task", pass_fds=fds)
            assert process.communicate(b"question", PATIENCE_S) == (
                b"QUESTION",
                f"--restore-domain {' '.join(WORDS)} task".encode(),
            )
        assert process.returncode == 42
        stream.seek(0)
        back.seek(0)
        assert (stream.read(), back.read()) == (b"stream", b"back")


def test_it_reads_on_where_the_stream_stands_and_leaves_it_where_it_stopped(tmp_path):
    (tmp_path / "image").write_bytes(b"headbodytail")

    def main(words: Sequence[str]) -> int:
        os.write(1, os.read(int(words[1]), 4) + words[2].encode())
        return 0

    with (tmp_path / "image").open("rb", buffering=0) as image, ready_helper(main, nothing) as variables:
        assert image.read(4) == b"head"
        process = run(variables, ["--restore-domain", str(image.fileno()), "-1"], pass_fds=(image.fileno(),))
        assert process.communicate(timeout=PATIENCE_S) == (b"body-1", b"")
        assert image.read() == b"tail"


def test_nobody_calls_and_nothing_is_left():
    with ready_helper(says_and_waits, nothing) as variables:
        (waiting,) = children()
        assert set(variables) == {HELPER_VARIABLE, stand_in.ADDRESS_VARIABLE}
    assert gone(waiting)
    assert not os.access(variables[HELPER_VARIABLE], os.F_OK)


def children() -> list[int]:
    return [int(word) for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def test_what_libxl_sends_to_its_helper_ends_the_one_that_works():
    with ready_helper(says_and_waits, nothing) as variables:
        process = run(variables, ["--restore-domain", "1", "-1"])
        helper = pid_told(process)
        process.terminate()
        assert process.wait(PATIENCE_S) == stand_in.FAILED
        assert gone(helper)


def test_a_helper_that_is_killed_is_a_failure_of_the_stand_in():
    with ready_helper(says_and_waits, nothing) as variables:
        process = run(variables, ["--restore-domain", "1", "-1"])
        os.kill(pid_told(process), signal.SIGKILL)
        assert process.wait(PATIENCE_S) == stand_in.FAILED


def test_a_helper_whose_stand_in_is_killed_ends_with_the_block():
    with ready_helper(says_and_waits, nothing) as variables:
        process = run(variables, ["--restore-domain", "1", "-1"])
        helper = pid_told(process)
        process.kill()
        process.wait(PATIENCE_S)
    assert gone(helper)


def test_an_error_that_nobody_caught_is_told_and_is_a_failure():
    def main(words: Sequence[str]) -> int:
        raise ValueError("unforeseen")

    with ready_helper(main, nothing) as variables:
        process = run(variables, ["--restore-domain", "1", "-1"])
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == stand_in.FAILED
    assert b"ValueError: unforeseen" in said


def test_an_error_of_ours_is_one_line_with_its_exit_code():
    def main(words: Sequence[str]) -> int:
        raise TransportError("libxl went away")

    with ready_helper(main, nothing) as variables:
        process = run(variables, ["--restore-domain", "1", "-1"])
        _, said = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said) == (5, b"pysave-helper: libxl went away\n")


def test_what_it_will_need_is_loaded_there_while_it_waits():
    loaded = []

    def main(words: Sequence[str]) -> int:
        os.write(1, b"%d" % len(loaded))
        return 0

    with ready_helper(main, lambda: loaded.append(os.getpid())) as variables:
        process = run(variables, ["--restore-domain", "1", "-1"])
        assert process.communicate(timeout=PATIENCE_S) == (b"1", b"")
    assert loaded == []


def test_one_that_waits_ends_when_whoever_it_waits_for_is_killed():
    script = """
import os, time
from pathlib import Path
from saverestore.process.ready import ready_helper
with ready_helper(lambda words: 0, lambda: None):
    print(Path(f"/proc/self/task/{os.getpid()}/children").read_text().strip(), flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    waiting = pid_told(process)
    process.kill()
    process.wait(PATIENCE_S)
    assert process.stdout is not None
    process.stdout.close()
    assert gone(waiting)


def test_ctrl_c_while_it_waits_tells_nothing(capfd):
    with ready_helper(says_and_waits, nothing):
        (waiting,) = children()
        os.kill(waiting, signal.SIGINT)
        assert gone(waiting)
    assert capfd.readouterr() == ("", "")


def test_a_helper_that_the_kernel_cannot_kill_is_not_waited_for_without_end(monkeypatch):
    """It waits for a disk that does not answer, and whoever waits for it holds signals back."""
    monkeypatch.setattr(ready, "KILLED_S", 0.05)
    monkeypatch.setattr(ready.os, "waitpid", lambda *_: (0, 0))
    before = time.monotonic()
    ready._reap(1)
    assert 0.05 <= time.monotonic() - before < 5


def refused(*_: object) -> int:
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (os, "access", lambda *_: False),
        (os, "memfd_create", refused),
        (sys, "executable", "/opt/my python/bin/python3"),
        (sys, "executable", "/" + 100 * "x"),
        (sys, "executable", ""),
    ],
)
def test_where_such_a_program_may_not_run_there_are_no_variables(monkeypatch, where, name, value):
    monkeypatch.setattr(where, name, value)
    with ready_helper(says_and_waits, nothing) as variables:
        assert variables == {}


def test_the_stand_in_knows_the_task_by_its_name():
    assert stand_in.TASK_VARIABLE == helper_link.TASK_VARIABLE
