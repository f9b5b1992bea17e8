"""The trailer of a file, behind the libxc stream: libxl's records with the device model's state, and its END.

The libxc stream tells of it in advance (FOLLOWING), and its digest covers what it tells. So a writer must know these
bytes before it writes IMAGE_DIGEST, and a reader that has come to END knows what to expect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import xxhash

from saverestore.errors import ErrorName
from saverestore.stream.digesting_source import DigestingSource
from saverestore.stream.errors import BadRecord
from saverestore.stream.layout import RecordType
from saverestore.stream.records import Following
from saverestore.transport.base import ByteSink, ByteSource

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class TrailerBuffer:
    """A `ByteSink` that keeps the trailer until the place for it has come. `name`: of the file it is for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.offset = 0
        self._kept: list[bytes] = []

    def write(self, data: ReadableBuffer) -> None:
        """Keep one buffer."""
        self.writev((data,))

    def writev(self, buffers: Sequence[ReadableBuffer]) -> None:
        """Keep several, in their order."""
        for buffer in buffers:
            data = bytes(buffer)
            self._kept.append(data)
            self.offset += len(data)

    def close(self) -> None:
        """Forget it."""
        self._kept.clear()

    def following(self) -> Following:
        """The record that tells of all that is kept."""
        hasher = xxhash.xxh3_128()
        for data in self._kept:
            hasher.update(data)
        return Following(self.offset, hasher.digest())

    def write_to(self, sink: ByteSink) -> None:
        """Its place has come."""
        sink.writev(self._kept)


class TrailerSource(DigestingSource):
    """Reads the trailer, and holds it against what the libxc stream told of it."""

    def __init__(self, source: ByteSource, expected: Following | None) -> None:
        """`source` stands behind END. `expected`: None for an image that tells nothing."""
        self._hasher = xxhash.xxh3_128()
        super().__init__(source, self._hasher.update)
        self._expected = expected
        self._begin = source.offset

    def check_end(self) -> None:
        """All of it has been read. BadRecord when it is not what was announced."""
        _check(self.name, self._begin, self.offset - self._begin, self._hasher.digest(), self._expected)


def check_trailer(source: ByteSource, expected: Following | None) -> None:
    """Hold the trailer against what was announced, where it can be read beforehand: in an uncompressed regular file.

    `source` stands behind END, and does so afterwards. BadRecord when it is not what was announced. For who hands the
    source over to somebody who does not compare.
    """
    file = source.regular_file
    if expected is None or file is None:
        return
    hasher, length = xxhash.xxh3_128(), 0
    for part in file.look_ahead(expected.length_bytes):
        hasher.update(part)
        length += len(part)
    _check(source.name, source.offset, length, hasher.digest(), expected)


def _check(name: str, begin: int, length: int, xxh3: bytes, expected: Following | None) -> None:
    if expected is None or (length, xxh3) == (expected.length_bytes, expected.xxh3):
        return
    is_whole = length == expected.length_bytes
    where = f"behind the libxc stream, from byte {begin:#x} to {begin + length:#x}"
    what = (
        f"the XXH3-128 digest of these {length} bytes is {xxh3.hex()} and should be {expected.xxh3.hex()}"
        if is_whole
        else f"{length} bytes, of which there should be {expected.length_bytes}"
    )
    raise BadRecord(
        f"{name} is damaged {where}: {what}",
        offset=begin,
        type=RecordType.FOLLOWING,
        name=ErrorName.DIGEST_MISMATCH if is_whole else None,
    )
