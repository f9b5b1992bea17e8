"""Progress for a person: a bar on a terminal, plain lines elsewhere, nothing with --quiet. Sizes are MiB."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from typing import TYPE_CHECKING, Any, Never, TextIO

from saverestore.cli.common import say
from saverestore.engine.policy import RoundStats
from saverestore.engine.progress import Progress, Silence
from saverestore.kernels.page import PAGE_SIZE
from saverestore.words import counted, mib, plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tqdm import tqdm

    from saverestore.stream.coding_choice import Coded

LINE_EVERY_S = 5.0
MIB = 1 << 20


def round_text(stats: RoundStats) -> str:
    """The result of a live round: pages sent, and how many are dirty now where that is known."""
    dirty = "" if stats.dirty_pages is None else f", {stats.dirty_pages} dirty"
    gained = coded_text(stats.coded)
    return f"round {stats.number}: {counted(stats.sent_pages, 'page')} sent{dirty}{f'; {gained}' if gained else ''}"


def coded_text(coded: Mapping[str, Coded]) -> str:
    """What each coding of pages made of how much: zstd:1 120 to 30 MiB, none 5 MiB. "" where nothing was coded."""
    if not set(coded) - {"none"}:
        return ""
    return ", ".join(
        f"{name} {mib(one.in_bytes)}"
        if one.in_bytes == one.out_bytes
        else f"{name} {one.in_bytes / MIB:.0f} to {mib(one.out_bytes)}"
        for name, one in coded.items()
    )


BAR_FORMAT = (
    "{desc}: {percentage:3.0f}% |{bar}| {n:.0f} of {total:.0f} MiB, {rate_noinv_fmt}, {remaining} left"
    "{postfix}"
)
BAR_FORMAT_WITHOUT_END = "{desc}: {n:.0f} MiB, {rate_noinv_fmt}{postfix}"


def bar_options(total_bytes: int | None) -> dict[str, Any]:
    """What tqdm is given to count MiB."""
    if not total_bytes:
        return {"unit": " MiB", "total": None, "bar_format": BAR_FORMAT_WITHOUT_END}
    return {"unit": " MiB", "total": total_bytes / MIB, "bar_format": BAR_FORMAT}


def progress_for(prog: str, *, quiet: bool, total_bytes: int | None = None) -> Progress:
    """What suits standard error. `total_bytes`: how much will be read, where that is known."""
    if quiet or sys.stderr is None:
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
    """A tqdm bar for each round (memory scanned), or for all that is read (of the image)."""

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
            bar.update(written_bytes / MIB - bar.n)
        else:
            bar.set_postfix_str(f"{mib(written_bytes)} written", refresh=False)
            bar.update(done * PAGE_SIZE / MIB)

    def close(self) -> None:
        """Ends the bar, so that what follows stands on a line of its own."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _start(self, *, total: int | None, desc: str) -> None:
        from tqdm import tqdm  # only where somebody looks: it costs as much to import as all the rest

        self.close()
        tqdm.monitor_interval = 0  # no thread of its own: a signal amid its lock would let it wait forever
        self._bar = tqdm(desc=desc, file=Unread(), **bar_options(total))


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
        self._print(f"{self._name}: {counted(pages, 'page')} to scan")

    def round_done(self, stats: RoundStats) -> None:
        """One line."""
        self._print(round_text(stats))

    def pages(self, done: int, written_bytes: int) -> None:
        """One line, if the last is some seconds old."""
        self._done += done
        if time.monotonic() - self._printed_at >= LINE_EVERY_S:
            moved = mib(written_bytes)
            if self._name:
                self._print(f"{self._name}: {self._done} of {self._total} pages, {moved}")
            else:
                of = f" of {mib(self._total_bytes)}" if self._total_bytes else ""
                self._print(f"restoring: {moved}{of}")

    def close(self) -> None:
        """Nothing: each line is complete."""

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads: no reason to give the work up
            print(plain(f"{self._prog}: {text}"), file=self._out, flush=True)
        self._printed_at = time.monotonic()
