"""The image's bytes as DATA messages: a sink at the source, a source at the destination.

They share the one connection with all other messages. So the destination finds out amid them that the source gives
up, and keepalives come while the source has nothing to send. Further connections would have sinks and sources of
their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from saverestore.migrate.channel import OTHERWISE, Channel, SaidOtherwise
from saverestore.migrate.messages import Acknowledged, MessageType, ProtocolError, StreamEnd
from saverestore.transport.base import EndOfStream, RegularFile
from saverestore.transport.fd import nbytes_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

ACKNOWLEDGE_BYTES = 16 << 20
SKIP_BYTES = 1 << 20


class MessageSink:
    """An `ImageSink`: what is written goes to the peer as DATA."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.name = channel.peer
        self.offset = 0

    def write(self, data: ReadableBuffer) -> None:
        """See ByteSink."""
        self.writev((data,))

    def writev(self, buffers: Sequence[ReadableBuffer]) -> None:
        """See ByteSink. SaidOtherwise when the destination has given up meanwhile."""
        self._channel.say_data(buffers)
        self.offset += sum(map(nbytes_of, buffers))

    @property
    def leaves_holes(self) -> bool:
        """See ImageSink."""
        return False

    @property
    def stored_bytes(self) -> int:
        """See ImageSink: all of it is sent."""
        return self.offset

    def finish(self) -> None:
        """See ImageSink: nothing is held back."""

    def close(self) -> None:
        """The channel is its owner's."""


class MessageSource:
    """An `ImageSource` of what comes as DATA, up to STREAM_END, which is read when the end is looked for.

    Also raises what `Channel` does; SaidOtherwise when the source gives up.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.name = f"the stream from {channel.peer}"
        self.offset = 0
        self.total_bytes: int | None = None
        self.may_continue = False
        self.may_stay_open = False  # as every wait for the peer ends
        self.regular_file: RegularFile | None = None
        self._left = 0  # of the message that is being read
        self._ended = False
        self._acknowledged = 0
        channel.when_asked = self._acknowledge

    def readinto(self, view: WriteableBuffer, what: str = "data") -> None:
        """See ByteSource."""
        self.readv((view,), what)

    def readv(self, views: Sequence[WriteableBuffer], what: str = "data") -> None:
        """See ByteSource."""
        for view in views:
            with memoryview(view) as whole, whole.cast("B") as flat:
                at = 0
                while at < len(flat):
                    if not self._has_more():
                        raise self._end(len(flat) - at, what)
                    part = min(len(flat) - at, self._left)
                    with flat[at : at + part] as piece:
                        self._take(piece)
                    at += part

    def read(self, n: int, what: str = "data") -> bytes:
        """See ByteSource."""
        data = bytearray(n)
        self.readv((data,), what)
        return bytes(data)

    def read_some(self, n: int) -> bytes:
        """See ImageSource."""
        if not self._has_more():
            return b""
        part = bytearray(min(n, self._left))
        self._take(part)
        return bytes(part)

    def skip(self, n: int, what: str = "data") -> None:
        """See ByteSource."""
        buffer = memoryview(bytearray(min(n, SKIP_BYTES)))
        while n:
            part = buffer[: min(n, len(buffer))]
            self.readv((part,), what)
            n -= len(part)

    def skip_to_end(self) -> int:
        """See ImageSource."""
        before = self.offset
        while self._has_more():
            self.skip(self._left)
        return self.offset - before

    def splice(self, pipe: int, n: int) -> int:
        """See Spliceable: none, as there are other messages in between."""
        return 0

    def at_end(self) -> bool:
        """See ByteSource. Then STREAM_END has come, with the right length."""
        return not self._has_more()

    def close(self) -> None:
        """The channel is its owner's."""

    def _take(self, piece: Any) -> None:
        try:
            self._channel.connection.incoming.readinto(piece, "the image")
        except EndOfStream as error:
            raise self._end(error.missing_bytes, "the image") from error
        self._left -= len(piece)
        self.offset += len(piece)
        if self.offset - self._acknowledged >= ACKNOWLEDGE_BYTES:
            self._acknowledge()

    def _acknowledge(self) -> None:
        self._acknowledged = self.offset
        self._channel.say(Acknowledged(self.offset))

    def _has_more(self) -> bool:
        """Whether bytes follow; reads the heads of messages up to them, or STREAM_END."""
        while not self._left and not self._ended:
            header = self._channel.next_header()
            if header.type is MessageType.DATA:
                self._left = header.length_bytes
                continue
            message = self._channel.message_of(header)
            if isinstance(message, OTHERWISE):
                raise SaidOtherwise(self._channel.peer, message)
            if not isinstance(message, StreamEnd):
                raise ProtocolError(f"{self._channel.peer} said {message.type.name} amid the image")
            if message.length_bytes != self.offset:
                raise ProtocolError(
                    f"{self._channel.peer} says that it sent {message.length_bytes} bytes; {self.offset} have come"
                )
            self._ended = True
            self._channel.when_asked = None
        return not self._ended

    def _end(self, missing_bytes: int, what: str) -> EndOfStream:
        return EndOfStream(self.name, offset=self.offset, missing_bytes=missing_bytes, what=what)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
