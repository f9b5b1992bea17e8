"""Where the commands begin, before they are loaded: that takes a while, in which nothing is done yet.

A Ctrl-C then ends the process as it does a program in C, without a word. Python's own way is a traceback.
"""

from __future__ import annotations

import signal
from importlib import import_module


def _run(module: str, function: str = "main") -> int:
    """Load a command, heeding Ctrl-C meanwhile, and run it: its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where nohup(1) has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return int(getattr(import_module(f"saverestore.cli.{module}"), function)())


def pysave() -> int:
    """The command `pysave`: its exit code."""
    return _run("pysave")


def pyrestore() -> int:
    """The command `pyrestore`: its exit code."""
    return _run("pyrestore")


def pyimage() -> int:
    """The command `pyimage`: its exit code."""
    return _run("pyimage")


def helper() -> int:
    """The command `pyxc-save-helper`: its exit code."""
    return _run("helper", "program")


def watch() -> int:
    """The command `pyxc-watch`: its exit code."""
    return _run("watch")
