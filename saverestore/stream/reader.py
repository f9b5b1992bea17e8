"""Reading a libxc stream: headers at once, then one record per call.

`next()` returns the entries of a PAGE_DATA record and leaves the pages in the source, so that the consumer can
have them put where they belong (`read_pages`) or passed over. Pages that are as they are are never held here;
coded ones are, a record of them at a time.
Exactly the bytes of the image are consumed: after END the source stands at the byte behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from saverestore.kernels.entries import EntryForm, split
from saverestore.stream.codecs import Codec
from saverestore.stream.digest_algorithms import DigestAlgorithm
from saverestore.stream.digest_checked import DigestCheck
from saverestore.stream.errors import BadRecord, UnknownRecord
from saverestore.stream.framing import FOR_PAGES, RecordBody, RecordHeader, framing_of, length_of
from saverestore.stream.grammar import Grammar
from saverestore.stream.header_digest import HeaderDigest
from saverestore.stream.headers import DomainHeader, ImageHeader
from saverestore.stream.layout import (
    ENTRY_BYTES,
    KNOWN_PAGE_TYPES,
    NR_PAGE_TYPES,
    OPTIONAL_BIT,
    PAGE_DATA_HEADER,
    PAGE_SIZE,
    PFN_MASK,
    RESERVED_MASK,
    TYPE_SHIFT,
    BoolArray,
    PageType,
    RecordType,
    U8Array,
    U64Array,
    has_data,
    pfns_of,
    record_name,
    types_of,
)
from saverestore.stream.limits import body_max_of
from saverestore.stream.page_coding import CodedPages, read_coding
from saverestore.stream.records import (
    RECORD_CLASSES,
    Following,
    Record,
    UnknownOptional,
    X86PvInfo,
    X86PvP2mFrames,
)
from saverestore.transport.base import ByteSource

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


@dataclass(frozen=True, eq=False)
class PageData:
    """The entries of one PAGE_DATA record; the pages are still in the stream.

    `offset` is where the record begins. `entries` (u64) are as on the wire, `pfns` (u64) and `types`
    (u8, `PageType`) their parts; every pfn occurs once. `nr_data` entries have a page each, in
    the order of the entries: those for which `has_data(types)` holds. `codec`: how these are coded; with
    `Codec.XOR` they can only be read over the last versions of the pages. `nr_marked_zero` of them take no
    room in the image, being all zero.
    """

    type = RecordType.PAGE_DATA
    offset: int
    entries: U64Array
    pfns: U64Array
    types: U8Array
    nr_data: int
    codec: Codec = Codec.NONE
    nr_marked_zero: int = 0


ENTRY_FORM = EntryForm(
    PFN_MASK,
    TYPE_SHIFT,
    known=sum(1 << int(kind) for kind in PageType),
    with_data=sum(1 << kind for kind in np.flatnonzero(has_data(np.arange(NR_PAGE_TYPES))).tolist()),
)

AnyRecord: TypeAlias = "Record | PageData | UnknownOptional"
"""What `LibxcReader.next` returns."""


def check_entries(
    entries: U64Array, offset: int | None, max_pfn: int | None
) -> tuple[U64Array, U8Array, int]:
    """Return pfns, types and the number of entries with data; `BadRecord` for what may not be.

    That is: no entries at all, reserved bits, page types that do not exist, a pfn above `max_pfn`
    (where there is one), and the same pfn twice.
    """

    def refuse(index: int, problem: str) -> BadRecord:
        place = f"PAGE_DATA: entry {index} ({int(entries[index]):#018x})"
        return BadRecord(f"{place} {problem}", offset=offset, type=RecordType.PAGE_DATA)

    if len(entries) == 0:
        raise BadRecord("PAGE_DATA: without any entry", offset=offset, type=RecordType.PAGE_DATA)
    if (usual := split(np.ascontiguousarray(entries, dtype=np.uint64), ENTRY_FORM, max_pfn)) is not None:
        return usual
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
    order = np.argsort(pfns, kind="stable")
    ranked = pfns[order]
    twice = np.flatnonzero(ranked[1:] == ranked[:-1])
    if len(twice):
        index = int(order[int(twice[0]) + 1])
        raise refuse(index, f"names pfn {int(pfns[index]):#x} a second time")
    return pfns, types, int(np.count_nonzero(has_data(types)))


class _PagesAsTheyAre:
    """The pages of one record that come from the source straight into where they belong."""

    def __init__(self, body: RecordBody, nr_pages: int) -> None:
        self._body = body
        self.nr_left = nr_pages
        if not nr_pages:
            body.finish()

    def read(self, views: Sequence[WriteableBuffer], nr_pages: int) -> None:
        """Fill `views` with the next pages."""
        self._body.readv(views, "the pages of a PAGE_DATA record")
        self.nr_left -= nr_pages
        if nr_pages and not self.nr_left:
            self._body.finish()

    def read_carried(self, buffer: memoryview) -> BoolArray:
        """All of them, as `CodedPages` does: none is marked as zero."""
        zero = np.zeros(self.nr_left, dtype=bool)
        if len(zero):
            with buffer[: len(zero) * PAGE_SIZE] as part:
                self.read([part], len(zero))
        return zero

    def skip(self) -> None:
        """Pass over what has not been read."""
        if self.nr_left:
            self._body.skip(self.nr_left * PAGE_SIZE, "the pages of a PAGE_DATA record")
            self._body.finish()
        self.nr_left = 0


class LibxcReader:
    """Reads one libxc stream, of either dialect, from a source that stands at its image header.

    `image` and `domain` are its headers. `max_pfn` bounds the pfns of PAGE_DATA where it is not None:
    X86_PV_P2M_FRAMES sets it, the consumer may. `verifying` is true once VERIFY has come.
    An IMAGE_DIGEST that does not hold, or that was announced and did not come, is a `BadRecord`. `following`: what
    the stream tells of the bytes behind it, once that has come; whoever reads these compares (`trailer`).
    Errors are `ImageError` with the offset in the source; the reader is of no use after one.
    """

    def __init__(
        self,
        source: ByteSource,
        prefix: bytes = b"",
        *,
        header_digest: HeaderDigest | None = None,
        check_digest: bool = True,
        require_digest: bool = False,
    ) -> None:
        """Read both headers; `prefix`: bytes of the stream that have been taken from `source` before.

        `header_digest`: of what came before the stream, to be held against what the image says of it.
        `check_digest`: false where pages are only passed over, as these must be read to be digested.
        `require_digest`: an image without a digest is a `BadRecord` at its END.
        """
        self._digest = DigestCheck(
            source, prefix, header_digest, required=require_digest, enabled=check_digest
        )
        self._source = self._digest.source
        self.image = ImageHeader.read(self._source, prefix)
        self.domain = DomainHeader.read(self._source, self.image.order)
        self._framing = framing_of(self.image)
        self._grammar = Grammar(self.domain.type, self.image.version)
        self._pv_info: X86PvInfo | None = None
        self._pages: _PagesAsTheyAre | CodedPages | None = None
        self.max_pfn: int | None = None
        self.following: Following | None = None

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
    def announced_digest(self) -> DigestAlgorithm | None:
        """The algorithm of the digest that the image says it ends with, once PROVENANCE has come."""
        return self._digest.announced

    @property
    def nr_pages_left(self) -> int:
        """Pages of the last PAGE_DATA record that are still in the stream."""
        return 0 if self._pages is None else self._pages.nr_left

    def next(self) -> AnyRecord:
        """Read the next record; pages of the one before that nobody read are passed over.

        The last record is `End`; asking for another one is a mistake of the caller (`RuntimeError`).
        """
        if self.ended:
            raise RuntimeError(f"{self._source.name}: the libxc stream has been read to its end")
        self.skip_pages()
        header = self._framing.read_header(self._digest.header_source)
        self._check_header(header)
        self._grammar.advance(header.type, header.offset)
        self._digest.begin(header.type)
        body = self._framing.body_of(self._source, header)
        if header.type == RecordType.PAGE_DATA:
            return self._read_page_data(body)
        if header.type & OPTIONAL_BIT and header.type not in RECORD_CLASSES:
            body.skip(header.length, f"the {record_name(header.type)}")
            body.finish()
            return UnknownOptional(header.type, header.length)
        return self._read_record(RecordType(header.type), body)

    def read_pages(self, views: Sequence[WriteableBuffer]) -> None:
        """Read all pages of the last PAGE_DATA record into `views`, which hold exactly that much.

        Order: of the entries that have data. Pages that are not coded are not copied: the kernel fills the views.
        Of a record that has `Codec.XOR`, the views hold the last versions of these pages.
        """
        self._read_pages(views, self.nr_pages_left * PAGE_SIZE)

    def read_some_pages(self, views: Sequence[WriteableBuffer]) -> None:
        """Like `read_pages`, for the next few pages: whole ones, and no more than are left."""
        self._read_pages(views, None)

    def read_carried(self, buffer: WriteableBuffer) -> BoolArray:
        """Read what is left of the last PAGE_DATA record's pages, but for those that it marks as all zero: which
        these are.

        The others come one behind the other at the beginning of `buffer`, which has room for all. They are read in
        one piece, however zero pages are scattered among them. ValueError for a record that has `Codec.XOR`.
        """
        if self._pages is None:
            return np.zeros(0, dtype=bool)
        with memoryview(buffer) as view, view.cast("B") as flat:
            if len(flat) < self.nr_pages_left * PAGE_SIZE:
                raise ValueError(f"a buffer of {len(flat)} bytes for {self.nr_pages_left} pages")
            return self._pages.read_carried(flat)

    def skip_pages(self) -> None:
        """Pass over the pages of the last PAGE_DATA record that have not been read, if any."""
        if self._pages is not None:
            self._pages.skip()
            self._pages = None

    def _read_pages(self, views: Sequence[WriteableBuffer], wanted: int | None) -> None:
        given = length_of(views)
        left = self.nr_pages_left * PAGE_SIZE
        if wanted is None and given <= left and given % PAGE_SIZE == 0:
            wanted = given
        if given != wanted:
            raise ValueError(f"buffers of {given} bytes for pages of {left} bytes")
        if self._pages is not None:
            self._pages.read(views, given // PAGE_SIZE)

    def _check_header(self, header: RecordHeader) -> None:
        type, length = header.type, header.length
        known = type in RECORD_CLASSES or type in (RecordType.PAGE_DATA, RecordType.TOOLSTACK)
        if not type & OPTIONAL_BIT and not known:
            raise UnknownRecord(
                f"{record_name(type)}, {length} bytes: this image needs a newer version of this program, "
                "or is damaged",
                offset=header.offset,
                type=type,
            )
        limit = body_max_of(type)
        if length > limit and type != RecordType.TOOLSTACK:
            raise BadRecord(
                f"{record_name(type)} record of {length} bytes, longer than the {limit} bytes it may have",
                offset=header.offset,
                type=type,
            )

    def _read_record(self, type: RecordType, body: RecordBody) -> Record:
        offset = body.header.offset
        content = body.read(body.header.length, f"the {type.name} record")
        body.finish()
        record = RECORD_CLASSES[type].unpack(content, offset, self.image.order)
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
        elif isinstance(record, Following):
            self.following = record
        return record

    def _read_page_data(self, body: RecordBody) -> PageData:
        order, header = self.image.order, body.header
        offset, length = header.offset, header.length
        if length < PAGE_DATA_HEADER.size:
            raise BadRecord(f"PAGE_DATA: body of {length} bytes", offset=offset, type=RecordType.PAGE_DATA)
        count, reserved = PAGE_DATA_HEADER.unpack(
            body.read(PAGE_DATA_HEADER.size, "the PAGE_DATA record"), order
        )
        if reserved or count == 0 or count * ENTRY_BYTES > body.left:
            problem = (
                "reserved bytes are not zero" if reserved else f"{count} entries in a body of {length} bytes"
            )
            raise BadRecord(f"PAGE_DATA: {problem}", offset=offset, type=RecordType.PAGE_DATA)
        on_wire = np.empty(count, dtype=order.entry_dtype)
        body.readv([on_wire.view(np.uint8).data], "the entries of a PAGE_DATA record")
        entries: U64Array = on_wire.astype(np.uint64, copy=False)
        pfns, types, nr_data = check_entries(entries, offset, self.max_pfn)
        if not header.options & FOR_PAGES:
            if body.left != nr_data * PAGE_SIZE:
                raise BadRecord(
                    f"PAGE_DATA: {body.left} bytes for the pages of {nr_data} entries with data, "
                    f"which are {nr_data * PAGE_SIZE}",
                    offset=offset,
                    type=RecordType.PAGE_DATA,
                )
            self._pages = _PagesAsTheyAre(body, nr_data)
            return PageData(offset, entries, pfns, types, nr_data)
        coming = read_coding(body, nr_data, order)
        self._pages = CodedPages(body, coming, types[has_data(types)], order)
        return PageData(offset, entries, pfns, types, nr_data, coming.codec, nr_data - coming.nr_carried)
