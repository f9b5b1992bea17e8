"""A pipe through which another process reads what a source brings.

Restoring by libxl, it is libxl and its helper that read, from a descriptor. A file that is not compressed they read
themselves. Anything else goes through here:

    source ─► this thread: decompress, check, follow what it is ─► pipe ─► libxl, helper

What is wrong with the source looks to them like an image that ends too early, so `error` is to be asked first.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from saverestore.errors import ImageError, SaveRestoreError, TransportError
from saverestore.interrupts import shield, waited_for
from saverestore.transport.base import ByteSource, ImageSource, RegularFile
from saverestore.transport.fd import widen

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

PART_BYTES = 1 << 20
END_TIMEOUT_S = 10.0


class _Passing:
    """A `ByteSource`: whatever is read from it, or passed over, goes into the pipe as well."""

    def __init__(self, source: ImageSource, write_end: int) -> None:
        self._source = source
        self._write_end = write_end
        self.name = source.name
        self.regular_file: RegularFile | None = None

    @property
    def offset(self) -> int:
        return self._source.offset

    def readinto(self, view: WriteableBuffer, what: str = "data") -> None:
        self.readv((view,), what)

    def readv(self, views: Sequence[WriteableBuffer], what: str = "data") -> None:
        self._source.readv(views, what)
        for view in views:
            self.write(view)

    def read(self, n: int, what: str = "data") -> bytes:
        data = self._source.read(n, what)
        self.write(data)
        return data

    def skip(self, n: int, what: str = "data") -> None:
        n -= self._source.splice(self._write_end, n)
        buffer = memoryview(bytearray(min(n, PART_BYTES)))
        while n:
            part = buffer[: min(n, len(buffer))]
            self.readv((part,), what)
            n -= len(part)

    def at_end(self) -> bool:
        return self._source.at_end()

    def close(self) -> None:
        """The source belongs to who opened it."""

    def write(self, data: ReadableBuffer) -> None:
        """Put this into the pipe."""
        view = memoryview(data).cast("B")
        while view:
            view = view[os.write(self._write_end, view) :]


class Relay:
    """See above. Begun when the block is entered, ended when it is left."""

    def __init__(
        self, source: ImageSource, follow: Callable[[ByteSource], object], head: bytes = b""
    ) -> None:
        """`follow` reads the image from what it is given to its end, on this thread; what it reads is passed on.

        `head`: bytes that go first, which have been taken from the source before.
        """
        self._source = source
        self._follow = follow
        self._head = head
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC)
        widen(self._write_end)
        self._followed = threading.Event()
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
        """Whoever read has read all of the image: raise what is wrong with it, or with the rest of the source.

        Nobody reads from the source any more then; but for one that may stay open, which is waited for 10 seconds.
        """
        if not waited_for(self._followed.wait, END_TIMEOUT_S):
            raise TransportError(f"{self._source.name}: its end was not read")
        # The sender of a pipe may keep it open; then nothing can be said of it. Any other must have ended: a peer
        # that has more to say is not done, and what it says next is for another reader.
        waited_for(self._has_ended, self._end_timeout_s)
        if self._error is not None:
            raise self._error

    def _pass_on(self) -> None:
        try:
            passing = _Passing(self._source, self._write_end)
            passing.write(self._head)
            self._follow(passing)
            self._followed.set()
            if not self._source.may_continue and not self._source.at_end():
                raise ImageError(f"{self._source.name}: something follows the end of the image")
        except BrokenPipeError:
            pass  # nobody reads any more
        except BaseException as error:  # for the thread that asks
            self._error = error
            self._followed.set()
        finally:
            os.close(self._write_end)

    @property
    def _end_timeout_s(self) -> float | None:
        return END_TIMEOUT_S if self._source.may_stay_open else None

    def _has_ended(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def __enter__(self) -> Self:
        try:
            with shield():
                self._thread.start()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with shield():
            os.close(self._read_end)
            if self._thread.ident is not None:
                self._thread.join(self._end_timeout_s if error is None else 1.0)
