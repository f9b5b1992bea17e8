"""Progress for a person: a bar on a terminal, plain lines elsewhere, nothing when asked to be quiet."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Never, TextIO

from saverestore.engine.progress import Progress, Silence

if TYPE_CHECKING:
    from tqdm import tqdm

LINE_EVERY_S = 5.0
MIB = 1 << 20


def progress_for(prog: str, *, quiet: bool, total_bytes: int | None = None) -> Progress:
    """What suits standard error. `total_bytes`: how much will be read, where that is known."""
    if quiet:
        return Silence()
    if sys.stderr.isatty():
        return Bar(total_bytes)
    return Lines(prog, sys.stderr)


class Bar:
    """A tqdm bar for each round, or for all that is read."""

    def __init__(self, total_bytes: int | None = None) -> None:
        self._total_bytes = total_bytes
        self._bar: tqdm[Never] | None = None
        self._counts_bytes = False

    def phase(self, text: str) -> None:
        """Ends the bar before it and prints the phase."""
        self._close()
        print(text, file=sys.stderr)

    def round(self, number: int, pages: int, *, final: bool) -> None:
        """A new bar, in pages of this round."""
        name = "last round" if final else f"round {number}"
        self._start(total=pages, unit="page", desc=name)

    def pages(self, done: int, written_bytes: int) -> None:
        """Moves the bar."""
        if self._bar is None:
            self._start(total=self._total_bytes, unit="B", desc="restoring")
            self._counts_bytes = True
        bar = self._bar
        assert bar is not None  # just started
        if self._counts_bytes:
            bar.update(written_bytes - bar.n)
        else:
            bar.set_postfix_str(f"{written_bytes / MIB:.0f} MiB", refresh=False)
            bar.update(done)

    def _start(self, *, total: int | None, unit: str, desc: str) -> None:
        from tqdm import tqdm  # only where somebody looks: it costs as much to import as all the rest

        self._close()
        self._bar = tqdm(total=total, unit=unit, desc=desc, unit_scale=True, leave=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Lines:
    """A line for each phase and round, and one every few seconds of long ones."""

    def __init__(self, prog: str, out: TextIO) -> None:
        self._prog = prog
        self._out = out
        self._name = ""
        self._total = 0
        self._done = 0
        self._told_at = time.monotonic()

    def phase(self, text: str) -> None:
        """One line."""
        self._tell(text)

    def round(self, number: int, pages: int, *, final: bool) -> None:
        """One line."""
        self._name = "last round" if final else f"round {number}"
        self._total, self._done = pages, 0
        self._tell(f"{self._name}: {pages} pages to look at")

    def pages(self, done: int, written_bytes: int) -> None:
        """One line, if the last is some seconds old."""
        self._done += done
        if time.monotonic() - self._told_at >= LINE_EVERY_S:
            of = f" of {self._total}" if self._total else ""
            self._tell(f"{self._name or 'pages'}: {self._done}{of}, {written_bytes / MIB:.0f} MiB")

    def _tell(self, text: str) -> None:
        print(f"{self._prog}: {text}", file=self._out, flush=True)
        self._told_at = time.monotonic()
