"""Where the commands begin, before they are loaded: that takes a while, in which nothing is done yet.

A Ctrl-C then ends the process as it does a program in C, without a word. Python's own way is a traceback.
"""

from __future__ import annotations

import signal


def _quiet_ctrl_c() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where nohup(1) has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def pysave() -> int:
    """The command `pysave`: its exit code."""
    _quiet_ctrl_c()
    from saverestore.cli.pysave import main

    return main()


def pyrestore() -> int:
    """The command `pyrestore`: its exit code."""
    _quiet_ctrl_c()
    from saverestore.cli.pyrestore import main

    return main()


def pyimage() -> int:
    """The command `pyimage`: its exit code."""
    _quiet_ctrl_c()
    from saverestore.cli.pyimage import main

    return main()


def helper() -> int:
    """The command `pyxc-save-helper`: its exit code."""
    _quiet_ctrl_c()
    from saverestore.cli.helper import program

    return program()


def watch() -> int:
    """The command `pyxc-watch`: its exit code."""
    _quiet_ctrl_c()
    from saverestore.cli.watch import main

    return main()
