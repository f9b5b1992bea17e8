"""PAGE_DATA records coded on workers, ahead of the one being written, in order: for images made of other images.

this thread:  pages read into a buffer ─► worker: code, sum up ─┐
              the next buffer          ─► worker                ├─► this thread writes, in order
                   at most as many buffers as workers, and two ──┘
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from saverestore.interrupts import result_of, shield
from saverestore.stream.layout import U64Array
from saverestore.stream.writer import LibxcWriter, PreparedPages

U8 = npt.NDArray[np.uint8]


class CodingAhead:
    """Codes for one writer. Leaving the block ends the threads, and loses what has not been written by `drain`."""

    def __init__(self, writer: LibxcWriter, *, buffer_bytes: int, workers: int) -> None:
        self._writer = writer
        self._buffer_bytes = buffer_bytes
        self._depth = max(2, workers)  # each of a record of 16 MiB, and of what it is coded into
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="coding")
        self._spare: list[U8] = []
        self._nr_made = 0
        self._begun: deque[tuple[U8, Future[PreparedPages]]] = deque()

    def buffer(self) -> U8:
        """Room for the pages of the next record; records are written until there is some."""
        if not self._spare and self._nr_made < self._depth:
            self._nr_made += 1
            return np.empty(self._buffer_bytes, dtype=np.uint8)
        if not self._spare:
            self._write_first()
        return self._spare.pop()

    def page_data(self, entries: U64Array, buffer: U8, used_bytes: int) -> None:
        """Have a record coded whose pages begin a buffer that `buffer` gave; it is written later, in its turn."""
        pages = [buffer[:used_bytes].data] if used_bytes else []
        with shield():  # what was begun must also be in the queue
            coded = self._pool.submit(self._writer.prepare_pages, entries, pages, may_change=True)
            self._begun.append((buffer, coded))

    def drain(self) -> None:
        """Write all that was given."""
        while self._begun:
            self._write_first()

    def _write_first(self) -> None:
        buffer, future = self._begun[0]
        self._writer.write_prepared(result_of(future))
        self._begun.popleft()
        self._spare.append(buffer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with shield():
            for _, future in self._begun:
                future.cancel()
            self._pool.shutdown(wait=True)
            self._begun.clear()
