"""What is on its way over several links: kept by the sender until it has arrived, put in order by the receiver. Pure.

    sender    put ─► waiting ─► in flight on a link ─► arrived: forgotten
                        ▲               │
                        └── link lost ──┘
    receiver  frames in any order, also twice ─► bytes in order, each once

Bytes have positions, counted from 0 where the connection began. A frame is cut once and stays as it is: whichever
link brings it, and however late, it has the same place. So an older byte can never come behind a newer one.

Memory is bounded on both sides: the sender begins nothing that ends more than a window beyond what was consumed.
"""

from __future__ import annotations

import heapq
import struct
from enum import IntEnum
from typing import Any

from saverestore.errors import ErrorName, TransportError

FRAME_BYTES = 1 << 20
WINDOW_BYTES = 32 << 20
"""Of a 10 Gbit/s link with 25 ms; what both sides keep at most, beside a frame for each link."""

HEADER = struct.Struct(">BIQ")
"""Of a frame on a link: its kind, a length, a position."""


class Kind(IntEnum):
    """What a frame is; a length and position of 0 where nothing is said of them."""

    DATA = 1  # position, length; the bytes follow
    ARRIVED = 2  # position, length: that frame of DATA is here
    CONSUMED = 3  # position: everything before it has been used
    SYNCED = 4  # what is here has been said: DATA may follow
    PING = 5
    END = 6  # position: nothing follows behind it, and all before has arrived


class BadFrame(TransportError):
    """The peer sent on a link what is not valid there. Nothing that it sends can be relied on."""

    name = ErrorName.PROTOCOL_VIOLATED


class Frame:
    """Bytes that are cut once. `link`: over which they are on their way; None: they wait."""

    __slots__ = ("buffer", "length", "link", "nr_sending", "position", "was_sent")

    def __init__(self, position: int, buffer: bytearray, length: int) -> None:
        self.position = position
        self.buffer = buffer
        self.length = length
        self.link: Any = None
        self.was_sent = False
        self.nr_sending = 0

    def parts(self) -> list[Any]:
        """Header and bytes, to be sent."""
        return [HEADER.pack(Kind.DATA, self.length, self.position), memoryview(self.buffer)[: self.length]]


class Spares:
    """Buffers for frames that are used again: fresh memory would cost more than the copy into it."""

    def __init__(self, window_bytes: int, frame_bytes: int) -> None:
        self._most = window_bytes // frame_bytes
        self._frame_bytes = frame_bytes
        self._buffers: list[bytearray] = []

    def take(self, length: int) -> bytearray:
        """A buffer for so many bytes, with anything in it. Short ones are not kept: they take what they need."""
        if length <= self._frame_bytes // 2:
            return bytearray(length)
        return self._buffers.pop() if self._buffers else bytearray(self._frame_bytes)

    def give_back(self, buffer: bytearray) -> None:
        """Nobody uses this one any more."""
        if len(buffer) == self._frame_bytes and len(self._buffers) < self._most:
            self._buffers.append(buffer)


class Outbox:
    """The sender's side. `end`: bytes put so far; `resent_bytes`: those that were sent more than once."""

    def __init__(self, window_bytes: int = WINDOW_BYTES, frame_bytes: int = FRAME_BYTES) -> None:
        self.end = 0
        self.consumed = 0
        self.resent_bytes = 0
        self._window_bytes = window_bytes
        self._frame_bytes = frame_bytes
        self._frames: dict[int, Frame] = {}
        self._waiting: list[int] = []
        self.spares = Spares(window_bytes, frame_bytes)

    def has_room(self, most_waiting: int) -> bool:
        """Whether a frame may be put, with so many waiting for a link at most."""
        return (
            len(self._waiting) < most_waiting
            and self.end + self._frame_bytes - self.consumed <= self._window_bytes
        )

    @property
    def is_empty(self) -> bool:
        """Whether everything has arrived."""
        return not self._frames

    @property
    def progress(self) -> tuple[int, int]:
        """Another one each time the peer says what has arrived, or was used; until more is put."""
        return self.consumed, len(self._frames)

    def put(self, buffer: bytearray, length: int) -> None:
        """These bytes are next. The buffer belongs to this object from now on."""
        if length <= self._frame_bytes // 2:
            whole, buffer = buffer, buffer[:length]
            self.spares.give_back(whole)
        self._frames[self.end] = Frame(self.end, buffer, length)
        heapq.heappush(self._waiting, self.end)
        self.end += length

    def take(self, link: object) -> Frame | None:
        """The first frame that waits, which is to be sent over this link now; `sent` follows."""
        while self._waiting:
            frame = self._frames.get(heapq.heappop(self._waiting))
            if frame is None:  # has arrived over another link
                continue
            if frame.was_sent:
                self.resent_bytes += frame.length
            frame.link, frame.was_sent = link, True
            frame.nr_sending += 1
            return frame
        return None

    def sent(self, frame: Frame) -> None:
        """The link has taken it, or has failed."""
        frame.nr_sending -= 1
        if not frame.nr_sending and self._frames.get(frame.position) is not frame:
            self.spares.give_back(frame.buffer)

    def arrived(self, position: int, length: int) -> None:
        """The peer has this frame. BadFrame when there is no such frame."""
        if position + length > self.end:
            raise BadFrame(f"bytes up to {position + length} are said to have arrived; {self.end} were sent")
        frame = self._frames.get(position)
        if frame is not None:
            if frame.length != length or not frame.was_sent:
                raise BadFrame(f"a frame at {position} is said to have arrived that was not sent")
            self._forget(frame)

    def note_consumed(self, position: int) -> None:
        """The peer has used everything before this position. BadFrame for more than was put."""
        if position > self.end:
            raise BadFrame(f"{position} bytes are said to be used; {self.end} were sent")
        if position > self.consumed:
            self.consumed = position
            for frame in [one for one in self._frames.values() if one.position + one.length <= position]:
                self._forget(frame)

    def lost(self, link: object) -> None:
        """What was on its way over this link waits again."""
        for frame in self._frames.values():
            if frame.link is link:
                frame.link = None
                heapq.heappush(self._waiting, frame.position)

    def _forget(self, frame: Frame) -> None:
        del self._frames[frame.position]
        if not frame.nr_sending:
            self.spares.give_back(frame.buffer)


class Inbox:
    """The receiver's side. `next`: the frame at this position is used next; `end`: behind the last, once known."""

    def __init__(self, window_bytes: int = WINDOW_BYTES, frame_bytes: int = FRAME_BYTES) -> None:
        self.next = 0
        self.end: int | None = None
        self._window_bytes = window_bytes
        self._frame_bytes = frame_bytes
        self._held: dict[int, tuple[bytearray, int]] = {}
        self._at = 0  # within the frame at `next`
        self.spares = Spares(window_bytes, frame_bytes)

    def wants(self, position: int, length: int) -> bool:
        """Whether a frame that comes is not here yet. BadFrame for one that cannot be: no memory is taken for it."""
        if not 0 < length <= self._frame_bytes:
            raise BadFrame(f"a frame of {length} bytes")
        if position + length <= self.next:
            return False
        if position < self.next or position + length > self.next + self._window_bytes:
            raise BadFrame(f"a frame at {position}, while the one at {self.next} is next")
        held = self._held.get(position)
        if held is not None and held[1] != length:
            raise BadFrame(f"a frame at {position} that has another length than before")
        return held is None

    def put(self, position: int, buffer: bytearray, length: int) -> None:
        """A frame is here. One that came over another link meanwhile is dropped."""
        if self.wants(position, length):
            self._held[position] = buffer, length
        else:
            self.spares.give_back(buffer)

    def held(self) -> list[tuple[int, int]]:
        """Position and length of each frame that is here and not used yet."""
        return [(position, length) for position, (_, length) in self._held.items()]

    def head(self) -> memoryview | None:
        """What can be used next; None when that has not come yet. Then `used`."""
        found = self._held.get(self.next)
        if found is None:
            return None
        buffer, length = found
        return memoryview(buffer)[self._at : length]

    def used(self, nr_bytes: int) -> bool:
        """So many bytes of the head were used: whether that was all of it. Nobody has a view of it any more."""
        buffer, length = self._held[self.next]
        self._at += nr_bytes
        if self._at < length:
            return False
        del self._held[self.next]
        self.next += length
        self._at = 0
        self.spares.give_back(buffer)
        return True

    @property
    def has_ended(self) -> bool:
        """Whether nothing follows what was used."""
        return self.end is not None and self.next >= self.end

    def note_end(self, position: int) -> None:
        """The peer sends nothing behind this position. BadFrame when something behind it has come."""
        if self.end not in (None, position) or position < self.next:
            raise BadFrame(f"the end at {position}, while the frame at {self.next} is next")
        self.end = position
