"""Private copies of batches: what is digested, summed up and written is one and the same, whatever the domain does.

Its own memory may change in between, even while it is suspended: a backend completes what it had begun, the console's
writes into its ring. The copy also lets a worker unmap the pages at once, which takes longer than copying them.
"""

from __future__ import annotations

import threading

import numpy as np

from saverestore.guest.ports import U8, U64, Bool, PageBatch
from saverestore.interrupts import shield
from saverestore.stream.layout import PAGE_SIZE


class CopiedBatch(PageBatch):
    """Pages in private memory, which nobody else changes: `data`, shape (nr_data, 4096), and one buffer over it."""

    def __init__(
        self, pfns: U64, types: U8, data: U8, deferred: U64, lent: tuple[Copies, U8] | None = None
    ) -> None:
        self.data = data
        self._lent = lent
        super().__init__(pfns, types, [data.reshape(-1).data] if len(data) else [], deferred)

    def only(self, chosen: Bool) -> CopiedBatch:
        """The part of it that has these pfns, shape (len(pfns),). This one is closed, unless it is the same."""
        if chosen.all():
            return self
        with self:
            data = self.data[chosen[self.with_data]]
        return CopiedBatch(self.pfns[chosen], self.types[chosen], data, self.deferred)

    def close(self) -> None:
        """Its memory may be used for another."""
        lent, self._lent = self._lent, None
        if lent is not None:
            self.pages = ()
            copies, buffer = lent
            copies.take_back(buffer)


class Copies:
    """Makes copies, on any thread, in memory that is kept: fresh memory costs more than the copying.

    There is as much of it as there were batches at the same time.
    """

    def __init__(self, batch_pages: int) -> None:
        """`batch_pages`: as many pages of data as a batch may have."""
        self._shape = (batch_pages, PAGE_SIZE)
        self._lock = threading.Lock()
        self._free: list[U8] = []

    def of(self, batch: PageBatch) -> CopiedBatch:
        """The same pages in private memory; the batch itself is closed."""
        with batch:
            with self._lock:
                buffer = self._free.pop() if self._free else None
            if buffer is None:
                buffer = np.empty(self._shape, dtype=np.uint8)
            data = batch.copy_data(buffer)
        return CopiedBatch(batch.pfns, batch.types, data, batch.deferred, (self, buffer))

    def take_back(self, buffer: U8) -> None:
        """A batch is done with."""
        with shield(), self._lock:
            self._free.append(buffer)
