"""What is looked at before anything is done: once by the real commands, and by `--dry-run` to tell of it all.

The real commands stop at the first thing that stands in the way; a dry run goes on and tells each.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from saverestore.errors import ExitCode, Interrupted, SaveRestoreError
from saverestore.guest.ports import SaveGuest
from saverestore.stream.layout import PAGE_SIZE, has_memory

SAMPLE_PFNS = 1 << 14
SAMPLE_BATCH = 1 << 11


@dataclass
class Findings:
    """What was found: `facts`, a line each, and `errors`, what stands in the way.

    `dry`: nothing is going to be done, so an error is noted and the next thing is looked at.
    """

    dry: bool = False
    facts: list[str] = field(default_factory=list)
    errors: list[SaveRestoreError] = field(default_factory=list)

    def note(self, text: str) -> None:
        """A fact for whoever asked for a dry run."""
        if self.dry:
            self.facts.append(text)

    @contextmanager
    def check(self) -> Iterator[None]:
        """One thing to look at; what it raises stands in the way."""
        try:
            yield
        except SaveRestoreError as error:
            if not self.dry or isinstance(error, Interrupted):
                raise
            self.errors.append(error)

    @property
    def exit_code(self) -> ExitCode:
        """What the real command would end with."""
        return self.errors[0].exit_code if self.errors else ExitCode.DONE


def reading_rate(guest: SaveGuest) -> float:
    """Bytes a second at which this domain's memory can be read now, measured on some of it. It goes on running."""
    done, at = 0, 0
    started = time.monotonic()
    while done < SAMPLE_PFNS and at < guest.nr_pfns:
        pfns = np.arange(at, min(at + SAMPLE_BATCH, guest.nr_pfns), dtype=np.uint64)
        if (types := guest.types_of(pfns)) is not None:
            pfns = pfns[has_memory(types)]
        at += SAMPLE_BATCH
        if not len(pfns):
            continue
        with guest.read_pages(pfns, final=False) as batch:
            copy = np.empty((batch.nr_data, PAGE_SIZE), dtype=np.uint8)
            batch.copy_data(copy)
            done += batch.nr_data
    return done * PAGE_SIZE / max(time.monotonic() - started, 1e-6)


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    for unit, unit_s, until_s in (("min", 60, 90 * 60), ("h", 3600, 48 * 3600)):
        if seconds < until_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
