"""An image of which any part can be read, and the stream of bytes over one."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from saverestore.errors import TransportError, UsageError
from saverestore.transport.base import EndOfStream
from saverestore.transport.fd import STDIN, FdSource

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class RandomAccess(Protocol):
    """Bytes to be read at any place."""

    @property
    def name(self) -> str:
        """File name, for messages."""

    @property
    def size(self) -> int:
        """How many bytes there are."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly so many bytes; the caller bounds `length`. `EndOfStream`, `TransportError`."""

    def close(self) -> None:
        """Give it up; a second time does nothing."""


class PlainFile:
    """`RandomAccess` over a regular file or block device."""

    def __init__(self, fd: int, name: str) -> None:
        """Take `fd`, which belongs to this object now."""
        self._fd = fd
        self.name = name
        self.size = os.lseek(fd, 0, os.SEEK_END)

    def read_at(self, offset: int, length: int) -> bytes:
        """Read, in as many calls as it takes."""
        data = bytearray(length)
        view = memoryview(data)
        while view:
            at = offset + length - len(view)
            try:
                moved = os.preadv(self._fd, [view], at)
            except OSError as error:
                raise TransportError(
                    f"{self.name}: reading failed at byte {at:#x} = {at}: {error.strerror}"
                ) from error
            if moved == 0:
                raise EndOfStream(self.name, offset=at, missing_bytes=len(view), what="data")
            view = view[moved:]
        return bytes(data)

    def close(self) -> None:
        """Close the descriptor."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_image(image: str) -> PlainFile:
    """Open an image for reading at any place. UsageError for what cannot be: no file, a pipe; TransportError."""
    if image == STDIN:
        raise UsageError("an image that is read here and there must be a file; it cannot come through a pipe")
    with FdSource.open(image) as source:
        mode = os.fstat(source.fileno()).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise UsageError(f"{image}: no file; an image that is read here and there must be one")
        return PlainFile(os.dup(source.fileno()), image)


class AccessSource:
    """A `ByteSource` over `RandomAccess`, from its front; passing over bytes costs nothing."""

    def __init__(self, access: RandomAccess) -> None:
        """Start at the front. Closing it leaves `access` open."""
        self._access = access
        self.name = access.name
        self.offset = 0

    def readinto(self, view: WriteableBuffer, what: str = "data") -> None:
        """Fill one buffer completely."""
        whole = memoryview(view).cast("B")
        whole[:] = self.read(len(whole), what)

    def readv(self, views: Sequence[WriteableBuffer], what: str = "data") -> None:
        """Fill several buffers completely."""
        for view in views:
            self.readinto(view, what)

    def read(self, n: int, what: str = "data") -> bytes:
        """Return exactly `n` bytes."""
        self._check(n, what)
        data = self._access.read_at(self.offset, n)
        self.offset += n
        return data

    def skip(self, n: int, what: str = "data") -> None:
        """Pass over exactly `n` bytes, unread."""
        self._check(n, what)
        self.offset += n

    def at_end(self) -> bool:
        """Whether nothing follows."""
        return self.offset >= self._access.size

    def close(self) -> None:
        """Nothing: whoever opened `access` closes it."""

    def _check(self, n: int, what: str) -> None:
        missing = self.offset + n - self._access.size
        if missing > 0:
            self.offset = self._access.size
            raise EndOfStream(self.name, offset=self.offset, missing_bytes=missing, what=what)
