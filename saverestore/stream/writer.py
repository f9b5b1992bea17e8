"""Writing a libxc stream: the counterpart of `reader`, with the same order of methods and checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from saverestore.stream.digest import DigestingSink, WrittenDigest
from saverestore.stream.errors import BadRecord
from saverestore.stream.grammar import Grammar
from saverestore.stream.headers import DomainHeader, ImageHeader
from saverestore.stream.layout import (
    ENTRY_DTYPE,
    PAGE_DATA_HEADER,
    PAGE_SHIFT,
    PAGE_SIZE,
    RECORD_BODY_MAX,
    RECORD_HEADER,
    DomainType,
    RecordType,
    U64Array,
    padding_of,
)
from saverestore.stream.limits import body_max_of
from saverestore.stream.reader import check_entries
from saverestore.stream.records import End, Record, X86PvInfo, X86PvP2mFrames
from saverestore.transport.base import ByteSink

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class LibxcWriter:
    """Writes one libxc stream into a sink, and nothing that `LibxcReader` would not take.

    A record that breaks the format raises `BadRecord` (`OutOfOrder` for its place) before a byte of
    it is written; the writer can go on then. After a `TransportError` it cannot.
    """

    def __init__(
        self,
        sink: ByteSink,
        domain_type: DomainType,
        xen_version: tuple[int, int],
        version: int = 3,
        *,
        digest: WrittenDigest | None = None,
    ) -> None:
        """Write both headers. `xen_version`: (major, minor) of the running Xen; `version`: 3 or 2.

        `digest`: takes all that is written, and `end` writes it down. Pages must then not change while they are
        written.
        """
        self._digest = digest
        self._sink: ByteSink = sink if digest is None else DigestingSink(sink, digest)
        self.image = ImageHeader(version)
        self.domain = DomainHeader(DomainType(domain_type), PAGE_SHIFT, *xen_version)
        self._grammar = Grammar(self.domain.type, version)
        self._pv_info: X86PvInfo | None = None
        self.max_pfn: int | None = None
        self._sink.writev([self.image.pack(), self.domain.pack()])

    @property
    def verifying(self) -> bool:
        """Whether VERIFY has been written."""
        return self._grammar.verifying

    @property
    def ended(self) -> bool:
        """Whether END has been written."""
        return self._grammar.ended

    def record(self, record: Record) -> None:
        """Write any record but PAGE_DATA."""
        offset = self._sink.offset
        body = record.pack()
        if len(body) > body_max_of(record.type):
            raise BadRecord(
                f"{record.type.name} record of {len(body)} bytes, longer than the "
                f"{body_max_of(record.type)} bytes it may have",
                offset=offset,
                type=record.type,
            )
        if isinstance(record, X86PvP2mFrames) and self._pv_info is not None:
            record.check_width(self._pv_info.guest_width, offset)
        self._grammar.advance(record.type, offset)
        if isinstance(record, X86PvInfo):
            self._pv_info = record
        elif isinstance(record, X86PvP2mFrames):
            self.max_pfn = record.last_pfn
        header = RECORD_HEADER.pack(record.type, len(body))
        self._sink.writev([header, body, bytes(padding_of(len(body)))])

    def page_data(self, entries: U64Array, pages: Sequence[ReadableBuffer]) -> None:
        """Write one PAGE_DATA record in one go; the pages are given to the sink as they are.

        `entries`: u64, see `layout.entries_of`. `pages`: buffers of any sizes that together hold one
        page for each entry that has data, in the order of the entries.
        """
        offset = self._sink.offset
        entries = entries.astype(ENTRY_DTYPE, copy=False)
        _, _, nr_data = check_entries(entries, offset, self.max_pfn)
        pages_bytes = sum(memoryview(page).nbytes for page in pages)
        if pages_bytes != nr_data * PAGE_SIZE:
            raise BadRecord(
                f"PAGE_DATA: {pages_bytes} bytes for the pages of {nr_data} entries with data, "
                f"which are {nr_data * PAGE_SIZE}",
                offset=offset,
                type=RecordType.PAGE_DATA,
            )
        length = PAGE_DATA_HEADER.size + entries.nbytes + pages_bytes
        if length > RECORD_BODY_MAX:
            raise BadRecord(
                f"PAGE_DATA: body of {length} bytes, longer than the {RECORD_BODY_MAX} bytes it may have",
                offset=offset,
                type=RecordType.PAGE_DATA,
            )
        self._grammar.advance(RecordType.PAGE_DATA, offset)
        header = RECORD_HEADER.pack(RecordType.PAGE_DATA, length) + PAGE_DATA_HEADER.pack(len(entries), 0)
        self._sink.writev([header, entries.data, *pages])

    def end(self) -> None:
        """Write the digest, if there is one, and END: the image is complete, and takes no more records."""
        if self._digest is not None:
            self.record(self._digest.record())
        self.record(End())
