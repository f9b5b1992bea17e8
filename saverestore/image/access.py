"""The stream of bytes over an image of which any part can be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from saverestore.errors import Advice, ErrorName, Remedy, UsageError
from saverestore.transport.base import EndOfStream, RegularFile
from saverestore.transport.fd import STDIN
from saverestore.transport.random_access import (
    PlainFile,
    RandomAccess,
    SeekableZstdFile,
    open_random_access,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


def open_image(image: str) -> PlainFile | SeekableZstdFile:
    """Open an image for random access: a file, plain or in seekable zstd.

    UsageError for what cannot be read so: no file, a pipe, a device, otherwise compressed. Else as
    `open_random_access`.
    """
    access = open_random_access(image)
    if access is None:
        what = "standard input" if image == STDIN else image
        raise UsageError(
            f"{what} does not allow random access: only a file does, plain or in seekable zstd",
            name=ErrorName.NOT_RANDOM_ACCESS,
            remedies=[Advice(Remedy.MAKE_SEEKABLE, image)],
        )
    return access


class AccessSource:
    """A `ByteSource` over `RandomAccess`, from its front; passing over bytes costs nothing."""

    def __init__(self, access: RandomAccess) -> None:
        """Start at the front. Closing it leaves `access` open."""
        self._access = access
        self.name = access.name
        self.offset = 0
        self.regular_file: RegularFile | None = None

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
