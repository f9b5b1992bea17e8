"""Small pieces of a source that is read to its end anyway: taken from it many at a time.

A call of `FdSource.read` takes some ten microseconds, which a zstd file pays for each block of 128 KiB.
"""

from __future__ import annotations

from saverestore.transport.base import EndOfStream
from saverestore.transport.fd import FdSource

READ_BYTES = 256 << 10


class ReadAhead:
    """`offset` counts what was taken from here, not what was read. Waits for no more than is asked for."""

    def __init__(self, raw: FdSource) -> None:
        self._raw = raw
        self.name = raw.name
        self.offset = raw.offset
        self._data = b""
        self._at = 0

    def read(self, n: int, what: str) -> bytes:
        """Return exactly `n` bytes. Errors are those of a `ByteSource`."""
        end = self._at + n
        if end > len(self._data):
            self._fill(n, what)
            end = n
        part = self._data[self._at : end]
        self._at = end
        self.offset += n
        return part

    def has_more(self) -> bool:
        """Whether anything follows."""
        if self._at == len(self._data):
            self._data, self._at = self._raw.read_some(READ_BYTES), 0
        return bool(self._data)

    def _fill(self, n: int, what: str) -> None:
        """Have at least `n` bytes at hand, at the begin of the data."""
        parts = [self._data[self._at :]]
        have = len(parts[0])
        while have < n:
            part = self._raw.read_some(READ_BYTES)
            if not part:
                self.offset += have
                raise EndOfStream(self.name, offset=self.offset, missing_bytes=n - have, what=what)
            parts.append(part)
            have += len(part)
        self._data, self._at = b"".join(parts), 0
