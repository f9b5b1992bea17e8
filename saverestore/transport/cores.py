"""How many threads can work at a time."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """The cores that this process may use: one at least."""
    return len(os.sched_getaffinity(0))
