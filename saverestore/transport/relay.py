"""A pipe through which another process reads what a source brings.

Restoring by libxl, it is libxl and its helper that read, from a descriptor. A file that is not compressed they read
themselves. Anything else goes through here:

    source ─► this thread: decompress, check ─► pipe ─► libxl, helper

What is wrong with the source looks to them like an image that ends too early, so `error` is to be asked first.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Protocol, Self

from saverestore.errors import ImageError, SaveRestoreError
from saverestore.interrupts import shield
from saverestore.transport.base import ByteSource

PART_BYTES = 1 << 20
END_TIMEOUT_S = 10.0


class EndingSource(ByteSource, Protocol):
    """A source that can tell its end."""

    def read_some(self, n: int) -> bytes:
        """The next bytes, at most `n`; none at the end only, when all that can be checked has been."""


class Relay:
    """See above. Begun when the block is entered, ended when it is left."""

    def __init__(self, source: EndingSource, head: bytes = b"") -> None:
        """`head`: bytes that go first, which have been taken from the source before."""
        self._source = source
        self._head = head
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC)
        self._error: BaseException | None = None
        # A daemon: it may hang in reading from somebody who sends nothing, and must not keep the process then.
        self._thread = threading.Thread(target=self._pass_on, name="relay", daemon=True)

    def fileno(self) -> int:
        """The descriptor to be read from."""
        return self._read_end

    def position(self) -> int:
        """How much of the image has been passed on."""
        return self._source.offset

    @property
    def error(self) -> SaveRestoreError | None:
        """What was wrong with the source so far."""
        return self._error if isinstance(self._error, SaveRestoreError) else None

    def finish(self) -> None:
        """Whoever read has read all of the image: raise what is wrong with the rest of the source."""
        self._thread.join(END_TIMEOUT_S)
        if self._error is not None:
            raise self._error
        os.set_blocking(self._read_end, False)
        try:
            follows = len(os.read(self._read_end, 1))
        except BlockingIOError:
            return  # the sender of a pipe keeps it open
        if follows:
            raise ImageError(f"{self._source.name}: something follows the end of the image")

    def _pass_on(self) -> None:
        try:
            part = self._head or self._source.read_some(PART_BYTES)
            while part:
                view = memoryview(part)
                while view:
                    view = view[os.write(self._write_end, view) :]
                part = self._source.read_some(PART_BYTES)
        except BrokenPipeError:
            pass  # nobody reads any more
        except BaseException as error:  # for the thread that asks
            self._error = error
        finally:
            os.close(self._write_end)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with shield():
            os.close(self._read_end)
            self._thread.join(END_TIMEOUT_S if error is None else 1.0)
