"""The seek table behind the frames of a seekable zstd file, and our digest of the file before it.

Source: zstd's contrib/seekable_format, version 0.1. The table is a skippable frame, so whoever does not know it
passes over it:

     0                       4                       8
    +-----------------------+-----------------------+
    | 0x184D2A5E            | length of the rest    |
    +-----------------------+-----------------------+--------------------------+
    | compressed size       | content size          | checksum, if D bit 7     |   one for each frame
    +-----------------------+-----+-----------------+-----+--------------------+
    | number of frames            | D, descriptor u8      | 0x8F92EAB1         |
    +-----------------------------+-----------------------+--------------------+

The checksum is that of the frame's content: the same 32 bits (low half of XXH64) that end the frame.

Directly before it we write a skippable frame of our own. A frame's checksum covers what the frame expands to; that
of the file covers the compressed bytes, also those whose change would expand to the same:

    +-----------------------+-----------------------+
    | 0x184D2A57            | 24                    |
    +-----------------------+-----------------------+-------------------------------+
    | "pysavezd"            | XXH3-128 of every byte of the file before this frame  |
    +-----------------------+-------------------------------------------------------+

and behind the file's first frame one that announces it, so that a file cut between its frames is not taken for one
that somebody else compressed, without all this:

    +-----------------------+-----------------------+
    | 0x184D2A57            | 8                     |
    +-----------------------+-----------------------+
    | "pysavezd"                                    |
    +-----------------------------------------------+

Skippable frames have entries in the table, too, with content size 0.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from typing import Self

import numpy as np
import numpy.typing as npt

from saverestore.errors import ImageError

SKIPPABLE_HEADER = struct.Struct("<II")
TABLE_MAGIC = 0x184D2A5E
FOOTER = struct.Struct("<IBI")
FOOTER_MAGIC = 0x8F92EAB1
HAS_CHECKSUMS = 0x80

TABLE_MAX = 32 << 20
"""Longest table that is read: frames of 4 MiB for an image of 10 TiB."""

DIGEST_MAGIC = 0x184D2A57
DIGEST_MARK = b"pysavezd"
DIGEST_BYTES = 16
OURS_MAX = len(DIGEST_MARK) + DIGEST_BYTES

PLAIN_ENTRY = np.dtype([("compressed", "<u4"), ("content", "<u4")])
CHECKED_ENTRY = np.dtype([("compressed", "<u4"), ("content", "<u4"), ("checksum", "<u4")])

EMPTY_CHECKSUM = 0x51D8E999
"""Low half of XXH64 of nothing: the checksum of a frame without content."""


@dataclass(frozen=True)
class Frame:
    """What the table says of one frame. `checksum`: None where the table has none."""

    compressed_size: int
    content_size: int
    checksum: int | None = None


class SeekTable:
    """Sizes of all frames before the table, in their order, as arrays of u32; `checksums` may be None."""

    def __init__(
        self,
        compressed: npt.NDArray[np.uint32],
        content: npt.NDArray[np.uint32],
        checksums: npt.NDArray[np.uint32] | None,
    ) -> None:
        self.compressed = compressed
        self.content = content
        self.checksums = checksums

    def __len__(self) -> int:
        return len(self.compressed)

    def frame(self, index: int) -> Frame:
        """The entry of one frame."""
        checksum = None if self.checksums is None else int(self.checksums[index])
        return Frame(int(self.compressed[index]), int(self.content[index]), checksum)

    @property
    def compressed_bytes(self) -> int:
        """Of all frames together: where the table begins."""
        return int(self.compressed.sum(dtype=np.uint64))

    @property
    def content_bytes(self) -> int:
        """Of all frames together."""
        return int(self.content.sum(dtype=np.uint64))

    @classmethod
    def of(cls, frames: list[Frame]) -> Self:
        """A table of these frames, all of them with a checksum."""
        columns = np.array([(f.compressed_size, f.content_size, f.checksum) for f in frames], dtype=np.uint32)
        columns = columns.reshape(-1, 3)
        return cls(columns[:, 0], columns[:, 1], columns[:, 2])

    def pack(self) -> bytes:
        """The whole skippable frame."""
        entries = np.empty(len(self), dtype=PLAIN_ENTRY if self.checksums is None else CHECKED_ENTRY)
        entries["compressed"], entries["content"] = self.compressed, self.content
        if self.checksums is not None:
            entries["checksum"] = self.checksums
        footer = FOOTER.pack(len(self), 0 if self.checksums is None else HAS_CHECKSUMS, FOOTER_MAGIC)
        return SKIPPABLE_HEADER.pack(TABLE_MAGIC, entries.nbytes + FOOTER.size) + entries.tobytes() + footer

    @classmethod
    def unpack(cls, body: bytes, *, name: str, offset: int) -> Self:
        """Read a table from the skippable frame's content; `offset`: where the frame begins, for messages."""
        if len(body) < FOOTER.size:
            raise ImageError(f"{name}: a seek table of {len(body)} bytes", offset=offset)
        count, descriptor, magic = FOOTER.unpack(body[-FOOTER.size :])
        if magic != FOOTER_MAGIC or descriptor & ~HAS_CHECKSUMS:
            raise ImageError(
                f"{name}: the seek table's footer is damaged: {body[-FOOTER.size :].hex()}", offset=offset
            )
        dtype = CHECKED_ENTRY if descriptor else PLAIN_ENTRY
        if count * dtype.itemsize + FOOTER.size != len(body):
            raise ImageError(f"{name}: a seek table of {len(body)} bytes for {count} frames", offset=offset)
        entries = np.frombuffer(body, dtype=dtype, count=count)
        checksums = entries["checksum"].copy() if descriptor else None
        return cls(entries["compressed"].copy(), entries["content"].copy(), checksums)


def table_bytes(tail: bytes) -> int | None:
    """Length of the seek table's frame, told by the last `FOOTER.size` bytes of a file; None if there is none."""
    count, descriptor, magic = FOOTER.unpack(tail)
    if magic != FOOTER_MAGIC:
        return None
    entry = CHECKED_ENTRY if descriptor & HAS_CHECKSUMS else PLAIN_ENTRY
    return SKIPPABLE_HEADER.size + int(count) * entry.itemsize + FOOTER.size


class Mark(Enum):
    """What a skippable frame of ours says without a digest."""

    ANNOUNCED = "digest and seek table follow at the end of the file"


ANNOUNCEMENT = SKIPPABLE_HEADER.pack(DIGEST_MAGIC, len(DIGEST_MARK)) + DIGEST_MARK
"""The skippable frame that announces the digest and the seek table."""


def pack_digest(digest: bytes) -> bytes:
    """The skippable frame with the digest of all before it."""
    return SKIPPABLE_HEADER.pack(DIGEST_MAGIC, len(DIGEST_MARK) + DIGEST_BYTES) + DIGEST_MARK + digest


def unpack_ours(magic: int, length: int, begin: bytes, *, name: str, offset: int) -> bytes | Mark | None:
    """The digest, or the announcement of one, in a skippable frame; None if it is none of ours.

    `begin`: the frame's content, of which only the first `OURS_MAX` bytes need be there. ImageError for one that is
    ours by its number or by its mark, but is not both, or not of such a length.
    """
    marked = begin.startswith(DIGEST_MARK)
    if magic != DIGEST_MAGIC and not marked:
        return None
    if magic == DIGEST_MAGIC and marked:
        if length == len(DIGEST_MARK):
            return Mark.ANNOUNCED
        if length == OURS_MAX:
            return begin[len(DIGEST_MARK) :]
    raise ImageError(f"{name}: a frame with the digest of the compressed file is damaged", offset=offset)
