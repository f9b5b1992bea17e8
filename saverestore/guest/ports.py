"""The ports through which the engine sees a domain, and nothing else of it.

A save reads from a `SaveGuest`, a restore writes to a `RestoreGuest`. Real domains (`guest.x86`) and the
in-memory guest (`testing.guest`) implement both and pass one contract suite. Nothing here knows Xen.

    SaveGuest                                       RestoreGuest
      static_records()   what never changes           take(record)         before pages: X86_PV_INFO, policies …
      memory_records()   what precedes pages          static_data_done()
      read_pages(pfns)   a batch, mapped              write_pages(batch)   a batch, mapped, to be filled
      open_log_dirty()   which pages were written     take(record)         after pages: TSC, vCPUs, params …
      suspend(), resume()                             complete()           everything set: ready to run
      end_records()      vCPUs, devices
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from saverestore.errors import DomainError, ErrorName
from saverestore.interrupts import shield
from saverestore.kernels.copying import copy_pages
from saverestore.stream.layout import PAGE_SIZE, DomainType, entries_of, has_data
from saverestore.stream.records import Record

U8: TypeAlias = npt.NDArray[np.uint8]
U64: TypeAlias = npt.NDArray[np.uint64]
Bool: TypeAlias = npt.NDArray[np.bool_]


class LogDirtyUnavailable(DomainError):
    """The hypervisor keeps no record of written pages for this domain; the text says why."""

    name = ErrorName.LOG_DIRTY_UNAVAILABLE


@dataclass
class PageBatch(AbstractContextManager["PageBatch"]):
    """Pages read from a domain: what PAGE_DATA says of them, and their bytes.

    `pages` are buffers that, one after the other, hold a page for each pfn whose type has data, in the
    order of `pfns`; they may be the domain's own memory, mapped, which changes while the domain runs.
    `deferred` are pfns that were asked for but could not be read now: not among `pfns`, to be read again.
    After the `with` block the buffers are gone.
    """

    pfns: U64
    types: U8
    pages: Sequence[memoryview]
    deferred: U64 = field(default_factory=lambda: np.empty(0, dtype=np.uint64))

    def __post_init__(self) -> None:
        self.with_data: Bool = has_data(self.types)

    @property
    def entries(self) -> U64:
        """Pfns and types as PAGE_DATA carries them."""
        return entries_of(self.pfns, self.types)

    @property
    def nr_data(self) -> int:
        """How many of the pfns have a page of data."""
        return int(np.count_nonzero(self.with_data))

    def copy_data(self, out: U8, zero: Bool | None = None) -> U8:
        """Copy all pages into `out`, shape (>= nr_data, 4096): the part that was filled.

        `zero`, shape (len(out),): which pages of `out` are all zero, before and afterwards. See `copy_pages`.
        """
        filled = out[: self.nr_data]
        if zero is None:
            zero = np.zeros(len(filled), dtype=bool)
        at = 0
        for page_run in self.pages:
            to = slice(at, at + len(page_run) // PAGE_SIZE)
            copy_pages(filled[to], page_run, zero[to])
            at = to.stop
        return filled

    def close(self) -> None:
        """Give the buffers back. Twice is fine."""

    def __exit__(self, *_: object) -> None:
        with shield():  # closed halfway, it could not be closed again
            self.close()


class PageWindow(Protocol):
    """Pages of a domain about to be restored: buffers to be filled, then `commit`ted."""

    @property
    def buffers(self) -> Sequence[memoryview]:
        """Writable; one after the other they take a page for each pfn that has data."""

    def commit(self) -> None:
        """All buffers are full: make them the domain's. PV page tables are localised here."""

    def close(self) -> None:
        """Give the buffers back, committed or not."""


class LogDirty(Protocol):
    """The hypervisor's record of written pages; on until closed."""

    def take(self, *, final: bool = False) -> Bool:
        """Which pfns were written since the last call, shape (nr_pfns,), and start afresh."""

    def close(self) -> None:
        """Turn it off. Twice is fine."""


class Throttle(Protocol):
    """Takes processor time from a running domain, and gives it back."""

    def limit(self, cpu_percent: int) -> None:
        """Leave it so much of the processor time that it had before anything was taken."""

    def lift(self) -> None:
        """Give it back all that it had. Nothing when nothing was taken; twice is fine."""


class SaveGuest(Protocol):
    """A domain to be saved."""

    @property
    def domain_type(self) -> DomainType:
        """What the stream's domain header says."""

    @property
    def xen_version(self) -> tuple[int, int]:
        """The running Xen, major and minor."""

    @property
    def nr_pfns(self) -> int:
        """Pfns go from 0 to one less than this; there may be holes. Bounds every array and bitmap."""

    @property
    def populated_pages(self) -> int:
        """How many pages the domain has now: the estimate that free space is checked against."""

    def static_records(self) -> list[Record]:
        """What cannot change while the domain runs."""

    def memory_records(self) -> list[Record]:
        """What a reader needs before pages."""

    def types_of(self, pfns: U64) -> U8 | None:
        """The `PageType` of each pfn, so that holes need not be read: XTAB only where there is no memory.

        None where telling takes as long as reading does: any may have memory. From several threads.
        """

    def read_pages(self, pfns: U64, *, final: bool, types: U8 | None = None) -> PageBatch:
        """Map these pages and bring them into the stream's form; may be called from several threads.

        `types`: as `types_of` told them not long ago, so that nobody is asked again; None: not asked yet.
        Until `final`, a page that cannot be read just now is deferred; then (the domain is suspended) it is
        a DomainError naming the pfn. Pfns without memory are XTAB; of a PV guest, deferred until final.
        """

    def check_layout(self) -> None:
        """Raise DomainError when the domain moved its p2m since `memory_records`: the image would be wrong."""

    def open_log_dirty(self) -> LogDirty:
        """Start the hypervisor's record of written pages; LogDirtyUnavailable where there is none."""

    def suspend(self) -> None:
        """Ask the guest to suspend itself, and wait for it. DomainError when it does not; it then runs."""

    def resume(self) -> None:
        """Let it go on after `suspend`. Does nothing when it was not suspended by us."""

    def end_records(self) -> list[Record]:
        """Processors and devices of the suspended domain."""

    def close(self) -> None:
        """Unmap everything. Twice is fine."""


@dataclass(frozen=True)
class Channels:
    """The two event channels made for a restored domain, and the domains at their other ends."""

    store_port: int
    console_port: int
    store_domid: int = 0
    console_domid: int = 0


@dataclass(frozen=True)
class RestoredPages:
    """Where a restored domain has its rings: frames as the toolstack introduces them (PV: mfns)."""

    store_gfn: int
    console_gfn: int


class RestoreGuest(Protocol):
    """A fresh domain to be filled from an image."""

    def take(self, record: Record) -> None:
        """Apply or keep any record that is not PAGE_DATA. ImageError when it does not fit this domain."""

    def static_data_done(self) -> None:
        """All static data has been taken: the CPU policy is set now."""

    def write_pages(self, pfns: U64, types: U8) -> PageWindow:
        """Give the domain memory where it has none yet, and map what has data."""

    def complete(self, channels: Channels) -> RestoredPages:
        """Everything has been read: set processors, pin tables, seed grants. The domain is still paused."""

    def close(self) -> None:
        """Unmap everything; the domain is left as it is. Twice is fine."""


def runs_of(values: npt.NDArray[np.integer]) -> list[tuple[int, int]]:
    """Start and stop of each run of equal values, in order."""
    if not len(values):
        return []
    cuts = [0, *(int(i) for i in np.flatnonzero(np.diff(values)) + 1), len(values)]
    return list(pairwise(cuts))


def gather_runs(mapped: memoryview, staged: memoryview, is_staged: Bool, dropped: Bool) -> list[memoryview]:
    """Buffers for a batch of mapped pages, some of which have a private copy and some of which are left out.

    Page i lies in `staged` (at its rank among the staged ones) where `is_staged[i]`, else in `mapped` at i;
    it is left out where `dropped[i]`. One buffer for each run: a batch without page tables is one buffer.
    """
    if not is_staged.any() and not dropped.any():
        return [mapped]
    rank: npt.NDArray[np.intp] = np.cumsum(is_staged) - is_staged
    buffers = []
    for start, stop in runs_of(is_staged.astype(np.int8) + 2 * dropped.astype(np.int8)):
        if dropped[start]:
            continue
        source, at = (staged, int(rank[start])) if is_staged[start] else (mapped, start)
        buffers.append(source[at * PAGE_SIZE : (at + stop - start) * PAGE_SIZE])
    return buffers
