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
    try:
        content: bytes = _decompressor().decompress(frame, max_output_size=max(content_size, 1))
    except zstandard.ZstdError as error:
        raise _damaged(name, str(error), offset) from error
    if len(content) != content_size:
        raise _wrong_size(name, len(content), content_size, offset)
    return content


def decompress_frame_into(target: memoryview, frame: bytes, *, name: str, offset: int) -> None:
    """Like `decompress_frame`, into memory of the content's size that is there: none is asked of the system.

    `frame` is whole, as its blocks have told (`zstd_frames.read_blocks`): one without its last bytes may pass here.
    """
    try:
        # The library decompresses at once, and straight into `target`, where all of the content fits.
        with _decompressor().stream_reader(frame) as reader:
            length = reader.readinto(target)
            more = reader.read(1)  # by this the checksum has been compared
    except zstandard.ZstdError as error:
        raise _damaged(name, str(error), offset) from error
    if length != len(target) or more:
        raise _wrong_size(name, length + len(more), len(target), offset)


def _decompressor() -> zstandard.ZstdDecompressor:
    decompressor = getattr(_of_thread, "decompressor", None)
    if decompressor is None:
        decompressor = _of_thread.decompressor = zstandard.ZstdDecompressor()
    return decompressor


def _damaged(name: str, problem: str, offset: int) -> ImageError:
    return ImageError(f"{name}: a zstd frame is damaged: {problem}", offset=offset)


def _wrong_size(name: str, found_bytes: int, content_size: int, offset: int) -> ImageError:
    return ImageError(
        f"{name}: a zstd frame holds {found_bytes} bytes where {content_size} belong", offset=offset
    )
