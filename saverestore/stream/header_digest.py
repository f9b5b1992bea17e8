"""The digest of a file's header: its bytes before the image header of the libxc stream.

IMAGE_DIGEST covers the stream alone. So an image's PROVENANCE also has, that each byte of the file is covered and a
reader knows in time what to compute:

    "integrity": {
        "digest": "xxh3",                            an IMAGE_DIGEST of this algorithm ends the stream
        "before": {"bytes": 2345, "xxh3": "…"}       XXH3-128 of the file before the image header
    }
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import xxhash

from saverestore.stream.digest_algorithms import DigestAlgorithm
from saverestore.stream.digesting_source import DigestingSource
from saverestore.transport.base import ByteSink, ByteSource
from saverestore.transport.passing import PassingSink

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


@dataclass(frozen=True)
class HeaderDigest:
    """Length and XXH3-128 (as hex) of a file's bytes before the image header."""

    length_bytes: int
    xxh3: str

    def fields(self) -> dict[str, Any]:
        """As PROVENANCE has it."""
        return {"bytes": self.length_bytes, "xxh3": self.xxh3}


def integrity_fields(algorithm: DigestAlgorithm, header: HeaderDigest | None) -> dict[str, Any]:
    """What PROVENANCE says under "integrity"."""
    fields: dict[str, Any] = {"digest": algorithm.option}
    if header is not None:
        fields["before"] = header.fields()
    return fields


class HeaderDigestSink(PassingSink[ByteSink]):
    """A `ByteSink` for a file's header; it digests what goes through."""

    def __init__(self, sink: ByteSink) -> None:
        super().__init__(sink)
        self._hasher = xxhash.xxh3_128()
        self._length_bytes = 0

    def writev(self, buffers: Sequence[ReadableBuffer]) -> None:
        """Digest several and write them, in their order."""
        for buffer in buffers:
            self._hasher.update(buffer)
            self._length_bytes += memoryview(buffer).nbytes
        super().writev(buffers)

    def digest(self) -> HeaderDigest:
        """Of all bytes that were written through it so far."""
        return HeaderDigest(self._length_bytes, self._hasher.hexdigest())


class HeaderDigestSource(DigestingSource):
    """Reads a file's header, and digests what comes through."""

    def __init__(self, source: ByteSource) -> None:
        self._hasher = xxhash.xxh3_128()
        self._length_bytes = 0
        super().__init__(source, self._count)

    def _count(self, data: ReadableBuffer) -> None:
        self._hasher.update(data)
        self._length_bytes += memoryview(data).nbytes

    def digest(self) -> HeaderDigest:
        """Of all bytes that have come through it so far."""
        return HeaderDigest(self._length_bytes, self._hasher.hexdigest())
