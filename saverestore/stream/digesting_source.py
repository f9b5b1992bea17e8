"""A source whose bytes are digested as soon as they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from saverestore.transport.base import ByteSource, RegularFile

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

SKIP_BYTES = 1 << 20


class DigestingSource:
    """A `ByteSource` that reads from another one and gives all that comes to `update`, as soon as it is there."""

    def __init__(self, source: ByteSource, update: Callable[[ReadableBuffer], object]) -> None:
        self._inner = source
        self._update = update
        self.name = source.name
        self.regular_file: RegularFile | None = None  # what is read past us would not be digested

    @property
    def offset(self) -> int:
        """That of the other source."""
        return self._inner.offset

    def readinto(self, view: WriteableBuffer, what: str = "data") -> None:
        """Fill one buffer."""
        self._inner.readinto(view, what)
        self._update(view)

    def readv(self, views: Sequence[WriteableBuffer], what: str = "data") -> None:
        """Fill several buffers, in their order."""
        self._inner.readv(views, what)
        for view in views:
            self._update(view)

    def read(self, n: int, what: str = "data") -> bytes:
        """Return exactly `n` bytes."""
        data = self._inner.read(n, what)
        self._update(data)
        return data

    def skip(self, n: int, what: str = "data") -> None:
        """Pass over `n` bytes, which are read all the same."""
        buffer = bytearray(min(n, SKIP_BYTES))
        while n:
            part_bytes = min(n, len(buffer))
            with memoryview(buffer)[:part_bytes] as part:
                self.readinto(part, what)
            n -= part_bytes

    def at_end(self) -> bool:
        """Whether nothing follows."""
        return self._inner.at_end()

    def close(self) -> None:
        """Close the other source."""
        self._inner.close()
