"""What a save or restore tells while it works, and what it tells at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from saverestore.engine.policy import RoundStats
from saverestore.stream.digest import DigestAlgorithm


class Progress(Protocol):
    """Told from the thread that runs the save or restore."""

    def phase(self, text: str) -> None:
        """A new phase begins."""

    def round(self, number: int, pages: int, *, final: bool) -> None:
        """A round begins that will read this many pfns."""

    def round_done(self, stats: RoundStats) -> None:
        """A round while the domain runs is over."""

    def pages(self, done: int, written_bytes: int) -> None:
        """So many more pfns of the round are done; so many bytes have been written or read in all."""

    def close(self) -> None:
        """Nothing follows, be it done or failed: what is on the terminal is finished off."""


class Silence:
    """Tells nothing."""

    def phase(self, text: str) -> None:
        """Nothing."""

    def round(self, number: int, pages: int, *, final: bool) -> None:
        """Nothing."""

    def round_done(self, stats: RoundStats) -> None:
        """Nothing."""

    def pages(self, done: int, written_bytes: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


@dataclass
class SaveReport:
    """What a save did. Times in seconds; `downtime_s` from the suspend request to the end of the stream.

    `zero_pages`: of `pages_sent`, those that were all zero. `stored_bytes`: what the image takes on the disk, or in
    the pipe, where that is known.
    Where the guest goes on, the operation sets it anew once it does. `suspended_at`: time.monotonic() of the request.
    """

    dirty_source: str = "none"
    rounds: list[RoundStats] = field(default_factory=list)
    total_s: float = 0.0
    suspended_at: float = 0.0
    suspend_s: float = 0.0
    downtime_s: float = 0.0
    stream_bytes: int = 0
    pages_sent: int = 0
    zero_pages: int = 0
    stored_bytes: int | None = None


@dataclass
class RestoreReport:
    """What a restore did. `digest`: the algorithm of the image's digest, which holds; None when it has none."""

    total_s: float = 0.0
    stream_bytes: int = 0
    pages: int = 0
    records: int = 0
    digest: DigestAlgorithm | None = None
