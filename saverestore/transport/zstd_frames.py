"""Zstandard frames, as far as one must know them to find their ends without decompressing (RFC 8878).

     0          4    5            …           …
    +----------+----+------------+-----------+--------------------------+---------------------+
    | magic    | D  | window,    | content   | blocks: u24 header, body | checksum u32,       |
    |          |    | dictionary | size      |                          | if D says so        |
    +----------+----+------------+-----------+--------------------------+---------------------+

    D, descriptor:  7-6 length of size | 5 single segment | 4 unused | 3 reserved | 2 checksum | 1-0 dictionary
    block header:   23-3 size | 2-1 type | 0 last

    skippable frame: | magic 0x184D2A5? u32 | length u32 | anything |

Bytes are pulled, a piece at a time, by a `Take`: so frames in memory and frames that come through a pipe are read by
the same code. Nothing is allocated by what a frame claims: a block has at most 128 KiB, and what comes of the blocks
together is the caller's to bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from saverestore.errors import ErrorName, ImageError

MAGIC = b"\x28\xb5\x2f\xfd"
MAGIC_BYTES = 4
SKIPPABLE_MAGIC = 0x184D2A50
SKIPPABLE_MASK = 0xFFFFFFF0

BLOCK_HEADER_BYTES = 3
BLOCK_MAX = 128 << 10
CHECKSUM_BYTES = 4
RLE_BLOCK = 1
RESERVED_BLOCK = 3

CONTENT_SIZE_BYTES = (0, 2, 4, 8)
DICTIONARY_BYTES = (0, 1, 2, 4)

Take: TypeAlias = Callable[[int], bytes]
"""Returns exactly so many bytes, the next ones; raises `EndOfStream` when there are not so many."""


def is_skippable(magic: bytes) -> bool:
    """Whether a frame that begins like this says nothing of the content."""
    return int.from_bytes(magic, "little") & SKIPPABLE_MASK == SKIPPABLE_MAGIC


@dataclass(frozen=True)
class FrameHeader:
    """The head of one frame. `raw`: its bytes, with the magic; `content_size`: None where it does not say."""

    raw: bytes
    content_size: int | None
    window_size: int
    has_checksum: bool


def read_header(take: Take, magic: bytes, *, name: str, offset: int) -> FrameHeader:
    """Read what follows `magic`, which has been taken. `offset`: where the frame begins, for messages.

    ImageError for what is no frame, and for bits that are reserved or that no compressor sets: damage, then.
    """
    if magic != MAGIC:
        raise ImageError(
            f"{name}: {magic.hex()} where a zstd frame should start: damaged, or something follows the image",
            offset=offset,
        )
    descriptor = take(1)
    bits = descriptor[0]
    if bits & 0x18:
        raise ImageError(
            f"{name}: reserved bits are set in the header of a zstd frame ({bits:#04x})", offset=offset
        )
    single = bool(bits & 0x20)
    dictionary_bytes = DICTIONARY_BYTES[bits & 3]
    size_bytes = CONTENT_SIZE_BYTES[bits >> 6] or int(single)
    rest = take((not single) + dictionary_bytes + size_bytes)
    if any(rest[not single : (not single) + dictionary_bytes]):
        raise ImageError(
            f"{name}: compressed with a dictionary, which is not here",
            offset=offset,
            name=ErrorName.IMAGE_UNSUPPORTED,
        )
    content_size = None
    if size_bytes:
        # The two-byte form counts from 256 on: smaller ones have the one-byte form.
        content_size = int.from_bytes(rest[-size_bytes:], "little") + (256 if size_bytes == 2 else 0)
    if single and content_size is not None:
        window_size = content_size
    else:
        base = 1 << (10 + (rest[0] >> 3))
        window_size = base + (base >> 3) * (rest[0] & 7)
    return FrameHeader(magic + descriptor + rest, content_size, window_size, bool(bits & 4))


def read_blocks(take: Take, header: FrameHeader, *, name: str, offset: int) -> Iterator[bytes]:
    """Everything behind a header, to the end of the frame, in pieces of at most a block and some bytes.

    The pieces joined to `header.raw` are the frame. `offset`: where the frame begins, for messages.
    """
    block_header = take(BLOCK_HEADER_BYTES)
    while True:
        last, length = block_of(block_header, name=name, offset=offset)
        if last:
            yield block_header + take(length + (CHECKSUM_BYTES if header.has_checksum else 0))
            return
        # With the next block's header: half as many calls.
        body = take(length + BLOCK_HEADER_BYTES)
        yield block_header + body[:length]
        block_header = body[length:]


def block_of(block_header: bytes, *, name: str, offset: int) -> tuple[bool, int]:
    """Whether it is the frame's last block, and how many bytes follow its header. ImageError for what is no block."""
    bits = int.from_bytes(block_header, "little")
    kind, size = bits >> 1 & 3, bits >> 3
    if kind == RESERVED_BLOCK or (size > BLOCK_MAX and kind != RLE_BLOCK):
        raise ImageError(f"{name}: a zstd frame is damaged: no block starts with {bits:#08x}", offset=offset)
    return bool(bits & 1), 1 if kind == RLE_BLOCK else size
