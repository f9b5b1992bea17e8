"""Pages written anywhere into a new file; pages of zeroes become holes."""

from __future__ import annotations

import errno
import os
import stat

import numpy as np

from saverestore.errors import Advice, ErrorName, Remedy, TransportError, UsageError, name_of_errno
from saverestore.image.pages import Pages, spans_of
from saverestore.kernels.zero_pages import zero_pages
from saverestore.stream.layout import PAGE_SIZE, U64Array
from saverestore.transport.fd import SPACE_ERRORS


class SparseFile:
    """A new regular file of this size, all of it a hole at first.

    `name` is for messages. The descriptor stays the caller's. `TransportError` when writing fails.
    """

    def __init__(self, fd: int, name: str, size: int) -> None:
        """UsageError when `fd` is no regular file."""
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UsageError(
                f"{name} is not a regular file, and only a file can have holes",
                name=ErrorName.FILE_UNSUITABLE,
            )
        self._fd = fd
        self.name = name
        try:
            os.ftruncate(fd, size)
        except (OSError, OverflowError) as error:
            raise self._failure(error) from error

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` from `offset` on; the file grows where it has to."""
        view = memoryview(data).cast("B")
        while view:
            try:
                moved = os.pwrite(self._fd, view, offset)
            except OSError as error:
                raise self._failure(error) from error
            offset += moved
            view = view[moved:]

    def write_pages(self, offsets: U64Array, pages: Pages) -> None:
        """Write pages, shape (n, 4096), to these offsets; those of zeroes are left out. One call for each run."""
        kept = np.flatnonzero(~zero_pages(pages.view(np.uint64)))
        order = kept[np.argsort(offsets[kept], kind="stable")]
        ranked = offsets[order]
        for begin, end in spans_of(ranked, PAGE_SIZE):
            run = order[begin:end]
            together = run[-1] - run[0] == len(run) - 1 and (np.diff(run) == 1).all()
            data = pages[run[0] : run[-1] + 1] if together else pages[run]
            self.write_at(int(ranked[begin]), data.data)

    def _failure(self, error: Exception) -> TransportError:
        number = getattr(error, "errno", errno.EFBIG)
        text = f"{self.name}: writing failed: {os.strerror(number)}"
        if number in SPACE_ERRORS:
            return TransportError(text, name=ErrorName.DISK_FULL, remedies=[Advice(Remedy.OTHER_PLACE)])
        return TransportError(text, name=name_of_errno(number))
