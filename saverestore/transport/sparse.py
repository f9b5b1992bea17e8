"""Writing a new regular file without the blocks that are all zero: holes, which read as zeroes and take no disk.

    buffers      │ header │ entries │ page │ zeros           │ page │
    file blocks      │         │         │         │░░░░░░░░░│        │
                                                  left out: whole blocks within a run of zeroes

Pages do not lie at the borders of blocks, as what comes before them has any length: of a run of zero pages the first
and the last block are written. Whoever gives the pages marks what is zero (`zeros`); nothing is looked at here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from saverestore.kernels.page import PAGE_SIZE
from saverestore.kernels.zeros import SMALLEST_RUN, are_zeros, zeros
from saverestore.transport.cache import Cache
from saverestore.transport.fd import FdSink, nbytes_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class SparseFileSink(FdSink):
    """An `FdSink` over a new, empty regular file. Its length is right after each call, holes or not."""

    def __init__(self, fd: int, name: str, *, close_fd: bool = True) -> None:
        super().__init__(fd, name, close_fd=close_fd)
        self._block_bytes = max(PAGE_SIZE, os.fstat(fd).st_blksize)
        self._hole_bytes = 0

    @property
    def leaves_holes(self) -> bool:
        """See ImageSink."""
        return True

    @property
    def cache(self) -> Cache:
        """How it writes."""
        return Cache.PAGE

    def use_page_cache(self) -> None:
        """From now on have each write with the kernel when it returns, through the page cache."""

    @property
    def stored_bytes(self) -> int:
        """How many bytes had to be written: all but the holes."""
        return self.offset - self._hole_bytes

    def write(self, data: ReadableBuffer) -> None:
        """Write all of one buffer as it is: pages come several buffers at a time."""
        self._write_data((data,))

    def writev(self, buffers: Sequence[ReadableBuffer]) -> None:
        """Write all of `buffers`, in their order, but for blocks that are marked as zeroes."""
        ends_in_hole = False
        for data, hole_bytes in self._without_holes(buffers):
            self._write_data(data)
            if hole_bytes:
                self._leave_hole(hole_bytes)
            ends_in_hole = hole_bytes > 0
        if ends_in_hole:
            self._end_in_hole()

    def _without_holes(self, buffers: Sequence[ReadableBuffer]) -> Iterator[tuple[list[ReadableBuffer], int]]:
        """What of `buffers` is to be written, in parts, and how many bytes of a hole follow each."""
        waiting: list[ReadableBuffer] = []
        at = self.offset
        for is_zero, group in groupby(buffers, key=are_zeros):
            run = list(group)
            begin, at = at, at + sum(nbytes_of(buffer) for buffer in run)
            first, last = self._blocks_within(begin, at)
            if not is_zero or last - first < SMALLEST_RUN:
                waiting += run
                continue
            yield [*waiting, *zeros(first - begin)], last - first
            waiting = [*zeros(at - last)]
        if any(map(nbytes_of, waiting)):
            yield waiting, 0

    def _write_data(self, buffers: Sequence[ReadableBuffer]) -> None:
        """Write all of these where the file ends, and count them."""
        super().writev(buffers)

    def _leave_hole(self, nr_bytes: int) -> None:
        """Pass over so many bytes, whole blocks, where the file ends, and count them."""
        self.offset += nr_bytes
        self._hole_bytes += nr_bytes

    def _end_in_hole(self) -> None:
        """Everything of a call was written, and the last of it was a hole."""
        self._set_length()

    def _blocks_within(self, begin: int, end: int) -> tuple[int, int]:
        """The part of a range of the file that is whole blocks; its end may come before its beginning."""
        block = self._block_bytes
        return -(-begin // block) * block, end // block * block

    def _writev(self, buffers: list[Any]) -> int:
        """One pwritev: the file's own position stays where it is, and a hole needs no call."""
        try:
            moved = os.pwritev(self.fileno(), buffers, self.offset)
        except OSError as error:
            raise self._failure(error) from error
        self.offset += moved
        return moved

    def _set_length(self) -> None:
        """The file ends in a hole: nothing was written there that would make it so long."""
        try:
            os.ftruncate(self.fileno(), self.offset)
        except OSError:
            # A file system may have no truncate. Writing the last byte does it, and says what is wrong if that fails.
            self.offset -= 1
            super().writev((bytes(1),))
