"""Writing a libxc stream: the counterpart of `reader`, with the same order of methods and checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from saverestore.kernels.zeros import zeros_marked
from saverestore.stream.codecs import Coding
from saverestore.stream.coding_choice import Coded, CodingChoice
from saverestore.stream.digest_written import DigestingSink, WrittenDigest
from saverestore.stream.errors import BadRecord
from saverestore.stream.framing import framing_of, length_of
from saverestore.stream.grammar import Grammar
from saverestore.stream.headers import DomainHeader, ImageHeader
from saverestore.stream.layout import (
    DRAFT_B_VERSION,
    MACHINE_ORDER,
    PAGE_DATA_HEADER,
    PAGE_SHIFT,
    PAGE_SIZE,
    RECORD_BODY_MAX,
    BoolArray,
    ByteOrder,
    DomainType,
    RecordType,
    U8Array,
    U64Array,
)
from saverestore.stream.limits import body_max_of
from saverestore.stream.page_coding import PageEncoder
from saverestore.stream.reader import check_entries
from saverestore.stream.records import End, Following, Record, X86PvInfo, X86PvP2mFrames
from saverestore.stream.versions import VersionCache
from saverestore.transport.base import ByteSink

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


@dataclass(frozen=True)
class PreparedPages:
    """A PAGE_DATA record as it will be written. Its buffers may be those that it was prepared of.

    `nr_zero`: how many of its pages are all zero.
    """

    buffers: Sequence[ReadableBuffer]
    nr_zero: int


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
        order: ByteOrder | None = None,
        coding: Coding | CodingChoice | None = None,
        versions: VersionCache | None = None,
        checksums: bool = True,
        digest: WrittenDigest | None = None,
    ) -> None:
        """Write both headers. `xen_version`: (major, minor) of the running Xen; `version`: 3 or 2, 1 is `draft-b`.

        That dialect alone has `order` (default: the machine's), `coding` of pages, or who chooses it (default: none),
        for `Codec.XOR` `versions` to code against, and `checksums` of records (default: each has one). `digest`:
        takes all that is written, and `end` writes it down; pages must then not change while they are written.
        """
        self._digest = digest
        self._sink: ByteSink = sink if digest is None else DigestingSink(sink, digest)
        is_draft_b = version == DRAFT_B_VERSION
        self.image = ImageHeader(version, (order or MACHINE_ORDER) if is_draft_b else ByteOrder.LITTLE)
        self.domain = DomainHeader(DomainType(domain_type), PAGE_SHIFT, *xen_version)
        self._framing = framing_of(self.image, checksums=checksums)
        self._encoder = PageEncoder(coding or Coding(), self.image.order, versions) if is_draft_b else None
        self._grammar = Grammar(self.domain.type, version)
        self._pv_info: X86PvInfo | None = None
        self.max_pfn: int | None = None
        self._sink.writev([self.image.pack(), self.domain.pack(self.image.order)])

    @property
    def coded(self) -> dict[str, Coded]:
        """What was written by each coding so far, by its name; empty where nothing is coded."""
        return {} if self._encoder is None else self._encoder.coded()

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
        body = record.pack(self.image.order)
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
        self._sink.writev(self._framing.frame(record.type, [body]))

    def page_data(self, entries: U64Array, pages: Sequence[ReadableBuffer]) -> None:
        """Write one PAGE_DATA record in one go.

        `entries`: u64, see `layout.entries_of`. `pages`: buffers of any sizes that together hold one
        page for each entry that has data, in the order of the entries.
        """
        self.write_prepared(self.prepare_pages(entries, pages, offset=self._sink.offset))

    def prepare_pages(
        self,
        entries: U64Array,
        pages: Sequence[ReadableBuffer],
        *,
        zero: BoolArray | None = None,
        may_change: bool = False,
        offset: int | None = None,
    ) -> PreparedPages:
        """Check, code and sum up one PAGE_DATA record, as for `page_data`: from any thread.

        It must be written, and before another record has any of its pfns: XOR takes its pages for sent.
        In the `xen` dialect the pages are given to the sink as they are, but for runs of zero pages, which are told
        to be that (`zeros`). `zero`: which pages are, where that is known, and `pages` is one buffer, or none.
        `may_change`: `pages` need not stay as they are, which spares a copy. `offset`: for the text of errors.
        """
        pfns, types, nr_data = check_entries(entries, offset, self.max_pfn)
        pages_bytes = length_of(pages)
        if pages_bytes != nr_data * PAGE_SIZE:
            raise BadRecord(
                f"PAGE_DATA: {pages_bytes} bytes for the pages of {nr_data} entries with data, "
                f"which are {nr_data * PAGE_SIZE}",
                offset=offset,
                type=RecordType.PAGE_DATA,
            )
        order = self.image.order
        length = PAGE_DATA_HEADER.size + entries.nbytes + pages_bytes
        if length > RECORD_BODY_MAX:
            raise BadRecord(
                f"PAGE_DATA: body of {length} bytes, longer than the {RECORD_BODY_MAX} bytes it may have",
                offset=offset,
                type=RecordType.PAGE_DATA,
            )
        if self._encoder is None:
            options, parts, nr_zero = 0, *_with_zeros_marked(pages, zero)
        else:
            options, parts, nr_zero = self._encoder.encode(
                pfns, types, _as_one(pages), zero, may_change=may_change
            )
        entry_bytes = entries.astype(order.entry_dtype, copy=False).view(np.uint8).data
        head = PAGE_DATA_HEADER.pack(len(entries), 0, order=order)
        return PreparedPages(
            self._framing.frame(RecordType.PAGE_DATA, [head, entry_bytes, *parts], options), nr_zero
        )

    def write_prepared(self, prepared: PreparedPages) -> None:
        """Write a record that has been prepared, in one go."""
        self._grammar.advance(RecordType.PAGE_DATA, self._sink.offset)
        self._sink.writev(prepared.buffers)

    def end(self, following: Following | None = None) -> None:
        """Write the digest, if there is one, and END: the image is complete, and takes no more records.

        `following`: what will come behind it, for the digest to cover; without a digest it is left out.
        """
        if self._digest is not None:
            if following is not None:
                self.record(following)
            self.record(self._digest.record())
        self.record(End())


def _with_zeros_marked(
    pages: Sequence[ReadableBuffer], zero: BoolArray | None
) -> tuple[list[ReadableBuffer], int]:
    """The same bytes, and how many pages are zero: of buffers of whole pages, others stay as they are."""
    parts: list[ReadableBuffer] = []
    nr_zero = 0
    for buffer in pages:
        if memoryview(buffer).nbytes % PAGE_SIZE:
            parts.append(buffer)
            continue
        marked, nr = zeros_marked(buffer, zero)
        parts += marked
        nr_zero += nr
    return parts, nr_zero


def _as_one(pages: Sequence[ReadableBuffer]) -> U8Array:
    """The pages as one array of shape (n, 4096); copied together where they are several buffers."""
    parts = [np.frombuffer(memoryview(page), dtype=np.uint8) for page in pages if memoryview(page).nbytes]
    if not parts:
        return np.empty((0, PAGE_SIZE), dtype=np.uint8)
    flat: U8Array = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return flat.reshape(-1, PAGE_SIZE)
