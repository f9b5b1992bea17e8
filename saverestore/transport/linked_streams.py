"""The two directions of a `LinkedConnection`, as a `ByteSink` and a `ByteSource`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from saverestore.transport.base import EndOfStream, RegularFile

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

SKIP_BYTES = 1 << 20


class Frames(Protocol):
    """What they need of the connection."""

    peer: str
    frame_bytes: int
    """How long a frame may be now."""

    def spare(self) -> bytearray:
        """A buffer for a frame."""

    def put(self, buffer: bytearray, length: int) -> None:
        """A frame that is to be sent; waits until there is room."""

    def read_some_into(self, view: memoryview) -> int:
        """Put the next bytes into a view: how many; 0 when the peer has closed the connection behind them."""


class FrameSink:
    """What goes to the peer; see ByteSink."""

    def __init__(self, connection: Frames) -> None:
        self._connection = connection
        self.name = connection.peer
        self.offset = 0

    def write(self, data: ReadableBuffer) -> None:
        """See ByteSink."""
        self.writev((data,))

    def writev(self, buffers: Sequence[ReadableBuffer]) -> None:
        """See ByteSink. Buffers are copied, as they may be needed again."""
        connection = self._connection
        frame, filled, most = connection.spare(), 0, connection.frame_bytes
        into = memoryview(frame)  # a bytearray's own slices would be copied twice
        for buffer in buffers:
            with memoryview(buffer) as whole, whole.cast("B") as flat:
                at = 0
                while at < len(flat):
                    taken = min(most - filled, len(flat) - at)
                    into[filled : filled + taken] = flat[at : at + taken]
                    at, filled = at + taken, filled + taken
                    if filled == most:
                        self._put(frame, filled)
                        frame, filled, most = connection.spare(), 0, connection.frame_bytes
                        into = memoryview(frame)
        if filled:
            self._put(frame, filled)

    def _put(self, frame: bytearray, length: int) -> None:
        self.offset += length
        self._connection.put(frame, length)

    def close(self) -> None:
        """Nothing: see LinkedConnection."""


class FrameSource:
    """What the peer sends; see ByteSource."""

    regular_file: RegularFile | None = None

    def __init__(self, connection: Frames) -> None:
        self._connection = connection
        self.name = connection.peer
        self.offset = 0

    def readinto(self, view: WriteableBuffer, what: str = "data") -> None:
        """See ByteSource."""
        with memoryview(view) as whole, whole.cast("B") as flat:
            at = 0
            while at < len(flat):
                with flat[at:] as rest:
                    taken = self._connection.read_some_into(rest)
                if not taken:
                    raise EndOfStream(self.name, offset=self.offset, missing_bytes=len(flat) - at, what=what)
                at += taken
                self.offset += taken

    def readv(self, views: Sequence[WriteableBuffer], what: str = "data") -> None:
        """See ByteSource."""
        for view in views:
            self.readinto(view, what)

    def read(self, n: int, what: str = "data") -> bytes:
        """See ByteSource."""
        data = bytearray(n)
        self.readinto(data, what)
        return bytes(data)

    def skip(self, n: int, what: str = "data") -> None:
        """See ByteSource."""
        dropped = bytearray(min(n, SKIP_BYTES))
        while n:
            with memoryview(dropped)[: min(n, len(dropped))] as part:
                self.readinto(part, what)
                n -= len(part)

    def at_end(self) -> bool:
        """See ByteSource: it consumes a byte when there is one."""
        with memoryview(bytearray(1)) as one:
            taken = self._connection.read_some_into(one)
        self.offset += taken
        return not taken

    def close(self) -> None:
        """Nothing: see LinkedConnection."""
