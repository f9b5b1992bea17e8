"""Which pages must be sent again: two sources behind one port.

    LogDirtySource   the hypervisor marks pages that were written. Only these are read again.
    DigestSource     everything is read again; what does not digest to what was sent is sent. Works for every
                     domain on every Xen, and costs a pass over memory for each round.

A digest is of bytes that were *sent*, so a batch is copied first, and the copy is both digested and written.
Digesting the domain's own memory instead would lose pages: a page A that becomes B between the digest and the
write, and A again later, would digest as unchanged although B was sent.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from saverestore.guest.ports import U8, U64, Bool, LogDirty, PageBatch, SaveGuest
from saverestore.kernels.page_digests import page_digests
from saverestore.kernels.zero_pages import PAGE_WORDS, zero_pages
from saverestore.stream.layout import PAGE_SIZE

# No page has it: marks a pfn of which nothing was sent yet.
NEVER_SENT = 0xFF


class DirtySource(Protocol):
    """Says which pfns to read in a round, and which of the pages read are to be sent."""

    name: str

    def start_round(self, *, final: bool) -> U64:
        """Pfns to read in this round, sorted. Before the first round's pages are read, this starts tracking."""

    def known_dirty(self) -> int | None:
        """How many pages are known to be waiting for the next round; None when only reading tells."""

    def select(self, batch: PageBatch) -> PageBatch:
        """The part of a batch that must be sent. May be called on any thread, for one batch at a time a pfn."""

    def close(self) -> None:
        """Stop tracking. Twice is fine."""


class EverythingOnce:
    """No tracking: the domain is suspended, everything is sent in one round."""

    name = "none"

    def __init__(self, nr_pfns: int) -> None:
        self._nr_pfns = nr_pfns

    def start_round(self, *, final: bool) -> U64:
        """All pfns."""
        return np.arange(self._nr_pfns, dtype=np.uint64)

    def known_dirty(self) -> int | None:
        """None are waiting."""
        return 0

    def select(self, batch: PageBatch) -> PageBatch:
        """All of it."""
        return batch

    def close(self) -> None:
        """Nothing to stop."""


class LogDirtySource:
    """Pages that the hypervisor saw written."""

    name = "log"

    def __init__(self, guest: SaveGuest) -> None:
        self._nr_pfns = guest.nr_pfns
        self._log: LogDirty = guest.open_log_dirty()
        self._waiting: Bool | None = None
        self._started = False

    def start_round(self, *, final: bool) -> U64:
        """All pfns at first, later those written since the round before began."""
        if not self._started and not final:
            self._started = True
            return np.arange(self._nr_pfns, dtype=np.uint64)
        dirty = self._log.take(final=final)
        if self._waiting is not None:
            dirty = dirty | self._waiting
            self._waiting = None
        return np.flatnonzero(dirty).astype(np.uint64)

    def known_dirty(self) -> int | None:
        """Asks the hypervisor; what it told is kept for the next round."""
        fresh = self._log.take()
        self._waiting = fresh if self._waiting is None else self._waiting | fresh
        return int(np.count_nonzero(self._waiting))

    def select(self, batch: PageBatch) -> PageBatch:
        """All of it: the hypervisor said so."""
        return batch

    def close(self) -> None:
        """Log-dirty off."""
        self._log.close()


class CopiedBatch(PageBatch):
    """Pages in private memory: nobody else changes them."""

    def __init__(self, pfns: U64, types: U8, pages: U8, deferred: U64) -> None:
        buffers = [pages.reshape(-1).data] if len(pages) else []
        super().__init__(pfns, types, buffers, deferred)


def copied(batch: PageBatch) -> CopiedBatch:
    """The same pages in private memory; the batch itself is closed."""
    if isinstance(batch, CopiedBatch):
        return batch
    with batch:
        pages = batch.copy_data(np.empty((batch.nr_data, PAGE_SIZE), dtype=np.uint8))
    return CopiedBatch(batch.pfns, batch.types, pages, batch.deferred)


def zero_pages_in(batch: PageBatch) -> int:
    """How many pages of a batch are all zero. Of memory that changes meanwhile: at some moment."""
    return sum(
        int(np.count_nonzero(zero_pages(np.frombuffer(run, dtype=np.uint64).reshape(-1, PAGE_WORDS))))
        for run in batch.pages
    )


class DigestSource:
    """Pages that are no longer what was sent. 17 bytes of memory for each pfn."""

    name = "digest"

    def __init__(self, nr_pfns: int) -> None:
        self._nr_pfns = nr_pfns
        self._digests = np.zeros((nr_pfns, 2), dtype=np.uint64)
        self._types = np.full(nr_pfns, NEVER_SENT, dtype=np.uint8)

    def start_round(self, *, final: bool) -> U64:
        """All pfns at first and at last; those that were sent in between: new ones wait for the last round."""
        sent = np.flatnonzero(self._types != NEVER_SENT)
        if final or not len(sent):
            return np.arange(self._nr_pfns, dtype=np.uint64)
        return sent.astype(np.uint64)

    def known_dirty(self) -> int | None:
        """Not known before everything is read again."""
        return None

    def select(self, batch: PageBatch) -> PageBatch:
        """Pages whose content or type is not what was sent last; the batch itself is closed."""
        with batch:
            pages = batch.copy_data(np.empty((batch.nr_data, PAGE_SIZE), dtype=np.uint8))
        digests = page_digests(pages)
        changed = self._types[batch.pfns] != batch.types
        with_data = batch.with_data
        changed[with_data] |= (self._digests[batch.pfns[with_data]] != digests).any(axis=1)
        self._types[batch.pfns] = batch.types
        self._digests[batch.pfns[with_data]] = digests
        sent = changed[with_data]
        if not sent.all():  # in the first round all are sent: a second copy would double what the batch takes
            pages = pages[sent]
        return CopiedBatch(batch.pfns[changed], batch.types[changed], pages, batch.deferred)

    def close(self) -> None:
        """Nothing to stop."""
