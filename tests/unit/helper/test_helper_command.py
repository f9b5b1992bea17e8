"""The helper as a command: its words, its exit codes, and as a process on libxl's pipes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_libxl import FakeLibxl

from saverestore.cli import helper
from saverestore.errors import Advice, ExitCode, Remedy
from saverestore.helper import session
from saverestore.helper.channel import LibxlGone
from saverestore.helper.messages import MessageType


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "libxl starts it"),
        (["--save"], "libxl starts it"),
        (["--save-domain", "1", "2"], "2 numbers, not 6"),
        (["--save-domain", "999", "-1", "1", "0", "136", "0"], "descriptor 999 is not open"),
        (["--restore-domain", "x", "-1", "1", "1", "0", "2", "0", "768", "0"], "invalid literal"),
    ],
)
def test_started_by_hand_it_says_what_it_is_for(words, what, capsys):
    assert helper.main(words) == 2
    said = capsys.readouterr()
    assert what in said.err
    assert said.out == ""


SAVE_WORDS = ["--save-domain", "2", "-1", "7", "0", "0", "0"]


def as_a_process(stdin: int, stdout: int) -> tuple[int, bytes]:
    """The exit code and standard error of the command, which fails by its settings as soon as it works."""
    done = subprocess.run(
        [sys.executable, "-m", helper.__name__, *SAVE_WORDS],
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYSAVE_DIRTY": "perhaps"},
        check=False,
    )
    return done.returncode, done.stderr


def test_as_a_process_it_reports_its_failure_to_libxl_and_nowhere_else():
    libxl = FakeLibxl(0)
    done = as_a_process(libxl.helper_reads, libxl.helper_writes)
    libxl.close()
    assert done == (0, b"")
    assert libxl.messages == [(MessageType.COMPLETE, (-1, errno.EINVAL))]
    assert "$PYSAVE_DIRTY: dirty is 'perhaps'" in libxl.logged[-1][1]


def test_a_process_whose_libxl_is_gone_says_so_on_standard_error():
    gone, pipe = os.pipe()
    os.close(gone)
    done = as_a_process(subprocess.DEVNULL, pipe)
    os.close(pipe)
    assert done == (5, b"pysave-helper: libxl accepts no more messages: Broken pipe\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            session.NotResumed("libxl went away", remedies=[Advice(Remedy.RECOVER, 7)]),
            "libxl went away; 'pysave --recover 7' repairs and resumes it",
        ),
        (LibxlGone("libxl went away"), "libxl went away"),
    ],
)
def test_a_domain_that_stays_suspended_comes_with_what_to_do(monkeypatch, capsys, error, said):
    def run(words: list[str], describe: session.Describe) -> int:
        raise error

    monkeypatch.setattr(session, "run", run)
    assert helper.main(SAVE_WORDS) == ExitCode.IO
    assert capsys.readouterr().err == f"pysave-helper: {said}\n"
