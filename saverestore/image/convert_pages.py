"""The pages of a conversion: from one PAGE_DATA record to one or more, decoded, and coded anew.

Pages that are coded by what was sent before (xor) are decoded; where an image may have such ones, the last versions
of its pages are kept in a file meanwhile (`last_pages`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from saverestore.errors import ImageError
from saverestore.image.coding_ahead import CodingAhead
from saverestore.image.index import Progress
from saverestore.image.last_pages import LastPages
from saverestore.stream.codecs import Codec, Coding
from saverestore.stream.layout import DRAFT_B_VERSION, PAGE_SIZE, BoolArray, has_data
from saverestore.stream.reader import LibxcReader, PageData
from saverestore.stream.records import Provenance
from saverestore.stream.writer import LibxcWriter
from saverestore.transport.base import ByteSource
from saverestore.transport.cores import usable_cores

BATCH_PAGES = 4096
"""Most pages of a PAGE_DATA record that is written, as in a save: 16 MiB. Records with fewer stay as they are."""

XOR_NAME = Codec.XOR.name.lower()


class PageConverter:
    """Reads the pages of records from one stream and writes them to another. A context manager: it has threads."""

    def __init__(
        self,
        source: ByteSource,
        reader: LibxcReader,
        writer: LibxcWriter,
        coding: Coding | None,
        first: object,
        folder: Path,
        on_progress: Progress | None,
    ) -> None:
        """`coding`: of what is written; `first`: the first record of what is read, which may tell how it was saved.

        `source`: what `reader` reads from, for its place; `folder`: for last versions of pages, if they are needed.
        """
        self._source = source
        self._reader = reader
        self._writer = writer
        self._on_progress = on_progress
        self._buffer = np.empty(BATCH_PAGES * PAGE_SIZE, dtype=np.uint8)
        self._ahead: CodingAhead | None = None
        self._last: LastPages | None = None
        with ExitStack() as stack:
            if reader.image.version == DRAFT_B_VERSION and _may_have_deltas(first):
                self._last = stack.enter_context(LastPages(folder))
            if coding is not None and coding.codec is not Codec.NONE:
                ahead = CodingAhead(writer, buffer_bytes=BATCH_PAGES * PAGE_SIZE, workers=usable_cores())
                self._ahead = stack.enter_context(ahead)
            self._stack = stack.pop_all()

    def convert(self, record: PageData) -> int:
        """Read the pages of this record, which the reader has just returned, and write them: how many have data.

        They are written by the next `drain` at the last. ImageError for a record that cannot be decoded.
        """
        last = self._last
        if record.codec is Codec.XOR and last is None:
            raise ImageError(
                f"{self._source.name}: pages coded by xor, but the note of its save names another codec",
                offset=record.offset,
            )
        there = has_data(record.types)
        for begin, end in cut_entries(there):
            with_data = there[begin:end]
            nr_pages = int(np.count_nonzero(with_data))
            entries, pfns = record.entries[begin:end], record.pfns[begin:end]
            buffer = self._buffer if self._ahead is None else self._ahead.buffer()
            pages = buffer[: nr_pages * PAGE_SIZE]
            if nr_pages:
                if record.codec is Codec.XOR and last is not None:
                    last.get_into(pages.reshape(-1, PAGE_SIZE), pfns[with_data])
                self._reader.read_some_pages([pages.data])
            if last is not None:
                last.put(pfns[with_data], pages.reshape(-1, PAGE_SIZE))
                last.forget(pfns[~with_data])
            if self._ahead is None:
                self._writer.page_data(entries, [pages.data] if nr_pages else [])
            else:
                self._ahead.page_data(entries, buffer, pages.nbytes)
            if self._on_progress is not None:
                self._on_progress(self._source.offset)
        return record.nr_data

    def drain(self) -> None:
        """Write all pages that are still being coded, before another record is written."""
        if self._ahead is not None:
            self._ahead.drain()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def _may_have_deltas(first: object) -> bool:
    """Whether pages coded by xor may come: not where the note of a save, the first record, tells otherwise."""
    options = first.fields.get("options") if isinstance(first, Provenance) else None
    page_format = options.get("format") if isinstance(options, dict) else None
    return not isinstance(page_format, str) or XOR_NAME in page_format


def cut_entries(there: BoolArray) -> Iterator[tuple[int, int]]:
    """Cut entries into parts of which none has more than BATCH_PAGES with data, or eight times that many at all."""
    counted = np.cumsum(there)
    begin = 0
    while begin < len(there):
        before = int(counted[begin - 1]) if begin else 0
        end = int(np.searchsorted(counted, before + BATCH_PAGES, side="right"))
        end = min(end, begin + 8 * BATCH_PAGES, len(there))
        yield begin, end
        begin = end
