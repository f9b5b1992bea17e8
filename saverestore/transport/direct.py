"""Writing a new file past the page cache: O_DIRECT, from aligned buffers, by threads of its own.

    writev ─► copy into a buffer of 4 MiB ─► full: a thread writes it ─► disk
              next buffer                 ─► another thread           ─►
              zeroes: the buffer ends at a whole block, the next begins behind the hole
              less than 128 KiB between two holes, and the file's end ─► page cache

A file in the page cache is written twice: into memory, and from there to the disk, most of it only when fsync() asks
for it. On a host with little memory (dom0) the writer is slowed down to the disk's rate besides, and what others have
in the cache is lost. Direct writes are on the disk when they return, and fsync() finds little to do.

O_DIRECT wants offset, length and memory aligned to the device's sectors. All buffers begin at whole blocks, and end
there, too: only the end of the file may lie amid one. Many small direct writes would each wait for the disk, where
the page cache puts them together: those go there. No page of the file is written both ways.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saverestore.errors import TransportError, name_of_errno
from saverestore.interrupts import result_of, shield
from saverestore.kernels.page import PAGE_SIZE
from saverestore.transport.cache import Cache, no_direct
from saverestore.transport.fd import nbytes_of, remedies_of_errno
from saverestore.transport.safety import file_system_of, is_in_memory
from saverestore.transport.sparse import SparseFileSink

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

LOG = logging.getLogger(__name__)

ALIGNMENT = PAGE_SIZE
"""Of offset, length and memory. No device that Linux takes by default has larger sectors."""

BUFFER_BYTES = 4 << 20
"""The largest request that usual disks take at once. Larger buffers were no faster, and take memory."""

SMALL_BUFFER_BYTES = 2 << 20
"""Behind a compressor, which needs memory of its own, and is slower than most disks."""

WRITERS = 2
"""Threads: while the end of one write is on its way back, the disk has another."""

BUFFERS = WRITERS + 1

SMALLEST_DIRECT = 128 << 10
"""What is less, between two holes, goes through the page cache."""

COMPRESSING = frozenset({"btrfs", "bcachefs"})
"""File systems that may compress what goes through the page cache, and store as it is what is written directly."""

REFUSED = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
"""What a file system answers that takes O_DIRECT when a file is opened, but not this write."""

U8 = np.ndarray[tuple[int], np.dtype[np.uint8]]


class DirectFileSink(SparseFileSink):
    """A `SparseFileSink` that writes directly where the file system takes it. The bytes and holes are the same.

    What was given has been copied when a call returns, and is with the kernel after `finish` only; only then has the
    file its length. A write that failed is told by a later call, with its own place; then the sink is of no use.
    Where the file system refuses a direct write after all, that and all later ones go through the page cache.

    `close` ends its threads: it waits for what they are writing, 8 MiB at most. What was not written by `finish` is
    lost.
    """

    def __init__(
        self, fd: int, name: str, *, close_fd: bool = True, buffer_bytes: int = BUFFER_BYTES
    ) -> None:
        """Over a new, empty file, which `open_directly` opens once more.

        `buffer_bytes`: a multiple of ALIGNMENT.
        """
        super().__init__(fd, name, close_fd=close_fd)
        self._direct_fd = -1
        self._buffer_bytes = buffer_bytes
        self._pool = ThreadPoolExecutor(WRITERS, thread_name_prefix="disk")
        self._spare: list[U8] = []
        self._nr_buffers = 0
        self._begun: deque[tuple[U8, int, Future[None]]] = deque()
        self._buffer: U8 | None = None
        self._begin = 0  # where in the file the buffer's first byte goes
        self._filled = 0
        self._ends_in_hole = False
        self._is_direct = False
        self._was_refused = False

    def open_directly(self, path: Path, *, probe: bool = False) -> str:
        """Open the file once more, for direct writes: returns "", or why they cannot be had.

        Whatever it returns or raises, `close_directly` closes what was opened. `probe`: also try one; the file is
        empty again.
        """
        try:
            self._direct_fd = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_NOFOLLOW | os.O_CLOEXEC)
            if probe:
                _try(self._direct_fd, self.fileno())
        except OSError as error:
            return f"its file system answers '{error.strerror}'"
        self._is_direct = True
        return ""

    def close_directly(self) -> None:
        """Close what `open_directly` has opened. OSError as of close(2). A second time does nothing."""
        direct_fd, self._direct_fd = self._direct_fd, -1
        self._is_direct = False
        if direct_fd >= 0:
            os.close(direct_fd)

    @property
    def cache(self) -> Cache:
        """`Cache.DIRECT`, or `Cache.PAGE` once a direct write was refused; `use_page_cache` changes nothing of it."""
        return Cache.PAGE if self._was_refused else Cache.DIRECT

    @property
    def held_bytes(self) -> int:
        """See FdSink."""
        with shield():  # no signal amid a future's lock, see `interrupts`
            return self._filled + sum(nr_bytes for _, nr_bytes, future in self._begun if not future.done())

    def use_page_cache(self) -> None:
        """See SparseFileSink."""
        self._is_direct = False

    def finish(self) -> None:
        """Everything has been given: write what is held back. A second time does nothing."""
        tail = self._filled % self._block_bytes
        if self._filled - tail >= SMALLEST_DIRECT and self._is_direct and self._buffer is not None:
            rest = self._buffer[self._filled - tail : self._filled].tobytes()
            self._filled -= tail
            self._submit()
            self._wait_for_all()
            self._write_at(memoryview(rest), self._begin)
            self._begin += tail
        else:
            self._wait_for_all()
            self._write_here()
        if self._ends_in_hole:
            self._ends_in_hole = False
            self._set_length()
        self._is_direct = False  # whatever follows does not begin at a whole block

    def close(self) -> None:
        """See above; TransportError as of any sink's `close`. A second time does nothing."""
        try:
            with shield():
                for *_, future in self._begun:
                    future.cancel()
                self._pool.shutdown(wait=True)
                self._begun.clear()
                self._spare.clear()
                self._buffer = None
                self._filled = 0
                self.close_directly()
        except OSError as error:
            raise TransportError(
                f"{self.name}: closing it failed: {error.strerror}",
                name=name_of_errno(error.errno),
                remedies=remedies_of_errno(error.errno),
            ) from error
        finally:
            super().close()

    # ---- filling buffers ---------------------------------------------------------------------------

    def _write_data(self, buffers: Sequence[ReadableBuffer]) -> None:
        if not self._is_direct:
            self._write_here()
            before = self.offset
            super()._write_data(buffers)
            self._ends_in_hole = self._ends_in_hole and self.offset == before
            return
        for buffer in buffers:
            length, at = nbytes_of(buffer), 0
            while at < length:
                at += self._copy(buffer, at)
                if self._filled == self._buffer_bytes:
                    self._submit()

    def _copy(self, buffer: ReadableBuffer, at: int) -> int:
        """Put some of a buffer, from `at` on, into ours: how many bytes. Holds nothing of it afterwards."""
        if self._buffer is None:
            self._buffer = self._free_buffer()
        with memoryview(buffer) as whole, whole.cast("B") as flat:
            nr_bytes = min(self._buffer_bytes - self._filled, len(flat) - at)
            # numpy lets other threads work while it copies.
            self._buffer[self._filled : self._filled + nr_bytes] = np.frombuffer(flat, np.uint8, nr_bytes, at)
        self._filled += nr_bytes
        self.offset += nr_bytes
        self._ends_in_hole = False
        return nr_bytes

    def _leave_hole(self, nr_bytes: int) -> None:
        if self._filled >= SMALLEST_DIRECT:
            self._submit()
        else:
            self._write_here()
        super()._leave_hole(nr_bytes)
        self._begin = self.offset
        self._ends_in_hole = True

    def _end_in_hole(self) -> None:
        """`finish` gives the file its length."""

    def _free_buffer(self) -> U8:
        if self._spare:
            return self._spare.pop()
        # One that is written before another is made: where a compressor is slower than the disk, two will do.
        if self._nr_buffers < BUFFERS and not self._first_is_done():
            self._nr_buffers += 1
            memory = mmap.mmap(-1, self._buffer_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(OSError):  # a kernel without
                # The disk is given few long pieces of memory then, in place of a thousand pages.
                memory.madvise(mmap.MADV_HUGEPAGE)
            return np.frombuffer(memory, dtype=np.uint8)
        return self._first_written()

    # ---- writing them ------------------------------------------------------------------------------

    def _submit(self) -> None:
        """Have the buffer written. What comes next begins another one."""
        assert self._buffer is not None
        with shield():  # what was submitted must also be in the queue
            buffer, nr_bytes, begin = self._buffer, self._filled, self._begin
            future = self._pool.submit(self._write_buffer, buffer, nr_bytes, begin)
            self._begun.append((buffer, nr_bytes, future))
            self._buffer, self._filled, self._begin = None, 0, begin + nr_bytes

    def _write_here(self) -> None:
        """Write the buffer through the page cache, on this thread."""
        if self._buffer is not None and self._filled:
            self._write_at(self._buffer[: self._filled].data, self._begin)
            self._begin += self._filled
            self._filled = 0

    def _first_written(self) -> U8:
        """Wait until the buffer that was submitted first is written: it is free. TransportError where that failed."""
        buffer, _, future = self._begun[0]
        result_of(future)
        self._begun.popleft()
        return buffer

    def _first_is_done(self) -> bool:
        with shield():  # no signal amid the future's lock, see `interrupts`
            return bool(self._begun) and self._begun[0][2].done()

    def _wait_for_all(self) -> None:
        while self._begun:
            self._spare.append(self._first_written())

    def _write_buffer(self, buffer: U8, nr_bytes: int, begin: int) -> None:
        self._write_at(buffer[:nr_bytes].data, begin, direct=True)

    def _write_at(self, view: memoryview, begin: int, *, direct: bool = False) -> None:
        """Write all of it at this place of the file. Any thread.

        `direct`: past the page cache, as far as that can be done; a short write may end amid a sector.
        """
        at = 0
        while at < len(view):
            is_direct = (
                direct and self._is_direct and not (begin + at) % ALIGNMENT and not len(view) % ALIGNMENT
            )
            fd = self._direct_fd if is_direct else self.fileno()
            try:
                moved = os.pwrite(fd, view[at:], begin + at)
            except OSError as error:
                if is_direct and error.errno in REFUSED:
                    LOG.info("%s: direct I/O was refused: %s", self.name, error.strerror)
                    self._is_direct, self._was_refused = False, True
                    continue
                raise self._failure_at(error, begin + at) from error
            if not moved:
                raise TransportError(
                    f"{self.name}: takes no more data at byte {begin + at:#x} = {begin + at}"
                )
            at += moved


def file_sink(
    fd: int, path: Path, name: str, cache: Cache, *, buffer_bytes: int = BUFFER_BYTES
) -> SparseFileSink:
    """What writes a new, empty regular file: `fd`, which belongs to the sink; at `path` it can be opened again.

    `Cache.AUTO`: directly, unless it is in memory, the file system does not take that, or would not compress it then.
    UsageError when it cannot be, and `Cache.DIRECT` was asked for: `fd` is then the caller's, and the file empty.
    """
    if cache is Cache.PAGE or (cache is Cache.AUTO and file_system_of(fd) in COMPRESSING):
        return SparseFileSink(fd, name)
    why = _unsuitable(fd)
    if not why:
        sink = DirectFileSink(fd, name, buffer_bytes=buffer_bytes)
        try:
            why = sink.open_directly(path, probe=cache is Cache.DIRECT)
            if not why:
                return sink
        except BaseException:  # a signal
            sink.close_directly()
            raise
        with contextlib.suppress(OSError):  # it is not used
            sink.close_directly()
    if cache is Cache.DIRECT:
        raise no_direct(name, why)
    return SparseFileSink(fd, name)


def _unsuitable(fd: int) -> str:
    """Why a file is not to be opened for direct writes at all; empty of one that may be."""
    if is_in_memory(fd):
        return "it is in memory"
    if max(ALIGNMENT, os.fstat(fd).st_blksize) % ALIGNMENT:
        return "its file system has blocks of an odd length"
    return ""


def _try(direct_fd: int, fd: int) -> None:
    """Write something directly, and empty the file again. OSError when direct writes are refused, after all."""
    with mmap.mmap(-1, ALIGNMENT, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        try:
            os.pwrite(direct_fd, memory, 0)
            os.ftruncate(fd, 0)
        except OSError as error:
            if error.errno in REFUSED or error.errno == errno.ENOSYS:
                raise
            # A full disk, say: writing the image tells that better.
