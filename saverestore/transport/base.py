"""The ports of the transport, and the one error a source adds.

    ByteSource ── ImageSource      what is read from front to back; an image as somebody named it
    ByteSink   ── ImageSink        what is written from front to back; the place of a whole image
    RegularFile, Spliceable        what only some sources can: asked for through the port, never by their class

Both sides count the bytes that went through them in `offset`, from 0 where the object was made, so
that every error about an image can name its place. A source does not read ahead: what was asked for has been taken
from the kernel when a call returns, and not a byte more. That is what allows another reader to go on with the same
descriptor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, Self

from saverestore.errors import ErrorName, ImageError

if TYPE_CHECKING:
    from types import TracebackType

    from _typeshed import ReadableBuffer, WriteableBuffer


class EndOfStream(ImageError):
    """The source ended before everything that was asked for had come: a truncated image."""

    name = ErrorName.IMAGE_TRUNCATED

    def __init__(self, name: str, *, offset: int, missing_bytes: int, what: str) -> None:
        self.missing_bytes = missing_bytes
        plural = "byte was" if missing_bytes == 1 else "bytes were"
        if offset == 0:
            super().__init__(f"{name} has no data: {what} was expected", offset=0)
            return
        super().__init__(
            f"{name} ends after {offset} bytes: {missing_bytes} more {plural} expected for {what}",
            offset=offset,
        )


class RegularFile(Protocol):
    """What can be done with the bytes of a regular file that is read as it is: they stay where they are.

    Positions are those of the source's `offset`. `TransportError` when reading fails.
    """

    def read_again(self, begin: int, length: int) -> Iterator[bytes]:
        """What was read from `begin` on, `length` bytes in parts; the source stands where it stood."""

    def look_ahead(self, n: int) -> Iterator[bytes]:
        """The next `n` bytes, fewer at the end, in parts; they are read later as if nobody had looked."""

    def fileno(self) -> int:
        """Its descriptor, which stands where the source does: another process may read on from there."""

    def position(self) -> int:
        """Where the descriptor stands, by the kernel's account: others who read from it move it, too."""


class Spliceable(Protocol):
    """A source whose bytes the kernel may move into a pipe without a copy."""

    def splice(self, pipe: int, n: int) -> int:
        """Move up to `n` of the next bytes into a pipe: how many, which count as read.

        Fewer, or none, where the source ends or cannot do it: read the rest. BrokenPipeError when nobody reads from
        the pipe, TransportError when reading fails.
        """


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

    @property
    def regular_file(self) -> RegularFile | None:
        """The file that these bytes are, as they are; None where they pass only once, or are made on the way."""

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


class ImageSource(ByteSource, Spliceable, Protocol):
    """An image that a person named: a file or pipe, read as it is or decompressed. A context manager."""

    @property
    def total_bytes(self) -> int | None:
        """Length of the image, decompressed, where that is known beforehand."""

    @property
    def may_continue(self) -> bool:
        """Whether anything may follow the image: a device is longer, a socket may be kept open for an answer."""

    @property
    def may_stay_open(self) -> bool:
        """Whether a wait for its end need not end: who writes into a pipe may keep it open, and say nothing more."""

    def read_some(self, n: int) -> bytes:
        """Return the next bytes, as many as come at once and at most `n`; none at the end only."""

    def skip_to_end(self) -> int:
        """Pass over everything that is left, checking what can be checked: how many bytes that was."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class ByteSink(Protocol):
    """A stream of bytes being written, from front to back.

    A buffer that is marked as nothing but zeroes (`kernels.zeros.are_zeros`) may become a hole, or be sent without a
    copy; any other is written as it is, unseen.
    Raises `TransportError` when writing fails; `offset` then counts what the kernel had taken. Of a sink that holds
    something back until `finish`, it counts what was given, and the error names its place itself.
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


class ImageSink(ByteSink, Protocol):
    """The place of a whole image: it is told when everything has been given, and knows what that takes."""

    @property
    def leaves_holes(self) -> bool:
        """Whether a long run of what is marked as zeroes, given in one call, becomes a hole, which is not stored."""

    @property
    def stored_bytes(self) -> int:
        """How many bytes had to be stored so far, compressed and without holes; of the whole image after `finish`."""

    def finish(self) -> None:
        """Everything has been given: write what was held back, and what ends the file. Nothing may follow."""
