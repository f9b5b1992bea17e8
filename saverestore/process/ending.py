"""How a command's process ends: at once, because others wait for it; its memory is cleared away after it."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn

_memory_may_follow = False


def let_memory_follow() -> None:
    """Have `end` end the process before its memory, and what it has mapped of domains, is cleared away.

    Only after success: a domain that is destroyed next, or a PV domain that runs, must not be mapped.
    """
    global _memory_may_follow
    _memory_may_follow = True


def end(code: int) -> NoReturn:
    """End the process with this exit code, without Python's own end, which would have nothing left to do.

    What was printed is written first. Where it cannot be, Python's own end follows and reports that.
    """
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        sys.exit(code)
    if _memory_may_follow:
        from pyxc.errors import XenError
        from pyxc.process import leave_memory_behind

        with contextlib.suppress(XenError):  # then it ends as other processes do
            leave_memory_behind()
    os._exit(code)
