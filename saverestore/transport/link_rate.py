"""How many bytes a second a link takes, as far as can be seen from this side, while pages are written to it. Pure.

Two things tell: TCP's own estimate, where there is a TCP connection, and how fast bytes were taken while the writer
had to wait for that. A writer that does not wait learns only that the link can do at least as much.
"""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST_WINDOW_S = 0.05
WINDOW_S = 0.25
"""Figures are taken over so long: longer than a batch, shorter than what changes on a link."""

WAITING = 0.5
"""From this share of the time on the writer counts as waiting for the link: what it takes is then what it can do."""

IDLE = 0.1
"""Below this share the link is idle now and then, and could do more."""

GROWTH = 1.1
"""What is assumed of an idle link of which nothing else is known, window by window: so that it is found out."""

WEIGHT = 0.5
"""Of the latest window in the moving average."""


class LinkRate:
    """See above. From one thread; `bytes_per_s` from any."""

    def __init__(self, told: Callable[[], int | None], clock: Callable[[], float] = time.monotonic) -> None:
        """`told`: what the transport knows, in bytes per second; None where it knows nothing."""
        self._told = told
        self._clock = clock
        self._begun_at: float | None = None
        self._waited_s = 0.0
        self._bytes = 0
        self.bytes_per_s: float | None = None
        """None: nothing is known yet."""

    def writing(self) -> float:
        """Bytes are about to be written: the time, which `wrote` is given."""
        now = self._clock()
        if self._begun_at is None:
            self._begun_at = now
        return now

    def wrote(self, nr_bytes: int, since: float) -> None:
        """So many bytes were taken since then."""
        now = self._clock()
        assert self._begun_at is not None
        self._bytes += nr_bytes
        self._waited_s += now - since
        passed_s = now - self._begun_at
        if passed_s < (FIRST_WINDOW_S if self.bytes_per_s is None else WINDOW_S):
            return
        latest = self._latest(self._bytes / passed_s, self._waited_s / passed_s)
        before = self.bytes_per_s
        self.bytes_per_s = latest if before is None else before + WEIGHT * (latest - before)
        self._begun_at, self._bytes, self._waited_s = now, 0, 0.0

    def _latest(self, taken: float, waiting: float) -> float:
        """Of the window that ends: from bytes taken per second, and the share of the time that was spent waiting."""
        told, before = self._told(), self.bytes_per_s
        if waiting >= WAITING:
            # Buffers on the way take some bytes at once, and TCP's estimate may be of a moment: the lower is nearer.
            return taken if told is None else min(taken, told)
        if told is not None:
            return max(taken, told)
        if before is None:
            return taken
        return max(taken, before * GROWTH if waiting < IDLE else before)
