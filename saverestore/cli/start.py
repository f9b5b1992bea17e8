"""Where the commands begin, before they are loaded: that takes a while, in which nothing is done yet.

A Ctrl-C then ends the process as it does a program in C, without a word. Python's own way is a traceback.
"""

from __future__ import annotations

import gc
import signal
from importlib import import_module
from typing import NoReturn


def _run(module: str) -> int:
    """Load a command, heeding Ctrl-C meanwhile, and run it: its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where nohup(1) has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Nothing of what is loaded is ever garbage, and looking through it time and again takes as long as some modules.
    gc.disable()
    try:
        command = import_module(f"saverestore.cli.{module}")
    finally:
        gc.freeze()
        gc.enable()
    return int(command.main())


def _run_to_the_end(module: str) -> NoReturn:
    """As `_run`, and end the process: those who wait for it wait for no more than that."""
    code = _run(module)
    from saverestore.process import ending

    ending.end(code)


def pysave() -> NoReturn:
    """The command `pysave`, as a process."""
    _run_to_the_end("pysave")


def pyrestore() -> NoReturn:
    """The command `pyrestore`, as a process."""
    _run_to_the_end("pyrestore")


def pyimage() -> int:
    """The command `pyimage`: its exit code."""
    return _run("pyimage")


def pymigrate() -> NoReturn:
    """The command `pymigrate`, as a process."""
    _run_to_the_end("pymigrate")


def helper() -> NoReturn:
    """The command `pysave-helper`, as a process. libxl waits for its end while the domain is suspended."""
    _run_to_the_end("helper")


def watch() -> int:
    """The command `pysave-watch`: its exit code."""
    return _run("watch")
