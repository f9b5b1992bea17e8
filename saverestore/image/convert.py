"""An image as it comes, written in another form: the same domain, in one pass, a batch of pages in memory.

    source ─► walk ─► events ─► what changes ─► writers of the wanted dialect ─► sink, compressing or not

What changes: version 2 becomes 3 (STATIC_DATA_END is put in where version 2 implies it); our own optional records
stay or go (`convert_digest`); pages are decoded and coded (`convert_pages`).

The image's digest is checked on the way. It covers the file's trailer, too: the new one, and END, wait until that has
been read, and is in memory.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from saverestore.errors import Advice, ErrorName, ImageError, Remedy
from saverestore.image.convert_digest import DigestPlan
from saverestore.image.convert_pages import PageConverter
from saverestore.image.index import Progress
from saverestore.stream.codecs import Coding
from saverestore.stream.digest_algorithms import KEEP_DIGEST
from saverestore.stream.digest_written import WrittenDigest
from saverestore.stream.grammar import WITHOUT_STATIC_DATA_END
from saverestore.stream.header_digest import HeaderDigestSink
from saverestore.stream.layout import DRAFT_B_VERSION, XEN_VERSIONS
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
from saverestore.stream.trailer import TrailerBuffer
from saverestore.stream.walk import walk
from saverestore.stream.writer import LibxcWriter
from saverestore.stream.xl import XlHeader
from saverestore.transport.base import ByteSink, ByteSource

XEN_VERSION = max(XEN_VERSIONS)

TRAILER_MAX_BYTES = 80 << 20
"""Longest trailer that is kept in memory: more than the longest records of libxl together."""


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
    digest: str = KEEP_DIGEST,
    may_continue: bool = False,
    on_progress: Progress | None = None,
    folder: Path | None = None,
) -> Conversion:
    """Write the image in `source` into `sink`.

    `coding`: how pages are coded in the dialect `draft-b`; None for Xen's own. `may_continue`: whether anything may
    follow the image, as on a block device. `plain`: without records of our own. `digest`: an algorithm's option,
    "none" or "keep". `on_progress(offset)`: of the source. `folder`: for a file with last versions of pages, where
    they are needed; if None, the system's for temporary files. On an error what was written is no whole image.
    UsageError for a digest that cannot be made here.
    """
    plan = DigestPlan(digest, plain=plain)
    with ExitStack() as stack:
        work = _Conversion(source, sink, coding, plan, stack, on_progress, folder)
        for event in walk(source):
            work.take(event)
            if on_progress is not None:
                on_progress(source.offset)
    if not may_continue and not source.at_end():
        raise ImageError(f"{source.name}: bytes follow the end of the image", offset=source.offset)
    return work.done


class _Conversion:
    """Events in, records out, in the order of the image; headers are written when the first record is known."""

    def __init__(
        self,
        source: ByteSource,
        sink: ByteSink,
        coding: Coding | None,
        plan: DigestPlan,
        stack: ExitStack,
        on_progress: Progress | None,
        folder: Path | None,
    ) -> None:
        self.done = Conversion()
        self._source = source
        self._sink = sink
        self._coding = coding
        self._plan = plan
        self._stack = stack
        self._on_progress = on_progress
        self._folder = folder or Path(tempfile.gettempdir())
        self._header = HeaderDigestSink(sink)
        self._outer: LibxlWriter | None = None
        self._reader: LibxcReader | None = None
        self._writer: LibxcWriter | None = None
        self._pages: PageConverter | None = None
        self._needs_static_end = False
        self._trailer: TrailerBuffer | None = None

    def take(self, event: object) -> None:
        """Write what comes of one event."""
        if isinstance(event, XlHeader):
            if event.config is None:
                raise ImageError(
                    f"{self._source.name}: xl's header has no configuration",
                    offset=0,
                    name=ErrorName.CONFIGURATION_MISSING,
                )
            XlHeader.write(self._header, event.config)
        elif isinstance(event, LibxlReader):
            self._outer = LibxlWriter(self._header, legacy=event.legacy)
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
        if self._trailer is None:
            return
        if self._trailer.offset > TRAILER_MAX_BYTES:
            raise ImageError(
                f"{self._source.name}: more than {TRAILER_MAX_BYTES >> 20} MiB behind the libxc stream",
                offset=record.offset,
            )
        if record.type is LibxlRecordType.END:
            assert self._writer is not None  # libxc's END has been read
            self._writer.end(self._trailer.following())
            self._trailer.write_to(self._sink)

    def _libxc_record(self, record: object) -> None:
        assert self._reader is not None  # its headers come before any record
        if self._writer is None or self._pages is None:
            self._writer, self._pages = self._begin(self._reader, record)
        writer = self._writer
        if self._needs_static_end and self._reader.static_data_ended:
            writer.record(StaticDataEnd())
            self._needs_static_end = False
        if isinstance(record, PageData):
            self.done.nr_pages += self._pages.convert(record)
            return
        self._pages.drain()
        if isinstance(record, UnknownOptional):
            self.done.leave_out(f"an optional record of the unknown type {record.type:#x}")
        elif isinstance(record, ImageDigest):
            if self._plan.keeps_none:
                self.done.leave_out(
                    "the digest, which the image does not announce at its start", Advice(Remedy.CHOOSE_DIGEST)
                )
        elif isinstance(record, Provenance):
            if (changed := self._plan.provenance(record)) is not None:
                writer.record(changed)
        elif isinstance(record, Following):
            pass  # what follows is told anew
        elif isinstance(record, End):
            self._end(writer)
        else:
            writer.record(_as_record(record))

    def _begin(self, reader: LibxcReader, first: object) -> tuple[LibxcWriter, PageConverter]:
        """Write the headers, now that the first record tells of which kind the digest is to be."""
        header = None if self._outer is None else self._header.digest()
        algorithm = self._plan.settle(first, reader.announced_digest, header)
        writer = LibxcWriter(
            self._sink,
            reader.domain.type,
            (reader.domain.xen_major, reader.domain.xen_minor),
            XEN_VERSION if self._coding is None else DRAFT_B_VERSION,
            coding=self._coding,
            digest=None if algorithm is None else self._stack.enter_context(WrittenDigest(algorithm)),
        )
        pages = self._stack.enter_context(
            PageConverter(self._source, reader, writer, self._coding, first, self._folder, self._on_progress)
        )
        if not isinstance(first, Provenance) and (announced := self._plan.provenance(None)) is not None:
            writer.record(announced)
        return writer, pages

    def _end(self, writer: LibxcWriter) -> None:
        """Write END: at once, or when all is known that its digest is to cover."""
        if self._outer is None or not self._plan.covers_file:
            writer.end()
            return
        self._trailer = TrailerBuffer(self._sink.name)
        self._outer.continue_in(self._trailer)


def _as_record(record: object) -> Record:
    assert isinstance(record, Record)  # all other events have been dealt with
    return record
