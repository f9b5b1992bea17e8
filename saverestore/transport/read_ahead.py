"""Small pieces of a source that is read to its end anyway: taken from it many at a time, and looked at beforehand.

The library cuts 4 MiB of content into some hundred blocks. To find a frame's end, only their headers are looked at
here, and then the frame is taken as a whole.
"""

from __future__ import annotations

from saverestore.transport.base import EndOfStream
from saverestore.transport.fd import FdSource

BUFFER_BYTES = 2 << 20
"""It grows when more must be looked at at once."""


class ReadAhead:
    """`offset` counts what was taken from here, not what was read. Waits for no more than is asked for."""

    def __init__(self, raw: FdSource, *, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._raw = raw
        self.name = raw.name
        self.offset = raw.offset
        # Kept: fresh memory for each piece costs more than all the rest.
        self._buffer = bytearray(buffer_bytes)
        self._at = self._end = 0

    def read(self, n: int, what: str) -> bytes:
        """Return exactly `n` bytes. Errors are those of a `ByteSource`."""
        part = self.peek(0, n, what)
        self._at += n
        self.offset += n
        return part

    def peek(self, begin: int, n: int, what: str) -> bytes:
        """Return `n` bytes, from the one on that comes after `begin` others, without taking any."""
        if self._at + begin + n > self._end:
            self._fill(begin + n, what)
        at = self._at + begin
        with memoryview(self._buffer) as view:
            return bytes(view[at : at + n])

    def has_more(self) -> bool:
        """Whether anything follows."""
        if self._at == self._end:
            self._at = self._end = 0
            self._read_some()
        return self._at < self._end

    def _fill(self, n: int, what: str) -> None:
        """Have at least `n` bytes at hand."""
        have = self._end - self._at
        self._buffer[:have] = self._buffer[self._at : self._end]
        self._at, self._end = 0, have
        if n > len(self._buffer):
            self._buffer += bytes(max(n, 2 * len(self._buffer)) - len(self._buffer))
        while self._end < n:
            if not self._read_some():
                missing = n - self._end
                raise EndOfStream(self.name, offset=self.offset + self._end, missing_bytes=missing, what=what)

    def _read_some(self) -> int:
        with memoryview(self._buffer) as view, view[self._end :] as room:
            got = self._raw.read_some_into(room)
        self._end += got
        return got
