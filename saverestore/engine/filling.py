"""Pages on their way from the stream into a domain: while it takes some, the next ones are read.

    caller's thread      │ read 1 │ read 2 │ read 3 │ …            the source, digests, decoding
    thread of its own             │ fill 1 │ fill 2 │ fill 3 │     memory for the domain, mapping, copying, unmapping

One thread fills, so pages arrive in the order of the stream, in which a later version replaces an earlier one. The
copy in between is what it costs; on one processor nothing would be gained by it, and none is made. Zero pages that
the record does not carry are no part of it: these are made where they belong.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np

from saverestore.errors import Interrupted
from saverestore.guest.ports import U8, U64, Bool, PageWindow, RestoreGuest
from saverestore.interrupts import result_of, shield
from saverestore.kernels.copying import spread_pages
from saverestore.stream.codecs import Codec
from saverestore.stream.layout import PAGE_SIZE
from saverestore.stream.reader import LibxcReader, PageData

BUFFER_PAGES = 4096
"""The most that we put into one record, Xen's own tools a quarter; a larger one is read straight into the domain."""

BUFFERS = 3
"""One that is read into, one that is filled from, one between them."""


class PageFiller:
    """Brings the pages of records into a domain; a context manager, at whose end nothing is under way any more.

    What fails is raised where it is noticed: by a later `put`, by `drain`, or at the end of the block, instead of
    what failed there later on, unless that was a signal.
    """

    def __init__(self, reader: LibxcReader, guest: RestoreGuest, *, workers: int) -> None:
        self._reader = reader
        self._guest = guest
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fill") if workers > 1 else None
        self._free: list[U8] = []
        self._nr_buffers = 0
        self._begun: deque[tuple[Future[None], U8]] = deque()
        self._failed = False

    def put(self, record: PageData) -> None:
        """Read the pages of the reader's last record, and have them filled in: now or soon."""
        types: U8 = record.types
        # Changes to a page can only be read over that page, which must be there.
        if self._pool is None or record.codec is Codec.XOR or record.nr_data > BUFFER_PAGES:
            self.drain()
            self._read_into_domain(record, types)
            return
        buffer = self._buffer()
        zero = self._reader.read_carried(buffer.data)
        with shield():  # what was begun must be known to whoever waits for it
            self._begun.append((self._pool.submit(self._fill, record.pfns, types, buffer, zero), buffer))

    def drain(self) -> None:
        """Wait until all pages that were put are the domain's."""
        while self._begun:
            self._finish_first()

    def _buffer(self) -> U8:
        if not self._free and self._nr_buffers < BUFFERS:
            self._nr_buffers += 1
            return np.empty(BUFFER_PAGES * PAGE_SIZE, dtype=np.uint8)
        if not self._free:
            self._finish_first()
        return self._free.pop()

    def _finish_first(self) -> None:
        future, buffer = self._begun[0]
        result_of(future)
        self._begun.popleft()
        self._free.append(buffer)

    def _fill(self, pfns: U64, types: U8, carried: U8, zero: Bool) -> None:
        """`carried`: begins with the pages that are not `zero`."""
        if self._failed:  # which is told already, or soon will be
            return
        try:
            self._fill_window(self._guest.write_pages(pfns, types), carried, zero)
        except BaseException:
            self._failed = True
            raise

    @staticmethod
    def _fill_window(window: PageWindow, carried: U8, zero: Bool) -> None:
        try:
            page = at = 0
            for one in window.buffers:
                with memoryview(one).cast("B") as flat:
                    is_zero = zero[page : page + flat.nbytes // PAGE_SIZE]
                    part = carried[at : at + np.count_nonzero(~is_zero) * PAGE_SIZE]
                    spread_pages(np.frombuffer(flat, dtype=np.uint8), part, is_zero)
                    page, at = page + len(is_zero), at + len(part)
            window.commit()
        finally:
            window.close()

    def _read_into_domain(self, record: PageData, types: U8) -> None:
        window: PageWindow | None = None
        try:
            with shield():  # what was mapped must be known to whoever unmaps it
                window = self._guest.write_pages(record.pfns, types)
            if record.nr_data:
                self._reader.read_pages(window.buffers)
            window.commit()
            with shield():
                window.close()
        except BaseException:
            if window is not None:
                window.close()  # once more, if a signal came at its beginning
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        first: BaseException | None = None
        with shield():
            for future, _ in self._begun:
                failed = None if future.cancel() else future.exception()
                first = first or failed
            self._begun.clear()
            if self._pool is not None:
                self._pool.shutdown(wait=True)
        if first is not None and first is not error and not isinstance(error, Interrupted):
            raise first from error
