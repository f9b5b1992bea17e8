"""Writing into a pipe: long runs of zeroes go in as pages that the kernel has already, and are not copied.

    buffers      │ header, entries │ pages │ zeros           │ pages │
    calls        writev ───────────────────► splice, splice ─► writev ─►
                                             from a file in memory that nobody can write to

What is spliced is a reference to the file's pages: whoever reads the pipe, and however late, finds zeroes there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
from collections.abc import Sequence
from functools import cache, partial
from itertools import groupby
from typing import TYPE_CHECKING

from saverestore.kernels.zeros import SMALLEST_RUN, are_zeros
from saverestore.transport.fd import PIPE_BYTES, FdSink, nbytes_of, unless_blocked

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

F_ADD_SEALS = 1033  # linux/fcntl.h, as the constants below: the module fcntl has them from Python 3.13 on
SEAL_SHRINK, SEAL_GROW, SEAL_WRITE = 0x2, 0x4, 0x8


def sink_of(fd: int, name: str, *, close_fd: bool = True) -> FdSink:
    """The sink for a descriptor of any kind: a `PipeSink` where it is a pipe."""
    try:
        is_pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:  # closed: writing will tell
        is_pipe = False
    kind = PipeSink if is_pipe else FdSink
    return kind(fd, name, close_fd=close_fd)


class PipeSink(FdSink):
    """An `FdSink` over the writing end of a pipe."""

    def writev(self, buffers: Sequence[ReadableBuffer]) -> None:
        """Write all of `buffers`, in their order. Of what is marked as zeroes, long runs are spliced."""
        waiting: list[ReadableBuffer] = []
        for is_zero, group in groupby(buffers, key=are_zeros):
            run = list(group)
            nr_bytes = sum(map(nbytes_of, run)) if is_zero else 0
            if nr_bytes < SMALLEST_RUN:
                waiting += run
                continue
            super().writev(waiting)
            waiting = self._left_of(run, self._splice_zeros(nr_bytes))
        super().writev(waiting)

    @staticmethod
    def _left_of(zeros: list[ReadableBuffer], nr_bytes: int) -> list[ReadableBuffer]:
        """What is to be written of these after so many bytes: usually nothing."""
        left: list[ReadableBuffer] = []
        for buffer in zeros:
            with memoryview(buffer) as view:
                skipped = min(nr_bytes, view.nbytes)
                nr_bytes -= skipped
                if skipped < view.nbytes:
                    left.append(view.cast("B")[skipped:])
        return left

    def _splice_zeros(self, nr_bytes: int) -> int:
        """Put so many zeroes into the pipe: how many went in, fewer where this kernel cannot do it."""
        left, file = nr_bytes, zeros_file()
        while left and file is not None:
            part = min(left, PIPE_BYTES)
            try:
                moved = unless_blocked(partial(os.splice, file, self.fileno(), part, offset_src=0))
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOSYS):
                    break
                raise self._failure(error) from error
            if moved is None:
                self._wait(select.POLLOUT)
                continue
            self.offset += moved
            left -= moved
        return nr_bytes - left


@cache
def zeros_file() -> int | None:
    """A file of `PIPE_BYTES` zeroes in memory, open until the process ends; None where there can be none."""
    try:
        file = os.memfd_create("zeroes", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:
        return None
    # Written, not left as a hole: pages that are there are only referred to.
    os.write(file, bytes(PIPE_BYTES))
    fcntl.fcntl(file, F_ADD_SEALS, SEAL_SHRINK | SEAL_GROW | SEAL_WRITE)
    return file
