"""Reading a libxc stream: headers at once, then one record per call.

Page data are never held here. `next()` returns the entries of a PAGE_DATA record and leaves the pages
in the source, so that the consumer can have them put where they belong (`read_pages`) or passed over.
Exactly the bytes of the image are consumed: after END the source stands at the byte behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from saverestore.stream.digest import Before, DigestAlgorithm, DigestCheck
from saverestore.stream.errors import BadRecord, UnknownRecord
from saverestore.stream.grammar import Grammar
from saverestore.stream.headers import DomainHeader, ImageHeader
from saverestore.stream.layout import (
    ENTRY_DTYPE,
    KNOWN_PAGE_TYPES,
    OPTIONAL_BIT,
    PAGE_DATA_HEADER,
    PAGE_SIZE,
    RECORD_HEADER,
    RESERVED_MASK,
    RecordType,
    U32Array,
    U64Array,
    has_data,
    padding_of,
    pfns_of,
    record_name,
    types_of,
)
from saverestore.stream.limits import body_max_of
from saverestore.stream.records import RECORD_CLASSES, Record, UnknownOptional, X86PvInfo, X86PvP2mFrames
from saverestore.transport.base import ByteSource

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


@dataclass(frozen=True, eq=False)
class PageData:
    """The entries of one PAGE_DATA record; the pages are still in the stream.

    `offset` is where the record begins. `entries` (u64) are as on the wire, `pfns` (u64) and `types`
    (u32, `PageType`) their parts; every pfn occurs once. `nr_data` entries have a page each, in
    the order of the entries: those for which `has_data(types)` holds.
    """

    type = RecordType.PAGE_DATA
    offset: int
    entries: U64Array
    pfns: U64Array
    types: U32Array
    nr_data: int


AnyRecord: TypeAlias = "Record | PageData | UnknownOptional"
"""What `LibxcReader.next` returns."""


def check_entries(
    entries: U64Array, offset: int | None, max_pfn: int | None
) -> tuple[U64Array, U32Array, int]:
    """Return pfns, types and the number of entries with data; `BadRecord` for what may not be.

    That is: no entries at all, reserved bits, page types that do not exist, a pfn above `max_pfn`
    (where there is one), and the same pfn twice.
    """

    def refuse(index: int, problem: str) -> BadRecord:
        place = f"PAGE_DATA: entry {index} ({int(entries[index]):#018x})"
        return BadRecord(f"{place} {problem}", offset=offset, type=RecordType.PAGE_DATA)

    if len(entries) == 0:
        raise BadRecord("PAGE_DATA: without any entry", offset=offset, type=RecordType.PAGE_DATA)
    reserved = entries & np.uint64(RESERVED_MASK)
    if reserved.any():
        raise refuse(int(np.flatnonzero(reserved)[0]), "has reserved bits set")
    types = types_of(entries)
    known = KNOWN_PAGE_TYPES[types]
    if not known.all():
        index = int(np.flatnonzero(~known)[0])
        raise refuse(index, f"has page type {int(types[index])}, which does not exist")
    pfns = pfns_of(entries)
    if max_pfn is not None:
        outside = pfns > np.uint64(max_pfn)
        if outside.any():
            index = int(np.flatnonzero(outside)[0])
            raise refuse(index, f"names pfn {int(pfns[index]):#x}, above the domain's last, {max_pfn:#x}")
    if not (pfns[1:] > pfns[:-1]).all():  # rising pfns, the usual case, need no sorting
        order = np.argsort(pfns, kind="stable")
        ranked = pfns[order]
        twice = np.flatnonzero(ranked[1:] == ranked[:-1])
        if len(twice):
            index = int(order[int(twice[0]) + 1])
            raise refuse(index, f"names pfn {int(pfns[index]):#x} a second time")
    return pfns, types, int(np.count_nonzero(has_data(types)))


class LibxcReader:
    """Reads one libxc stream of version 2 or 3 from a source that stands at its image header.

    `image` and `domain` are its headers. `max_pfn` bounds the pfns of PAGE_DATA where it is not None:
    X86_PV_P2M_FRAMES sets it, the consumer may. `verifying` is true once VERIFY has come.
    An IMAGE_DIGEST that does not hold, or that was announced and did not come, is a `BadRecord`.
    Errors are `ImageError` with the offset in the source; the reader is of no use after one.
    """

    def __init__(
        self,
        source: ByteSource,
        prefix: bytes = b"",
        *,
        before: Before | None = None,
        check_digest: bool = True,
        require_digest: bool = False,
    ) -> None:
        """Read both headers; `prefix`: bytes of the stream that have been taken from `source` before.

        `before`: what came before the stream, to be held against what the image says of it. `check_digest`: false
        where pages are only passed over, as these must be read to be digested. `require_digest`: an image without
        a digest is a `BadRecord` at its END.
        """
        self._digest = DigestCheck(source, prefix, before, required=require_digest, enabled=check_digest)
        self._source = self._digest.source
        self.image = ImageHeader.read(self._source, prefix)
        self.domain = DomainHeader.read(self._source)
        self._grammar = Grammar(self.domain.type, self.image.version)
        self._pv_info: X86PvInfo | None = None
        self._pages_end: int | None = None
        self.max_pfn: int | None = None

    @property
    def verifying(self) -> bool:
        """Whether PAGE_DATA is to be compared with what has been stored, not stored."""
        return self._grammar.verifying

    @property
    def static_data_ended(self) -> bool:
        """Whether the static data are complete; in version 2 the first record after them tells."""
        return self._grammar.static_data_ended

    @property
    def ended(self) -> bool:
        """Whether END has been returned."""
        return self._grammar.ended

    @property
    def checked_digest(self) -> DigestAlgorithm | None:
        """The algorithm of the image's digest once it has been found to hold; None at END: there is no digest."""
        return self._digest.checked

    @property
    def nr_pages_left(self) -> int:
        """Pages of the last PAGE_DATA record that are still in the stream."""
        if self._pages_end is None:
            return 0
        return (self._pages_end - self._source.offset) // PAGE_SIZE

    def next(self) -> AnyRecord:
        """Read the next record; pages of the one before that nobody read are passed over.

        The last record is `End`; asking for another one is a mistake of the caller (`RuntimeError`).
        """
        if self.ended:
            raise RuntimeError(f"{self._source.name}: the libxc stream has been read to its end")
        self.skip_pages()
        offset = self._source.offset
        header = self._digest.read_header(RECORD_HEADER.size, "a libxc record header")
        type, length = RECORD_HEADER.unpack(header)
        self._check_header(type, length, offset)
        self._grammar.advance(type, offset)
        self._digest.begin(type, header)
        if type == RecordType.PAGE_DATA:
            return self._read_page_data(length, offset)
        if type & OPTIONAL_BIT and type not in RECORD_CLASSES:
            self._source.skip(length, f"the {record_name(type)}")
            self._read_padding(length, type, offset)
            return UnknownOptional(type, length)
        return self._read_record(RecordType(type), length, offset)

    def read_pages(self, views: Sequence[WriteableBuffer]) -> None:
        """Read all pages of the last PAGE_DATA record into `views`, which hold exactly that much.

        Order: of the entries that have data. Nothing is copied: the kernel fills the views.
        """
        self._read_pages(views, self.nr_pages_left * PAGE_SIZE)

    def read_some_pages(self, views: Sequence[WriteableBuffer]) -> None:
        """Like `read_pages`, for the next few pages: whole ones, and no more than are left."""
        self._read_pages(views, None)

    def skip_pages(self) -> None:
        """Pass over the pages of the last PAGE_DATA record that have not been read, if any."""
        if self._pages_end is not None:
            self._source.skip(self._pages_end - self._source.offset, "the pages of a PAGE_DATA record")
            self._pages_end = None

    def _read_pages(self, views: Sequence[WriteableBuffer], wanted: int | None) -> None:
        given = sum(memoryview(view).nbytes for view in views)
        left = self.nr_pages_left * PAGE_SIZE
        if wanted is None and given <= left and given % PAGE_SIZE == 0:
            wanted = given
        if given != wanted:
            raise ValueError(f"buffers of {given} bytes for pages of {left} bytes")
        self._source.readv(views, "the pages of a PAGE_DATA record")

    def _check_header(self, type: int, length: int, offset: int) -> None:
        if (
            not type & OPTIONAL_BIT
            and type not in RECORD_CLASSES
            and type
            not in (
                RecordType.PAGE_DATA,
                RecordType.TOOLSTACK,
            )
        ):
            raise UnknownRecord(
                f"{record_name(type)}, {length} bytes: this image needs a newer version of this program, "
                "or is damaged",
                offset=offset,
                type=type,
            )
        limit = body_max_of(type)
        if length > limit and type != RecordType.TOOLSTACK:
            raise BadRecord(
                f"{record_name(type)} record of {length} bytes, longer than the {limit} bytes it may have",
                offset=offset,
                type=type,
            )

    def _read_record(self, type: RecordType, length: int, offset: int) -> Record:
        body = self._source.read(length, f"the {type.name} record")
        self._read_padding(length, type, offset)
        record = RECORD_CLASSES[type].unpack(body, offset)
        self._digest.take(record, offset)
        if self.ended:
            self._digest.end(offset)
        if isinstance(record, X86PvInfo):
            self._pv_info = record
        elif isinstance(record, X86PvP2mFrames):
            # The grammar lets no P2M_FRAMES come before PV_INFO.
            if self._pv_info is not None:
                record.check_width(self._pv_info.guest_width, offset)
            self.max_pfn = record.last_pfn
        return record

    def _read_padding(self, length: int, type: int, offset: int) -> None:
        padding = self._source.read(padding_of(length), f"the padding of the {record_name(type)} record")
        if any(padding):
            raise BadRecord(
                f"{record_name(type)} record: nonzero padding {padding.hex()}", offset=offset, type=type
            )

    def _read_page_data(self, length: int, offset: int) -> PageData:
        if length < PAGE_DATA_HEADER.size:
            raise BadRecord(f"PAGE_DATA: body of {length} bytes", offset=offset, type=RecordType.PAGE_DATA)
        header = self._source.read(PAGE_DATA_HEADER.size, "the PAGE_DATA record")
        count, reserved = PAGE_DATA_HEADER.unpack(header)
        pages_bytes = length - PAGE_DATA_HEADER.size - count * ENTRY_DTYPE.itemsize
        if reserved or count == 0 or pages_bytes < 0:
            problem = (
                "reserved bytes are not zero" if reserved else f"{count} entries in a body of {length} bytes"
            )
            raise BadRecord(f"PAGE_DATA: {problem}", offset=offset, type=RecordType.PAGE_DATA)
        entries: U64Array = np.empty(count, dtype=ENTRY_DTYPE)
        self._source.readinto(entries.data, "the entries of a PAGE_DATA record")
        pfns, types, nr_data = check_entries(entries, offset, self.max_pfn)
        if pages_bytes != nr_data * PAGE_SIZE:
            raise BadRecord(
                f"PAGE_DATA: {pages_bytes} bytes for the pages of {nr_data} entries with data, "
                f"which are {nr_data * PAGE_SIZE}",
                offset=offset,
                type=RecordType.PAGE_DATA,
            )
        self._pages_end = self._source.offset + pages_bytes
        return PageData(offset, entries, pfns, types, nr_data)
