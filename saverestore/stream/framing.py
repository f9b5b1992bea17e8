"""What is around a record's body: the one thing in which the dialects differ for every record.

`xen` (image versions 2 and 3): header, body, padding. No checksum.

     0                       4                       8
    +-----------------------+-----------------------+
    | type                  | body length           | body … padding
    +-----------------------+-----------------------+

`draft-b` (image version 1): a longer header, and a footer.

     0           4           8     10    12          16                            0          4          8
    +-----------+-----------+-----+-----+-----------+----------------- ─ ─ ─ ─ --+----------+----------+
    | type      | body len  | opt.| res.| reserved  | body … padding             | CRC-32   | reserved |
    +-----------+-----------+-----+-----+-----------+----------------- ─ ─ ─ ─ --+----------+----------+

The CRC-32 covers body and padding, and the header before them where `RecordOption.COVERS_HEADER` is set, as it
is in all that has one and is written here. Without `RecordOption.CHECKSUM` it is zero and nothing is checked.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, Protocol

from saverestore.stream.errors import BadRecord
from saverestore.stream.headers import ImageHeader
from saverestore.stream.layout import (
    DRAFT_B_VERSION,
    MIB,
    RECORD_HEADER,
    ByteOrder,
    Fields,
    RecordType,
    padding_of,
    record_name,
)
from saverestore.transport.base import ByteSource

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

LONG_HEADER = Fields("IIHHI")
FOOTER = Fields("II")

SKIP_BUFFER_BYTES = 1 * MIB
"""What is passed over is read all the same where it has a checksum: so many bytes at a time."""


class RecordOption(IntFlag):
    """Bits of a `draft-b` record's options; in bits 4 to 7, PAGE_DATA has its `codecs.Codec`."""

    CHECKSUM = 1
    COVERS_HEADER = 2
    ZERO_MAP = 4
    """PAGE_DATA only: pages that are all zero are told by a bitmap behind the entries."""


CODEC_SHIFT = 4
CODEC_MASK = 0xF << CODEC_SHIFT
ALWAYS_ALLOWED = RecordOption.CHECKSUM | RecordOption.COVERS_HEADER
FOR_PAGES = RecordOption.ZERO_MAP | CODEC_MASK
"""Those that say that the pages of a PAGE_DATA record are not simply all there."""


@dataclass(frozen=True)
class RecordHeader:
    """`offset`: where it begins. `length`: of the body, in bytes. `options`: 0 in the `xen` dialect."""

    offset: int
    type: int
    length: int
    options: int = 0

    def bad(self, problem: str) -> BadRecord:
        """The error that says this of the record."""
        return BadRecord(f"{record_name(self.type)} record: {problem}", offset=self.offset, type=self.type)


class RecordBody:
    """A record's body while it is read, in parts, and then `finish`ed; exactly `left` bytes can be read."""

    def __init__(self, source: ByteSource, header: RecordHeader) -> None:
        self._source = source
        self.header = header
        self.left = header.length

    def read(self, n: int, what: str) -> bytes:
        """Return the next `n` bytes."""
        data = self._source.read(n, what)
        self.left -= n
        return data

    def readv(self, views: Sequence[WriteableBuffer], what: str) -> None:
        """Fill these with the next bytes."""
        self._source.readv(views, what)
        self.left -= sum(memoryview(view).nbytes for view in views)

    def skip(self, n: int, what: str) -> None:
        """Pass over the next `n` bytes."""
        self._source.skip(n, what)
        self.left -= n

    def finish(self) -> None:
        """Read what follows the body; `BadRecord` when it is not as it should be."""
        self._read_padding()

    def _read_padding(self) -> bytes:
        length = padding_of(self.header.length)
        padding = self._source.read(length, f"the padding of the {record_name(self.header.type)} record")
        if any(padding):
            raise self.header.bad(f"nonzero padding {padding.hex()}")
        return padding


class ChecksummedBody(RecordBody):
    """A body whose bytes are summed up as they are read, where the record has a checksum; `finish` compares."""

    def __init__(self, source: ByteSource, header: RecordHeader, order: ByteOrder, covered: bytes) -> None:
        super().__init__(source, header)
        self._order = order
        self._has_checksum = bool(header.options & RecordOption.CHECKSUM)
        self._crc = zlib.crc32(covered)

    def read(self, n: int, what: str) -> bytes:
        """See RecordBody."""
        data = super().read(n, what)
        if self._has_checksum:
            self._crc = zlib.crc32(data, self._crc)
        return data

    def readv(self, views: Sequence[WriteableBuffer], what: str) -> None:
        """See RecordBody."""
        super().readv(views, what)
        if self._has_checksum:
            for view in views:
                self._crc = zlib.crc32(view, self._crc)

    def skip(self, n: int, what: str) -> None:
        """See RecordBody; the bytes are read, and summed up, where there is a checksum."""
        if not self._has_checksum:
            super().skip(n, what)
            return
        buffer = memoryview(bytearray(min(n, SKIP_BUFFER_BYTES)))
        while n:
            part = buffer[:n]
            self.readv([part], what)
            n -= len(part)

    def finish(self) -> None:
        """See RecordBody: padding and footer."""
        self._crc = zlib.crc32(self._read_padding(), self._crc)
        name = record_name(self.header.type)
        footer = self._source.read(FOOTER.size, f"the footer of the {name} record")
        checksum, reserved = FOOTER.unpack(footer, self._order)
        if reserved:
            raise self.header.bad(f"reserved bytes of its footer are not zero but {reserved:#x}")
        if not self._has_checksum:
            if checksum:
                raise self.header.bad(f"a checksum, {checksum:#010x}, in a record that claims to have none")
        elif checksum != self._crc:
            raise self.header.bad(
                f"damaged: its bytes have the CRC-32 {self._crc:#010x}, and should have {checksum:#010x}"
            )


class Framing(Protocol):
    """How records of one dialect begin and end."""

    order: ByteOrder

    def read_header(self, source: ByteSource) -> RecordHeader:
        """Read the next record's header; the length in it is not checked yet."""

    def body_of(self, source: ByteSource, header: RecordHeader) -> RecordBody:
        """The body, to be read, of the record whose header has just been read."""

    def frame(
        self, type: RecordType, body: Sequence[ReadableBuffer], options: int = 0
    ) -> list[ReadableBuffer]:
        """The buffers that make up a record with this body. Those of the body stay as they are until written."""


class XenFraming:
    """Image versions 2 and 3."""

    order = ByteOrder.LITTLE

    def read_header(self, source: ByteSource) -> RecordHeader:
        """See Framing."""
        offset = source.offset
        data = source.read(RECORD_HEADER.size, "a libxc record header")
        type, length = RECORD_HEADER.unpack(data, self.order)
        return RecordHeader(offset, type, length)

    def body_of(self, source: ByteSource, header: RecordHeader) -> RecordBody:
        """See Framing."""
        return RecordBody(source, header)

    def frame(
        self, type: RecordType, body: Sequence[ReadableBuffer], options: int = 0
    ) -> list[ReadableBuffer]:
        """See Framing; there are no options."""
        length = length_of(body)
        header = RECORD_HEADER.pack(type, length, order=self.order)
        return [header, *body, bytes(padding_of(length))]


class DraftBFraming:
    """Image version 1. `checksums`: whether records get one when they are written."""

    def __init__(self, order: ByteOrder, *, checksums: bool = True) -> None:
        self.order = order
        self._checksums = checksums

    def read_header(self, source: ByteSource) -> RecordHeader:
        """See Framing."""
        offset = source.offset
        data = source.read(LONG_HEADER.size, "a libxc record header")
        type, length, options, reserved, more_reserved = LONG_HEADER.unpack(data, self.order)
        header = RecordHeader(offset, type, length, options)
        allowed = ALWAYS_ALLOWED | (FOR_PAGES if type == RecordType.PAGE_DATA else 0)
        if reserved or more_reserved:
            raise header.bad("reserved bytes of its header are not zero")
        if options & ~int(allowed):
            raise header.bad(
                f"options {options:#06x}, of which {options & ~int(allowed):#06x} mean nothing here"
            )
        if options & ALWAYS_ALLOWED == RecordOption.COVERS_HEADER:
            raise header.bad(f"options {options:#06x}: a checksum over the header, but none at all")
        return header

    def body_of(self, source: ByteSource, header: RecordHeader) -> RecordBody:
        """See Framing."""
        covered = b""
        if header.options & RecordOption.COVERS_HEADER:
            covered = self._pack_header(header.type, header.length, header.options)
        return ChecksummedBody(source, header, self.order, covered)

    def frame(
        self, type: RecordType, body: Sequence[ReadableBuffer], options: int = 0
    ) -> list[ReadableBuffer]:
        """See Framing."""
        length = length_of(body)
        if not self._checksums:
            header = self._pack_header(type, length, options)
            return [header, *body, bytes(padding_of(length)), FOOTER.pack(0, 0, order=self.order)]
        header = self._pack_header(type, length, options | ALWAYS_ALLOWED)
        covered = [header, *body, bytes(padding_of(length))]
        crc = 0
        for part in covered:
            crc = zlib.crc32(part, crc)
        return [*covered, FOOTER.pack(crc, 0, order=self.order)]

    def _pack_header(self, type: int, length: int, options: int) -> bytes:
        return LONG_HEADER.pack(type, length, options, 0, 0, order=self.order)


def framing_of(image: ImageHeader, *, checksums: bool = True) -> Framing:
    """The framing of an image's dialect. `checksums`: see DraftBFraming."""
    return (
        DraftBFraming(image.order, checksums=checksums) if image.version == DRAFT_B_VERSION else XenFraming()
    )


def length_of(buffers: Sequence[ReadableBuffer]) -> int:
    """How many bytes these buffers have together."""
    return sum(memoryview(buffer).nbytes for buffer in buffers)
