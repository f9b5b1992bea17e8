"""An image as it comes, written in another form: the same domain, in one pass, a batch of pages in memory.

    source ─► walk ─► events ─► what changes ─► writers of the wanted dialect ─► sink, compressing or not

What changes: version 2 becomes 3 (STATIC_DATA_END is put in where version 2 implies it); our own optional records
stay or go. Pages that are coded by what was sent before (xor) are decoded; where an image may have such ones, the
last versions of its pages are kept in a file meanwhile (`last_pages`).

The image's digest is checked on the way, and a new one of the same kind is made of what is written; which kind that
is must be known before the first byte, so the image's PROVENANCE must come first and announce it. It covers what
comes behind the libxc stream, too: digest and END wait until that has been read, and is in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from saverestore.errors import Advice, ErrorName, ImageError, Remedy
from saverestore.image.coding_ahead import CodingAhead
from saverestore.image.index import Progress
from saverestore.image.last_pages import LastPages
from saverestore.stream.behind import BehindSink
from saverestore.stream.codecs import Codec, Coding
from saverestore.stream.digest import (
    BeforeSink,
    DigestAlgorithm,
    WrittenDigest,
    algorithm_for_writing,
    integrity_fields,
)
from saverestore.stream.grammar import WITHOUT_STATIC_DATA_END
from saverestore.stream.layout import DRAFT_B_VERSION, PAGE_SIZE, XEN_VERSIONS, has_data
from saverestore.stream.libxl import LibxlReader, LibxlRecord, LibxlRecordType, LibxlWriter
from saverestore.stream.reader import LibxcReader, PageData
from saverestore.stream.records import (
    End,
    Following,
    ImageDigest,
    Provenance,
    Record,
    StaticDataEnd,
    UnknownOptional,
)
from saverestore.stream.walk import walk
from saverestore.stream.writer import LibxcWriter
from saverestore.stream.xl import XlHeader
from saverestore.transport.base import ByteSink, ByteSource
from saverestore.transport.cores import usable_cores

BATCH_PAGES = 4096
"""Most pages of a PAGE_DATA record that is written, as in a save: 16 MiB. Records with fewer stay as they are."""

XEN_VERSION = max(XEN_VERSIONS)

BEHIND_MAX_BYTES = 80 << 20
"""Most bytes behind the libxc stream that are kept in memory: more than the longest records of libxl together."""

XOR_NAME = Codec.XOR.name.lower()

KEEP = "keep"
"""Of the digest: the kind that the image has."""


@dataclass
class Conversion:
    """What a conversion did.

    `left_out`: records that could not go into the result, in words, each kind once, with what can be done about it.
    """

    nr_pages: int = 0
    left_out: dict[str, Advice | None] = field(default_factory=dict)

    def leave_out(self, name: str, advice: Advice | None = None) -> None:
        """Note that a record was left out."""
        self.left_out.setdefault(name, advice)


def convert(
    source: ByteSource,
    sink: ByteSink,
    *,
    coding: Coding | None = None,
    plain: bool = False,
    digest: str = KEEP,
    may_go_on: bool = False,
    on_progress: Progress | None = None,
    folder: Path | None = None,
) -> Conversion:
    """Write the image in `source` into `sink`.

    `coding`: how pages are coded in the dialect `draft-b`; None for Xen's own. `may_go_on`: whether anything may
    follow the image, as on a block device. `plain`: without records of our own. `digest`: an algorithm's option,
    "none" or "keep". `on_progress(offset)`: of the source. `folder`: for a file with last versions of pages, where
    they are needed; if None, the system's for temporary files. On an error what was written is no whole image.
    UsageError for a digest that cannot be made here.
    """
    wanted = None if plain else KEEP if digest == KEEP else algorithm_for_writing(digest)
    with ExitStack() as stack:
        work = _Work(source, sink, coding, wanted, stack, plain=plain, on_progress=on_progress, folder=folder)
        for event in walk(source):
            work.take(event)
            if on_progress is not None:
                on_progress(source.offset)
    if not may_go_on and not source.at_end():
        raise ImageError(f"{source.name}: bytes follow the end of the image", offset=source.offset)
    return work.done


class _Work:
    """One conversion: events in, bytes out."""

    def __init__(
        self,
        source: ByteSource,
        sink: ByteSink,
        coding: Coding | None,
        wanted: DigestAlgorithm | str | None,
        stack: ExitStack,
        *,
        plain: bool,
        on_progress: Progress | None,
        folder: Path | None,
    ) -> None:
        self.done = Conversion()
        self._source = source
        self._sink = sink
        self._coding = coding
        self._wanted = wanted
        self._stack = stack
        self._before = BeforeSink(sink)
        self._plain = plain
        self._on_progress = on_progress
        self._outer: LibxlWriter | None = None
        self._reader: LibxcReader | None = None
        self._writer: LibxcWriter | None = None
        self._algorithm: DigestAlgorithm | None = None
        self._integrity: dict[str, Any] | None = None
        self._ahead: CodingAhead | None = None
        self._needs_static_end = False
        self._tells_outside = False
        self._behind: BehindSink | None = None
        self._folder = folder or Path(tempfile.gettempdir())
        self._last: LastPages | None = None
        self._buffer = np.empty(BATCH_PAGES * PAGE_SIZE, dtype=np.uint8)

    def take(self, event: object) -> None:
        """Write what comes of one event."""
        if isinstance(event, XlHeader):
            if event.config is None:
                raise ImageError(
                    f"{self._source.name}: xl's header has no configuration to go on with",
                    offset=0,
                    name=ErrorName.CONFIGURATION_MISSING,
                )
            XlHeader.write(self._before, event.config)
        elif isinstance(event, LibxlReader):
            self._outer = LibxlWriter(self._before, legacy=event.legacy)
        elif isinstance(event, LibxlRecord):
            self._libxl_record(event)
        elif isinstance(event, LibxcReader):
            self._reader = event
            self._needs_static_end = event.image.version == WITHOUT_STATIC_DATA_END
        else:
            self._libxc_record(event)

    def _libxl_record(self, record: LibxlRecord) -> None:
        assert self._outer is not None  # its header comes first
        if record.type is LibxlRecordType.LIBXC_CONTEXT:
            self._outer.libxc_context()
            return
        self._outer.record(record.type, record.body)
        if self._behind is None:
            return
        if self._behind.offset > BEHIND_MAX_BYTES:
            raise ImageError(
                f"{self._source.name}: more than {BEHIND_MAX_BYTES >> 20} MiB behind the libxc stream",
                offset=record.offset,
            )
        if record.type is LibxlRecordType.END:
            assert self._writer is not None  # libxc's END has been read
            self._writer.end(self._behind.following())
            self._behind.write_to(self._sink)

    def _libxc_record(self, record: object) -> None:
        assert self._reader is not None  # its headers come before any record
        if self._writer is None:
            self._begin(self._reader, record)
        writer = self._writer
        assert writer is not None  # begun just now, or before
        if self._needs_static_end and self._reader.static_data_ended:
            writer.record(StaticDataEnd())
            self._needs_static_end = False
        if isinstance(record, PageData):
            self._pages(record, self._reader, writer)
            return
        if self._ahead is not None:
            self._ahead.drain()
        if isinstance(record, UnknownOptional):
            self.done.leave_out(f"an optional record of the unknown type {record.type:#x}")
        elif isinstance(record, ImageDigest):
            if self._algorithm is None and self._wanted == KEEP:
                self.done.leave_out(
                    "the digest, which the image does not announce at its start", Advice(Remedy.CHOOSE_DIGEST)
                )
        elif isinstance(record, Provenance):
            self._provenance(record, writer)
        elif isinstance(record, Following):
            pass  # what follows is told anew
        elif isinstance(record, End):
            self._end(writer)
        else:
            writer.record(_as_record(record))

    def _begin(self, reader: LibxcReader, first: object) -> None:
        """Write the headers, now that the first record tells of which kind the digest is to be."""
        announced = first.fields.get("integrity") if isinstance(first, Provenance) else None
        if isinstance(self._wanted, DigestAlgorithm):
            self._algorithm = self._wanted
        elif self._wanted == KEEP and isinstance(announced, dict) and reader.announced_digest is not None:
            self._algorithm = reader.announced_digest
        before = None
        # Who wrote a digest without it did not know what lies around the stream, and somebody may take it off again.
        is_bare = self._wanted == KEEP and isinstance(announced, dict) and "before" not in announced
        if self._outer is not None and not is_bare:
            before = self._before.before()
            self._tells_outside = self._algorithm is not None
        digest = None
        if self._algorithm is not None:
            digest = self._stack.enter_context(WrittenDigest(self._algorithm))
            self._integrity = integrity_fields(self._algorithm, before)
        xen = (reader.domain.xen_major, reader.domain.xen_minor)
        if reader.image.version == DRAFT_B_VERSION and _may_have_deltas(first):
            self._last = self._stack.enter_context(LastPages(self._folder))
        version = XEN_VERSION if self._coding is None else DRAFT_B_VERSION
        self._writer = LibxcWriter(
            self._sink, reader.domain.type, xen, version, coding=self._coding, digest=digest
        )
        if self._coding is not None and self._coding.codec is not Codec.NONE:
            self._ahead = self._stack.enter_context(
                CodingAhead(self._writer, buffer_bytes=BATCH_PAGES * PAGE_SIZE, workers=usable_cores())
            )
        if self._integrity is not None and not isinstance(first, Provenance):
            self._writer.record(Provenance({"integrity": self._integrity}))
            self._integrity = None

    def _end(self, writer: LibxcWriter) -> None:
        """Write END: at once, or when all is known that its digest is to cover."""
        if self._outer is None or not self._tells_outside:
            writer.end()
            return
        self._behind = BehindSink(self._sink.name)
        self._outer.go_on_in(self._behind)

    def _provenance(self, record: Provenance, writer: LibxcWriter) -> None:
        """Write it, with what is now true of the digest: only the first tells of one."""
        if self._plain:
            return
        fields = {name: value for name, value in record.fields.items() if name != "integrity"}
        if self._integrity is not None:
            fields["integrity"], self._integrity = self._integrity, None
        if fields or not record.fields:
            writer.record(Provenance(fields))

    def _pages(self, record: PageData, reader: LibxcReader, writer: LibxcWriter) -> None:
        last = self._last
        if record.codec is Codec.XOR and last is None:
            raise ImageError(
                f"{self._source.name}: pages coded by xor, but the note of its save tells of another form",
                offset=record.offset,
            )
        there = has_data(record.types)
        for begin, end in _cuts(there):
            with_data = there[begin:end]
            nr_pages = int(np.count_nonzero(with_data))
            entries, pfns = record.entries[begin:end], record.pfns[begin:end]
            buffer = self._buffer if self._ahead is None else self._ahead.buffer()
            pages = buffer[: nr_pages * PAGE_SIZE]
            if nr_pages:
                if record.codec is Codec.XOR and last is not None:
                    last.get_into(pages.reshape(-1, PAGE_SIZE), pfns[with_data])
                reader.read_some_pages([pages.data])
            if last is not None:
                last.put(pfns[with_data], pages.reshape(-1, PAGE_SIZE))
                last.forget(pfns[~with_data])
            if self._ahead is None:
                writer.page_data(entries, [pages.data] if nr_pages else [])
            else:
                self._ahead.page_data(entries, buffer, pages.nbytes)
            self.done.nr_pages += nr_pages
            if self._on_progress is not None:
                self._on_progress(self._source.offset)


def _may_have_deltas(first: object) -> bool:
    """Whether pages coded by xor may come: not where the note of a save, the first record, tells otherwise."""
    options = first.fields.get("options") if isinstance(first, Provenance) else None
    told = options.get("format") if isinstance(options, dict) else None
    return not isinstance(told, str) or XOR_NAME in told


def _cuts(there: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Iterator[tuple[int, int]]:
    """Cut entries into parts of which none has more than BATCH_PAGES with data, or eight times that many at all."""
    counted = np.cumsum(there)
    begin = 0
    while begin < len(there):
        before = int(counted[begin - 1]) if begin else 0
        end = int(np.searchsorted(counted, before + BATCH_PAGES, side="right"))
        end = min(end, begin + 8 * BATCH_PAGES, len(there))
        yield begin, end
        begin = end


def _as_record(record: object) -> Record:
    assert isinstance(record, Record)  # all other events have been dealt with
    return record
