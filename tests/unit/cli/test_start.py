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


def while_loading(code: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """`pysave`, in a process of its own, in which `code` runs while the command is loaded."""
    return python(f"""
import os, signal, sys
{before}
class Loading:
    def find_spec(self, name, *_):
        if name == "saverestore.cli.pysave":
            {code}
            sys.exit(0)
from saverestore.cli.start import pysave
sys.meta_path.insert(0, Loading())
pysave()
""")


def test_ctrl_c_while_a_command_is_loaded_ends_it_without_a_word():
    done = while_loading("os.kill(os.getpid(), signal.SIGINT)")
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_where_ctrl_c_is_ignored_it_stays_so():
    done = while_loading(
        "os.kill(os.getpid(), signal.SIGINT)", before="signal.signal(signal.SIGINT, signal.SIG_IGN)"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_loading_the_module_alone_changes_nothing():
    done = python(
        "import signal, saverestore.cli.start; print(signal.getsignal(2) is signal.default_int_handler)"
    )
    assert done.stdout == "True\n"


def test_no_garbage_is_looked_for_while_a_command_is_loaded_and_it_is_afterwards():
    done = while_loading("import gc; print(gc.isenabled())")
    assert (done.returncode, done.stdout) == (0, "False\n")
    done = python(
        "import gc, sys, types; from saverestore.cli import start\n"
        "sys.modules['saverestore.cli.pyimage'] = types.SimpleNamespace(main=lambda: print(gc.isenabled()) or 0)\n"
        "start.pyimage()"
    )
    assert (done.returncode, done.stdout) == (0, "True\n")


@pytest.mark.parametrize("command", PROJECT["scripts"])
def test_each_command_begins_there(command):
    module, function = re.fullmatch(r"(.+):(.+)", PROJECT["scripts"][command]).groups()
    assert module == start.__name__
    done = python(f"import sys; sys.argv[1:] = ['--help']; from {module} import {function} as main; main()")
    assert done.returncode == 0, done.stderr
    assert command in done.stdout


@pytest.mark.parametrize(
    ("function", "arguments", "codes", "stream", "said"),
    [
        ("helper", [], [2], "stderr", "pysave-helper: "),
        ("pyrestore", ["/nowhere/web1.img"], [2], "stderr", "pyrestore: /nowhere/web1.img: no such file"),
        ("pysave", ["no-such-domain", "/nowhere/a.img"], [2, 6], "stderr", "pysave: "),  # with Xen, without
    ],
)
def test_commands_that_others_wait_for_end_at_once_with_all_that_they_said(
    function, arguments, codes, stream, said
):
    """Python is not torn down: libxl waits for its helper while the domain stands still."""
    done = python(
        f"import atexit, sys; sys.argv[1:] = {arguments}; atexit.register(print, 'torn down'); "
        f"from saverestore.cli.start import {function}; {function}()"
    )
    assert done.returncode in codes, done.stderr
    assert getattr(done, stream).startswith(said)
    assert "torn down" not in done.stdout
