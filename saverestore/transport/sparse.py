"""Writing a new regular file without the blocks that are all zero: holes, which read as zeroes and take no disk.

    buffers      │ header │ entries │ page │ zero │ zero │ zero │ … │ zero │ page │
    file blocks      │         │         │         │░░░░░░░░░│░░░░░░░░░│        │
                                               left out: blocks within a run of zero pages

Pages do not lie at the borders of blocks, as what comes before them has any length: of a run of zero pages the first
and the last block are written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saverestore.errors import TransportError
from saverestore.kernels.zero_pages import PAGE_WORDS, zero_pages
from saverestore.transport.fd import FdSink, nbytes_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PAGE_BYTES = 4096

SMALLEST_HOLE = 32 << 10
"""Shorter ones are written: each hole costs two calls, and the file system an extent."""


def _zero_runs(buffer: ReadableBuffer, begin: int) -> Iterator[tuple[int, int]]:
    """Runs of pages of a buffer that are all zero, as (begin, end) in terms of the file; short ones are left out."""
    pages = np.frombuffer(memoryview(buffer), dtype=np.uint64).reshape(-1, PAGE_WORDS)
    zero = zero_pages(pages)
    if not zero.any():
        return
    edges = np.diff(np.concatenate(([0], zero.view(np.int8), [0])))
    starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    # One at an edge may go on in the next buffer.
    long = ((stops - starts) * PAGE_BYTES >= SMALLEST_HOLE) | (starts == 0) | (stops == len(zero))
    for start, stop in zip(starts[long].tolist(), stops[long].tolist(), strict=True):
        yield begin + start * PAGE_BYTES, begin + stop * PAGE_BYTES


class SparseFileSink(FdSink):
    """An `FdSink` over a new, empty regular file. Its length is right after each call, holes or not."""

    def __init__(self, fd: int, name: str, *, close_fd: bool = True) -> None:
        super().__init__(fd, name, close_fd=close_fd)
        self._block_bytes = max(PAGE_BYTES, os.fstat(fd).st_blksize)
        self._hole_bytes = 0

    @property
    def stored_bytes(self) -> int:
        """How many bytes had to be written: all but the holes."""
        return self.offset - self._hole_bytes

    def write(self, data: ReadableBuffer) -> None:
        """Write all of one buffer as it is: pages come several buffers at a time."""
        super().writev((data,))

    def writev(self, buffers: Sequence[ReadableBuffer]) -> None:
        """Write all of `buffers`, in their order, but for blocks that are all zero."""
        holes = self._holes(buffers)
        if not holes:
            super().writev(buffers)
            return
        end = self.offset + sum(nbytes_of(buffer) for buffer in buffers)
        ends_in_hole = holes[-1][1] == end
        at = 0  # in `buffers`
        for begin, stop in [*holes, (end, end)]:
            at = self._write_part(buffers, at, begin - self.offset)
            self._leave_out(stop - begin)
            at += stop - begin
        if ends_in_hole:
            self._set_length()

    def _holes(self, buffers: Sequence[ReadableBuffer]) -> list[tuple[int, int]]:
        """Blocks to be left out, as (begin, end) in terms of the file. Holds no buffer when it returns."""
        runs: list[tuple[int, int]] = []
        at = self.offset
        for buffer in buffers:
            length = nbytes_of(buffer)
            if length and length % PAGE_BYTES == 0:
                for begin, end in _zero_runs(buffer, at):
                    if runs and runs[-1][1] == begin:
                        runs[-1] = (runs[-1][0], end)
                    else:
                        runs.append((begin, end))
            at += length
        block = self._block_bytes
        inner = ((-(-begin // block) * block, end // block * block) for begin, end in runs)
        return [(begin, end) for begin, end in inner if end - begin >= SMALLEST_HOLE]

    def _write_part(self, buffers: Sequence[ReadableBuffer], begin: int, length: int) -> int:
        """Write `length` bytes of all buffers taken together, from `begin` on: where these end."""
        parts: list[Any] = []
        end, at = begin + length, 0
        try:
            for buffer in buffers:
                size = nbytes_of(buffer)
                if at < end and at + size > begin:
                    with memoryview(buffer) as whole, whole.cast("B") as flat:
                        parts.append(flat[max(0, begin - at) : end - at])
                at += size
            super().writev(parts)
        finally:
            # No view of the caller's memory survives, see `_move_all`.
            for part in parts:
                part.release()
        return end

    def _leave_out(self, length: int) -> None:
        try:
            os.lseek(self.fileno(), length, os.SEEK_CUR)
        except OSError as error:
            raise self._failure(error) from error
        self.offset += length
        self._hole_bytes += length

    def _set_length(self) -> None:
        """The file ends in a hole: nothing was written there that would make it so long."""
        try:
            os.ftruncate(self.fileno(), self.offset)
        except OSError as error:
            raise TransportError(f"{self.name}: its length could not be set: {error.strerror}") from error
