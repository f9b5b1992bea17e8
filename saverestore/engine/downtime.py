"""How long a domain was suspended, and by what: the one place that measures a downtime.

    suspend request        suspended            last page          end of the stream         running again
          │ suspend_s          │ last_round_s       │ state_s               │ (waiting) │ resume_s  │
          ├────────────────────┼────────────────────┼───────────────────────┤           ├───────────┤
          ├──────────────────────────────── total_s ────────────────────────┴───────────────────────┤

Of a domain that is not resumed, `total_s` ends with the stream; of one whose save failed, when it runs again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Downtime:
    """Seconds, by phase. A phase that has not ended yet is 0."""

    suspend_s: float = 0.0
    last_round_s: float = 0.0
    state_s: float = 0.0
    resume_s: float = 0.0
    total_s: float = 0.0


class DowntimeClock:
    """Begins with the request to suspend; each phase begins where the one before it ended."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_at = self._phase_at = clock()
        self.measured = Downtime()

    def suspended(self) -> None:
        """The domain is suspended: the last round begins."""
        self.measured.suspend_s = self._lap()

    def last_round_sent(self) -> None:
        """All pages are sent: processors, devices and the stream's end follow."""
        self.measured.last_round_s = self._lap()

    def stream_ended(self) -> None:
        """Everything is written. What comes next is no part of the downtime, unless the domain is resumed."""
        self.measured.state_s = self._lap()

    def resuming(self) -> None:
        """It is resumed now, perhaps some time after the stream ended."""
        self._phase_at = self._clock()

    def resumed(self) -> None:
        """The domain runs again."""
        self.measured.resume_s = self._lap()

    def broken_off(self) -> None:
        """The save failed, and what could be done about the domain has been done."""
        self._lap()

    def _lap(self) -> float:
        now = self._clock()
        seconds, self._phase_at = now - self._phase_at, now
        self.measured.total_s = now - self._began_at
        return seconds
