"""Private copies of batches: what is digested, summed up and written is one and the same, whatever the domain does.

Its own memory may change in between, even while it is suspended: a backend completes what it had begun, the console's
writes into its ring. The copy also lets a worker unmap the pages at once, which takes longer than copying them.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np

from saverestore.guest.ports import U8, U64, Bool, PageBatch
from saverestore.interrupts import shield
from saverestore.stream.layout import PAGE_SIZE


class CopiedBatch(PageBatch):
    """Pages in private memory, which nobody changes: `data`, shape (nr_data, 4096), and one buffer over it.

    `zero`, shape (nr_data,): which of them are all zero.
    """

    def __init__(
        self,
        pfns: U64,
        types: U8,
        data: U8,
        zero: Bool,
        deferred: U64,
        lent: tuple[Copies, _Memory] | None = None,
    ) -> None:
        self.data = data
        self.zero = zero
        self._lent = lent
        super().__init__(pfns, types, [data.reshape(-1).data] if len(data) else [], deferred)

    def only(self, chosen: Bool) -> CopiedBatch:
        """The part of it that has these pfns, shape (len(pfns),). This one is closed, unless it is the same."""
        if chosen.all():
            return self
        with self:
            of_data = chosen[self.with_data]
            data, zero = self.data[of_data], self.zero[of_data]
        return CopiedBatch(self.pfns[chosen], self.types[chosen], data, zero, self.deferred)

    def close(self) -> None:
        """Its memory may be used for another."""
        lent, self._lent = self._lent, None
        if lent is not None:
            self.pages = ()
            copies, memory = lent
            copies.take_back(memory)


class _Memory(NamedTuple):
    """For one batch; `zero` says which of its pages are all zero."""

    pages: U8
    zero: Bool


class Copies:
    """Makes copies, on any thread, in memory that is kept: fresh memory costs more than the copying.

    There is as much of it as there were batches at the same time.
    """

    def __init__(self, batch_pages: int) -> None:
        """`batch_pages`: as many pages of data as a batch may have."""
        self._batch_pages = batch_pages
        self._lock = threading.Lock()
        self._free: list[_Memory] = []

    def of(self, batch: PageBatch) -> CopiedBatch:
        """The same pages in private memory; the batch itself is closed."""
        with batch:
            with self._lock:
                memory = self._free.pop() if self._free else None
            if memory is None:
                memory = _Memory(_pages(self._batch_pages), np.zeros(self._batch_pages, dtype=bool))
            data = batch.copy_data(*memory)
        return CopiedBatch(
            batch.pfns, batch.types, data, memory.zero[: len(data)], batch.deferred, (self, memory)
        )

    def take_back(self, memory: _Memory) -> None:
        """A batch is done with."""
        with shield(), self._lock:
            self._free.append(memory)


def _pages(nr_pages: int) -> U8:
    """Memory that begins where a page does: copies to elsewhere take a third longer (`kernels/copying.h`)."""
    memory = np.empty((nr_pages + 1) * PAGE_SIZE, dtype=np.uint8)
    begin = -memory.ctypes.data % PAGE_SIZE
    return memory[begin : begin + nr_pages * PAGE_SIZE].reshape(nr_pages, PAGE_SIZE)
