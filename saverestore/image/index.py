"""Where each page of an image is, and all that is not pages: read without reading the pages.

    PAGE_DATA │ header │ entries: read │ pages: passed over │ PAGE_DATA …

Only headers, entries and the records around them are read: of an image of 8 GiB about 16 MiB. A pfn that comes again
replaces what came before, as it does in a restore; one that comes again as "not there" is gone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from saverestore.errors import Advice, ErrorName, ImageError, Remedy, UsageError
from saverestore.image.access import AccessSource
from saverestore.image.pagemap import PageMap
from saverestore.stream.codecs import Codec
from saverestore.stream.errors import BadHeader
from saverestore.stream.headers import DomainHeader, ImageHeader
from saverestore.stream.layout import (
    PAGE_SIZE,
    TYPE_SHIFT,
    BoolArray,
    RecordType,
    U64Array,
    has_data,
)
from saverestore.stream.libxl import EMULATOR_TYPES, LibxlReader, LibxlRecord
from saverestore.stream.reader import LibxcReader, PageData
from saverestore.stream.records import Record, UnknownOptional
from saverestore.stream.walk import walk
from saverestore.stream.xl import XlHeader
from saverestore.transport.random_access import RandomAccess

STATE_MAX_BYTES = 256 << 20
"""Most bytes of records other than pages that are kept; real domains have some 100 KiB."""

OFFSET_MASK = np.uint64((1 << TYPE_SHIFT) - 1)

Progress = Callable[[int], None]
Key = tuple[str, int]


@dataclass
class ImageIndex:
    """An image that was walked through.

    `pages`: for each pfn that occurs, its *place*: bits 63–60 the page type, below them the offset of its data in the
    image, 0 for types without data. `records`: the last of each kind, by name and vCPU (0 for what is not a vCPU's);
    `emulators`: bodies of libxl's records, by name and index. `config`: libxl's JSON, None where there is none.
    """

    name: str
    layers: list[str] = field(default_factory=list)
    image: ImageHeader | None = None
    domain: DomainHeader | None = None
    config: dict[str, Any] | None = None
    records: dict[Key, Record] = field(default_factory=dict)
    emulators: dict[Key, bytes] = field(default_factory=dict)
    pages: PageMap = field(default_factory=PageMap)

    def records_of(self, type: RecordType) -> list[Record]:
        """All records of a type, by vCPU."""
        return [self.records[key] for key in sorted(self.records) if key[0] == type.name]


def types_of_places(places: U64Array) -> U64Array:
    """Page types (`PageType`)."""
    types: U64Array = places >> np.uint64(TYPE_SHIFT)
    return types


def offsets_of_places(places: U64Array) -> U64Array:
    """Where the data of pages begin; 0 where there are none."""
    offsets: U64Array = places & OFFSET_MASK
    return offsets


def with_data(places: U64Array) -> BoolArray:
    """Which of these pages have data."""
    there: BoolArray = (places & OFFSET_MASK) != 0
    return there


def index_image(
    access: RandomAccess, on_progress: Progress | None = None, *, state_max_bytes: int = STATE_MAX_BYTES
) -> ImageIndex:
    """Walk through an image to its end. `on_progress(offset)` is called after every record.
    `state_max_bytes`: most bytes of records other than pages, which are kept in memory.

    `ImageError` for an image that is damaged or incomplete, as far as that shows without reading the pages: its
    digest is not compared.
    """
    index = ImageIndex(access.name)
    source = AccessSource(access)
    reader: LibxcReader | None = None
    state_bytes = 0
    begin = 0
    for event in walk(source, check_digest=False):
        if isinstance(event, XlHeader):
            index.layers.append("xl")
            index.config = _config_of(event, access.name)
        elif isinstance(event, LibxlReader):
            index.layers.append("libxl")
        elif isinstance(event, LibxcReader):
            index.layers.append("libxc")
            index.image, index.domain, reader = event.image, event.domain, event
        elif isinstance(event, PageData):
            # Pages behind VERIFY are there once more, to be compared.
            if reader is not None and not reader.verifying:
                _check_plain(event, access.name)
                _put_pages(index.pages, event, source.offset)
        elif isinstance(event, LibxlRecord):
            state_bytes += source.offset - begin
            if event.type in EMULATOR_TYPES:
                index.emulators[event.type.name, event.emulator().index] = event.body
        elif not isinstance(event, UnknownOptional):
            state_bytes += source.offset - begin
            index.records[event.type.name, getattr(event, "vcpu", 0)] = event
        if state_bytes > state_max_bytes:
            raise ImageError(
                f"{access.name}: more than {state_max_bytes >> 20} MiB of records other than pages",
                offset=begin,
            )
        begin = source.offset
        if on_progress is not None:
            on_progress(begin)
    return index


def _config_of(header: XlHeader, name: str) -> dict[str, Any] | None:
    if header.config is None:
        return None
    try:
        config = json.loads(header.config)
    except (ValueError, RecursionError) as error:
        raise BadHeader(
            f"{name}: the domain's configuration is not JSON of libxl: {error}", offset=0
        ) from error
    if not isinstance(config, dict):
        raise BadHeader(f"{name}: the domain's configuration is not a JSON object", offset=0)
    return config


def _check_plain(record: PageData, name: str) -> None:
    """UsageError for pages that cannot be found by their offset, as they are coded together."""
    if record.codec is not Codec.NONE or record.nr_marked_zero:
        raise UsageError(
            f"{name}: its pages are coded, which does not allow random access",
            name=ErrorName.NOT_RANDOM_ACCESS,
            remedies=[Advice(Remedy.CONVERT_TO_XEN, name)],
        )


def _put_pages(pages: PageMap, record: PageData, data_offset: int) -> None:
    """Note the entries of a record whose pages begin at `data_offset`."""
    types = record.types.astype(np.uint64)
    there = has_data(types)
    offsets = np.zeros(len(types), dtype=np.uint64)
    offsets[there] = np.arange(record.nr_data, dtype=np.uint64) * np.uint64(PAGE_SIZE) + np.uint64(
        data_offset
    )
    pages.put(record.pfns, types << np.uint64(TYPE_SHIFT) | offsets)
