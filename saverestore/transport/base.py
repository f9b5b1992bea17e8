"""What the stream layer asks of a transport, and the one error a source adds.

Both sides count the bytes that went through them in `offset`, from 0 where the object was made, so
that every error about an image can name its place. Neither reads ahead nor holds data back: what was
asked for has been taken from (given to) the kernel when a call returns, and not a byte more. That is
what allows another reader to go on with the same descriptor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from saverestore.errors import ErrorName, ImageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class EndOfStream(ImageError):
    """The source ended before everything that was asked for had come: a truncated image."""

    name = ErrorName.IMAGE_TRUNCATED

    def __init__(self, name: str, *, offset: int, missing_bytes: int, what: str) -> None:
        self.missing_bytes = missing_bytes
        plural = "byte was" if missing_bytes == 1 else "bytes were"
        super().__init__(
            f"{name} ends after {offset} bytes: {missing_bytes} more {plural} expected for {what}",
            offset=offset,
        )


class ByteSource(Protocol):
    """A stream of bytes to be read once, from front to back.

    `what` names the thing being read, for the text of `EndOfStream`. All methods raise `EndOfStream`
    when the source ends too early and `TransportError` when reading fails; `offset` then counts what
    had come by that time.
    """

    @property
    def name(self) -> str:
        """File name or address, for messages."""

    @property
    def offset(self) -> int:
        """Bytes consumed since this object was made."""

    def readinto(self, view: WriteableBuffer, what: str = ...) -> None:
        """Fill one buffer completely."""

    def readv(self, views: Sequence[WriteableBuffer], what: str = ...) -> None:
        """Fill several buffers completely, in their order."""

    def read(self, n: int, what: str = ...) -> bytes:
        """Return exactly `n` bytes. `n` is allocated at once: the caller bounds it."""

    def skip(self, n: int, what: str = ...) -> None:
        """Pass over exactly `n` bytes; a source that is shorter is noticed here, not later."""

    def at_end(self) -> bool:
        """Whether nothing follows; may wait for the other side and may consume one byte."""

    def close(self) -> None:
        """Give the source up; a second time does nothing."""


class ByteSink(Protocol):
    """A stream of bytes being written, from front to back.

    Raises `TransportError` when writing fails; `offset` then counts what the kernel had taken.
    """

    @property
    def name(self) -> str:
        """File name or address, for messages."""

    @property
    def offset(self) -> int:
        """Bytes written since this object was made."""

    def write(self, data: ReadableBuffer) -> None:
        """Write all of one buffer."""

    def writev(self, buffers: Sequence[ReadableBuffer]) -> None:
        """Write all of several buffers, in their order, without copying them together."""

    def close(self) -> None:
        """Give the sink up; a second time does nothing."""
