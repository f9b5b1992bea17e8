"""The commands before they have begun anything."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from saverestore.cli import start

PROJECT = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_ctrl_c_before_anything_is_done_ends_a_command_without_a_word():
    done = python("import saverestore.cli.start, os, signal; os.kill(os.getpid(), signal.SIGINT)")
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_where_ctrl_c_is_ignored_it_stays_so():
    code = "from signal import *; signal(SIGINT, SIG_IGN); import saverestore.cli.start; "
    assert python(code + "print(getsignal(SIGINT) is SIG_IGN)").stdout == "True\n"


@pytest.mark.parametrize("command", PROJECT["scripts"])
def test_each_command_begins_there(command):
    module, function = re.fullmatch(r"(.+):(.+)", PROJECT["scripts"][command]).groups()
    assert module == start.__name__
    done = python(f"import sys; sys.argv[1:] = ['--help']; from {module} import {function} as main; main()")
    assert done.returncode == 0, done.stderr
    assert command in done.stdout
