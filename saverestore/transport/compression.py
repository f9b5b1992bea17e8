"""Which compression a file has: told by its first bytes, never by its name."""

from __future__ import annotations

from enum import Enum

from saverestore.transport import zstd_frames

FIRST_BYTES = 4
"""So many of a file's first bytes tell."""

GZIP_MAGIC = b"\x1f\x8b"
LZ4_MAGIC = b"\x04\x22\x4d\x18"


class Compression(Enum):
    """What an image can be compressed with and still be read here."""

    NONE = "none"
    ZSTD = "zstd"
    GZIP = "gzip"
    LZ4 = "lz4"


def compression_of(first: bytes) -> Compression:
    """Which one a file has that begins with these bytes, `FIRST_BYTES` of them where there are so many."""
    if first.startswith(zstd_frames.MAGIC) or (len(first) == FIRST_BYTES and zstd_frames.is_skippable(first)):
        return Compression.ZSTD
    if first.startswith(GZIP_MAGIC):
        return Compression.GZIP
    return Compression.LZ4 if first.startswith(LZ4_MAGIC) else Compression.NONE
