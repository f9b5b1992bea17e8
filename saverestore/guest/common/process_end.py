"""How a command's process ends: at once, as others wait for it, with its memory cleared away behind it."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn

_memory_may_follow = False


def let_memory_follow() -> None:
    """When this process ends, nobody needs to wait for its memory and for what it has mapped of domains.

    To be said once all went well: a domain that is destroyed next, or a PV domain that runs, must not be mapped.
    """
    global _memory_may_follow
    _memory_may_follow = True


def end(code: int) -> NoReturn:
    """End the process with this exit code, without Python's own end: nothing is left to be done by it.

    What was printed is written first; where it cannot be, Python's end says so, as ever.
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
