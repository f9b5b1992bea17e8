"""Which pages must be sent again: two sources behind one port.

    LogDirtySource   the hypervisor marks pages that were written. Only these are read again.
    DigestSource     everything is read again; what does not digest to what was sent is sent. Works for every
                     domain on every Xen, and costs a pass over memory for each round.

A digest is of bytes that were *sent*, so what is digested and written is one copy (see `copies`).
Digesting the domain's own memory instead would lose pages: a page A that becomes B between the digest and the
write, and A again later, would digest as unchanged although B was sent.
"""

from __future__ import annotations

import logging
from typing import Protocol

import numpy as np

from saverestore.engine.copies import CopiedBatch
from saverestore.errors import Advice, Remedy, advise
from saverestore.guest.ports import U64, Bool, LogDirty, LogDirtyUnavailable, SaveGuest
from saverestore.kernels.xxh3 import page_digests

LOG = logging.getLogger(__name__)

# No page has it: marks a pfn of which nothing was sent yet.
NEVER_SENT = 0xFF


class DirtySource(Protocol):
    """Says which pfns to read in a round, and which of the pages read are to be sent."""

    name: str

    select_copies: bool
    """Whether `select` may copy part of a batch once more: batches are smaller then."""

    def start_round(self, *, final: bool) -> U64:
        """Pfns to read in this round, sorted. Before the first round's pages are read, this starts tracking."""

    def known_dirty(self) -> int | None:
        """How many pages are known to be waiting for the next round; None when only reading tells."""

    def select(self, batch: CopiedBatch) -> CopiedBatch:
        """The part of a batch that must be sent. May be called on any thread, for one batch at a time a pfn."""

    def close(self) -> None:
        """Stop tracking. Twice is fine."""


class EverythingOnce:
    """No tracking: the domain is suspended, everything is sent in one round."""

    name = "none"
    select_copies = False

    def __init__(self, nr_pfns: int) -> None:
        self._nr_pfns = nr_pfns

    def start_round(self, *, final: bool) -> U64:
        """All pfns."""
        return np.arange(self._nr_pfns, dtype=np.uint64)

    def known_dirty(self) -> int | None:
        """None are waiting."""
        return 0

    def select(self, batch: CopiedBatch) -> CopiedBatch:
        """All of it."""
        return batch

    def close(self) -> None:
        """Nothing to stop."""


class LogDirtySource:
    """Pages that the hypervisor saw written."""

    name = "log"
    select_copies = False

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

    def select(self, batch: CopiedBatch) -> CopiedBatch:
        """All of it: the hypervisor said so."""
        return batch

    def close(self) -> None:
        """Log-dirty off."""
        self._log.close()


class DigestSource:
    """Pages that are no longer what was sent. 17 bytes of memory for each pfn."""

    name = "digest"
    select_copies = True

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

    def select(self, batch: CopiedBatch) -> CopiedBatch:
        """Pages whose content or type is not what was sent last."""
        digests = page_digests(batch.data)
        changed = self._types[batch.pfns] != batch.types
        with_data = batch.with_data
        changed[with_data] |= (self._digests[batch.pfns[with_data]] != digests).any(axis=1)
        self._types[batch.pfns] = batch.types
        self._digests[batch.pfns[with_data]] = digests
        return batch.only(changed)

    def close(self) -> None:
        """Nothing to stop."""


def open_dirty_source(guest: SaveGuest, wanted: str, *, live: bool) -> tuple[DirtySource, str]:
    """Start tracking: the hypervisor's log-dirty where there is one, content digests elsewhere; and the words for it.

    `wanted`: "auto", "log" or "digest". LogDirtyUnavailable when it must be the log and there is none.
    """
    if not live:
        return EverythingOnce(guest.nr_pfns), ""
    why = ""
    if wanted != "digest":
        try:
            return LogDirtySource(guest), "dirty pages are tracked by the hypervisor's log-dirty"
        except LogDirtyUnavailable as error:
            if wanted == "log":
                advise(error, Advice(Remedy.DIRTY_BY_DIGEST))
                raise
            LOG.info("%s", error)
            why = ": Xen cannot log them"
    return DigestSource(guest.nr_pfns), f"dirty pages are tracked by content digests{why}"
