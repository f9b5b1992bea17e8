"""Decompressing one whole zstd frame whose size is known: `zstandard`, a decompressor for each thread, kept.

Nothing is allocated by what a frame claims: the caller says how much may come of it.
"""

from __future__ import annotations

import threading

import zstandard

from saverestore.errors import ImageError

FRAME_CONTENT_MAX = 8 << 20
"""Most content of a frame that is decompressed as a whole, in memory. We write about 4 MiB, at most 6."""

_of_thread = threading.local()


def compressed_max(content_size: int) -> int:
    """Longest frame for so much content, of whatever writer: stored blocks, each flushed at 1 KiB."""
    return content_size + (content_size >> 8) + 1024


def decompress_frame(frame: bytes, content_size: int, *, name: str, offset: int) -> bytes:
    """Exactly `content_size` bytes, of one frame; the caller has seen that its header says the same, or nothing.

    ImageError for anything else: damage, a wrong checksum, more or less content.
    """
    decompressor = getattr(_of_thread, "decompressor", None)
    if decompressor is None:
        decompressor = _of_thread.decompressor = zstandard.ZstdDecompressor()
    try:
        content: bytes = decompressor.decompress(frame, max_output_size=max(content_size, 1))
    except zstandard.ZstdError as error:
        raise ImageError(f"{name}: a zstd frame is damaged: {error}", offset=offset) from error
    if len(content) != content_size:
        raise ImageError(
            f"{name}: a zstd frame holds {len(content)} bytes where {content_size} belong", offset=offset
        )
    return content
