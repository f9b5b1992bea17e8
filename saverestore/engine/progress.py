"""What a save or restore reports while it works, and at the end."""

from __future__ import annotations

import contextlib
import datetime
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

from saverestore.engine.downtime import Downtime
from saverestore.engine.policy import Limits, RoundStats, Verdict
from saverestore.stream.coding_choice import Coded
from saverestore.stream.digest_algorithms import DigestAlgorithm


class Progress(Protocol):
    """Called from the thread that runs the save or restore."""

    def phase(self, text: str) -> None:
        """A new phase begins."""

    def round(self, number: int, pages: int, *, final: bool) -> None:
        """A round begins that will read this many pfns."""

    def round_done(self, stats: RoundStats) -> None:
        """A round while the domain runs is over."""

    def pages(self, done: int, written_bytes: int) -> None:
        """So many more pfns of the round are done; so many bytes have been written or read in all."""

    def close(self) -> None:
        """The work has ended, done or failed: end the line on the terminal."""


class Silence:
    """A `Progress` that does nothing."""

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


def peak_memory_bytes() -> int | None:
    """The most memory that this process had resident so far; None where /proc does not have it."""
    # Not getrusage(2): its figure is inherited from whoever started the process.
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return None


class DomainState(Enum):
    """The state of a domain at the end, in words."""

    NONE = "none"
    UNTOUCHED = "unchanged"
    RUNNING = "running"
    SUSPENDED = "suspended"
    PAUSED = "paused"
    DESTROYED = "destroyed"
    STUCK = "suspended, and could not be resumed"
    HALF_RESUMED = "running, but its device model could not be resumed"
    CRASHED = "crashed"
    STOPPED = "shut down"
    DYING = "being destroyed by another program"
    GONE = "gone: destroyed by another program"
    UNKNOWN = "unknown"


@dataclass
class SaveReport:
    """What a save did, filled in while it works: also of one that failed. Times in seconds.

    `domain_uuid`, `xen_version`: of the domain and of this host; `image`: its name in a store; None until known.
    `domain_state`: the domain's state at the end.

    `dirty_source`: how dirty pages were tracked, "log" or "digest"; "none" of a save that was not live. `rounds`:
    those that were finished, the last one included. `verdict`: what ended the live rounds, with the prediction;
    `limits`: what it was made by. `downtime`: None until the domain is asked to suspend.

    `check_s`: looking at domain, host and place, before the image is begun. `total_s`, `stream_bytes`: of the libxc
    stream, live rounds included. `sync_s`: from the end of the stream until all of it was on the disk. `pages_sent`:
    in all rounds; of these, `resent_pages`: of pfns that had been sent before, `zero_pages`: all zero.
    `stored_bytes`: what the image takes on the disk, or in the pipe, where that is known. `cache`: how the image's
    file was written, "direct" or "page"; None where it is no file. `coded`: what was written by each coding of pages,
    by its name; empty of an image in Xen's own format.
    """

    dirty_source: str = "none"
    limits: Limits = field(default_factory=Limits)
    rounds: list[RoundStats] = field(default_factory=list)
    verdict: Verdict | None = None
    check_s: float = 0.0
    total_s: float = 0.0
    downtime: Downtime | None = None
    stream_bytes: int = 0
    pages_sent: int = 0
    resent_pages: int = 0
    zero_pages: int = 0
    stored_bytes: int | None = None
    sync_s: float = 0.0
    cache: str | None = None
    coded: dict[str, Coded] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    domain_state: DomainState = DomainState.UNTOUCHED
    domain_uuid: str | None = None
    xen_version: str | None = None
    image: str | None = None


@dataclass
class RestoreReport:
    """What a restore did, filled in while it works: also of one that failed. Times in seconds.

    `domid`: the new domain's number, None if there is none; `domain_state`: its state at the end. `pages`: those with
    data; `records`, `stream_bytes`: of the libxc stream. `digest`: the algorithm of the image's digest, which holds;
    None if it has none. `saved_at`: when the save began, if the image has that.

    `check_s`: reading the image's head and looking at host and domain, before one is created; where the image comes
    over a link, waiting for it, too. `total_s`: from creating the domain to its start. `create_s`: creating it, by
    libxl with its devices; `memory_s`: reading and filling; `complete_s`: processors and rings; `start_s`: starting
    it.
    """

    check_s: float = 0.0
    total_s: float = 0.0
    stream_bytes: int = 0
    pages: int = 0
    records: int = 0
    digest: DigestAlgorithm | None = None
    saved_at: datetime.datetime | None = None
    domid: int | None = None
    create_s: float = 0.0
    memory_s: float = 0.0
    complete_s: float = 0.0
    start_s: float = 0.0
    peak_memory_bytes: int | None = None
    domain_state: DomainState = DomainState.NONE
    domain_uuid: str | None = None
    xen_version: str | None = None
