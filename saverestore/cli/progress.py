"""Progress for a person: a bar on a terminal, plain lines elsewhere, nothing when asked to be quiet."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from typing import TYPE_CHECKING, Never, TextIO

from saverestore.cli.common import say
from saverestore.engine.policy import RoundStats
from saverestore.engine.progress import Progress, Silence
from saverestore.kernels.page import PAGE_SIZE

if TYPE_CHECKING:
    from tqdm import tqdm

LINE_EVERY_S = 5.0
MIB = 1 << 20


def round_text(stats: RoundStats) -> str:
    """What came of a live round: pages sent, and how many were written meanwhile where that is known."""
    dirty = "" if stats.dirty_pages is None else f", {stats.dirty_pages} written meanwhile"
    return f"round {stats.number}: {stats.sent_pages} pages sent{dirty}"


def progress_for(prog: str, *, quiet: bool, total_bytes: int | None = None) -> Progress:
    """What suits standard error. `total_bytes`: how much will be read, where that is known."""
    if quiet:
        return Silence()
    if sys.stderr is None:
        return Silence()
    if sys.stderr.isatty():
        return Bar(total_bytes)
    return Lines(prog, sys.stderr, total_bytes)


class Unread(io.TextIOBase):
    """Standard error for tqdm: what cannot be written there is no reason to give the work up."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        """Write, or not."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or not."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()

    def fileno(self) -> int:
        """For the width of the terminal."""
        return sys.stderr.fileno()


class Bar:
    """A tqdm bar for each round (bytes of memory looked at), or for all that is read (bytes of the image)."""

    def __init__(self, total_bytes: int | None = None) -> None:
        self._total_bytes = total_bytes
        self._bar: tqdm[Never] | None = None
        self._counts_bytes = False

    def phase(self, text: str) -> None:
        """Ends the bar before it and prints the phase."""
        self.close()
        say(text)

    def round(self, number: int, pages: int, *, final: bool) -> None:
        """A new bar."""
        name = "last round" if final else f"round {number}"
        self._start(total=pages * PAGE_SIZE, desc=name)

    def round_done(self, stats: RoundStats) -> None:
        """Ends its bar and prints one line."""
        self.close()
        say(round_text(stats))

    def pages(self, done: int, written_bytes: int) -> None:
        """Moves the bar."""
        if self._bar is None:
            self._start(total=self._total_bytes, desc="restoring")
            self._counts_bytes = True
        bar = self._bar
        assert bar is not None  # just started
        if self._counts_bytes:
            bar.update(written_bytes - bar.n)
        else:
            bar.set_postfix_str(f"{written_bytes / MIB:.0f} MiB written", refresh=False)
            bar.update(done * PAGE_SIZE)

    def close(self) -> None:
        """Ends the bar, so that what follows stands on a line of its own."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _start(self, *, total: int | None, desc: str) -> None:
        from tqdm import tqdm  # only where somebody looks: it costs as much to import as all the rest

        self.close()
        tqdm.monitor_interval = 0  # no thread of its own: a signal amid its lock would let it wait forever
        self._bar = tqdm(total=total, unit="B", desc=desc, unit_scale=True, unit_divisor=1024, file=Unread())


class Lines:
    """A line for each phase and round, and one every few seconds of long ones."""

    def __init__(self, prog: str, out: TextIO, total_bytes: int | None = None) -> None:
        self._prog = prog
        self._out = out
        self._total_bytes = total_bytes
        self._name = ""
        self._total = 0
        self._done = 0
        self._printed_at = time.monotonic()

    def phase(self, text: str) -> None:
        """One line."""
        self._print(text)

    def round(self, number: int, pages: int, *, final: bool) -> None:
        """One line."""
        self._name = "last round" if final else f"round {number}"
        self._total, self._done = pages, 0
        self._print(f"{self._name}: {pages} pages to look at")

    def round_done(self, stats: RoundStats) -> None:
        """One line."""
        self._print(round_text(stats))

    def pages(self, done: int, written_bytes: int) -> None:
        """One line, if the last is some seconds old."""
        self._done += done
        if time.monotonic() - self._printed_at >= LINE_EVERY_S:
            moved = f"{written_bytes / MIB:.0f} MiB"
            if self._name:
                self._print(f"{self._name}: {self._done} of {self._total}, {moved}")
            else:
                of = f" of {self._total_bytes / MIB:.0f} MiB" if self._total_bytes else ""
                self._print(f"restoring: {moved}{of}")

    def close(self) -> None:
        """Nothing: each line is complete."""

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads: no reason to give the work up
            print(f"{self._prog}: {text}", file=self._out, flush=True)
        self._printed_at = time.monotonic()
