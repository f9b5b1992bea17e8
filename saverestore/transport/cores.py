"""How many threads can work at a time, and how many cores have nothing to do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

STAT = Path("/proc/stat")
FIRST_LOOK_S = 0.1
LOOK_EVERY_S = 0.5
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def usable_cores() -> int:
    """The cores that this process may use: one at least."""
    return len(os.sched_getaffinity(0))


def idle_seconds() -> float | None:
    """How long the cores that this process may use have been idle, in all; None where /proc does not have it."""
    wanted = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    ticks = 0
    try:
        for line in STAT.read_text().splitlines():
            name, *times = line.split()
            if name in wanted:
                ticks += int(times[3]) + int(times[4])  # idle, and idle but for a disk
    except (OSError, ValueError, IndexError):
        return None
    return ticks / TICKS_PER_S


class IdleCores:
    """How many cores were idle lately, or worked for the caller: these it may have. One thread at a time."""

    def __init__(
        self,
        idle: Callable[[], float | None] = idle_seconds,
        cores: Callable[[], int] = usable_cores,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._idle = idle
        self._cores = cores
        self._clock = clock
        self._looked_at = clock()
        self._idle_before = idle()
        self._own_s = 0.0
        self._look_after_s = FIRST_LOOK_S
        # Before anybody has looked: none, as the caller may be busy enough.
        self._found = max(1.0, cores() - 1.0) if self._idle_before is None else 0.0

    def worked(self, seconds: float) -> None:
        """The caller has used so much processor time for what it asks for."""
        self._own_s += seconds

    def available(self) -> float:
        """How many cores there are for the caller's work, between 0 and all that this process may use."""
        now = self._clock()
        passed_s = now - self._looked_at
        if passed_s >= self._look_after_s:
            self._look_after_s = LOOK_EVERY_S
            idle = self._idle()
            if idle is not None and self._idle_before is not None:
                found = (idle - self._idle_before + self._own_s) / passed_s
                self._found = max(0.0, min(float(self._cores()), found))
            self._looked_at, self._idle_before, self._own_s = now, idle, 0.0
        return self._found
