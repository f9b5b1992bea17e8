"""Walking a whole image: every layer, every record, every page; in bounded memory, without seeking.

What is found before an error is kept beside it, so that a damaged image can still be looked into.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from saverestore.errors import ImageError
from saverestore.stream import libxl
from saverestore.stream.codecs import Codec
from saverestore.stream.errors import BadHeader, OutOfOrder
from saverestore.stream.headers import DomainHeader, ImageHeader
from saverestore.stream.layout import RecordType, record_name
from saverestore.stream.reader import AnyRecord, LibxcReader, PageData
from saverestore.stream.records import Checkpoint, End, ImageDigest, Provenance, UnknownOptional
from saverestore.stream.tally import PageStatistics, WordPages
from saverestore.stream.xl import MAGIC, XlHeader
from saverestore.stream.zero_pages import PAGE_WORDS
from saverestore.transport.base import ByteSource

T = libxl.LibxlRecordType
V = TypeVar("V")

PREFIX_BYTES = 8
"""So many first bytes tell the three layers apart; no header is shorter."""

LIBXC_PREFIX = b"\xff" * PREFIX_BYTES
LIBXL_PREFIX = libxl.IDENT.to_bytes(PREFIX_BYTES, "big")

BATCH_PAGES = 1024

RECORD_NAMES_MAX = 100
"""Kinds of records told apart; a damaged image may have any number of optional ones."""

OTHER_RECORDS = "further optional records"

OTHER_FORMATS = {
    b"\x28\xb5\x2f\xfd": "compressed with zstd; give it through a pipe: zstd -dc IMAGE | pyimage … -",
    b"\x1f\x8b": "compressed with gzip; give it through a pipe: gzip -dc IMAGE | pyimage … -",
    b"\xfd7zXZ\0": "compressed with xz; give it through a pipe: xz -dc IMAGE | pyimage … -",
    b"LinuxGue": "an image of xend (Xen 4.4 or before), which cannot be read here",
    b"\x7fELF": "an ELF file; images of Xen are none",
}

Progress = Callable[[int], None]


@dataclass
class RecordCount:
    """How often a type of record occurs, and the bytes they take with headers and padding."""

    count: int = 0
    length_bytes: int = 0


@dataclass(frozen=True)
class ConfigSummary:
    """What libxl's JSON says of the domain; None for what is absent or of another kind than usual."""

    name: str | None
    uuid: str | None
    type: str | None
    max_vcpus: int | None
    memory_kib: int | None
    max_memory_kib: int | None

    @classmethod
    def of(cls, config: dict[str, Any]) -> ConfigSummary:
        """Pick the fields out of libxl's configuration."""
        creation, build = _dict(config.get("c_info")), _dict(config.get("b_info"))
        return cls(
            name=_instance(creation.get("name"), str),
            uuid=_instance(creation.get("uuid"), str),
            type=_instance(creation.get("type"), str),
            max_vcpus=_instance(build.get("max_vcpus"), int),
            memory_kib=_instance(build.get("target_memkb"), int),
            max_memory_kib=_instance(build.get("max_memkb"), int),
        )


@dataclass
class Survey:
    """What an image holds. Without `error` it is whole; with it, the rest is what came before.

    `layers`: of "xl", "libxl", "libxc", outermost first. `records`: by name, in the order of their first
    occurrence; libxl's begin with "libxl ". `checkpoints`: CHECKPOINT records. `total_bytes`: read in
    all. `trailing_bytes`: behind the end of the image. `digest`: carried, not compared.
    """

    name: str
    layers: list[str] = field(default_factory=list)
    image: ImageHeader | None = None
    domain: DomainHeader | None = None
    config: ConfigSummary | None = None
    provenance: dict[str, Any] | None = None
    digest: ImageDigest | None = None
    records: dict[str, RecordCount] = field(default_factory=dict)
    pages: PageStatistics = field(default_factory=PageStatistics)
    checkpoints: int = 0
    total_bytes: int = 0
    trailing_bytes: int = 0
    error: ImageError | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the image is complete and nothing is wrong with it."""
        return self.error is None


def survey(source: ByteSource, on_progress: Progress | None = None) -> Survey:
    """Read `source` to the end of the image in it, whichever layer that begins with.

    `on_progress(offset)` is called after every batch of pages. Errors of the image are returned in
    `Survey.error`; `TransportError` is raised. What follows the image is not looked at.
    """
    found = Survey(source.name)
    try:
        _Walk(source, found, on_progress or _no_progress).walk()
    except ImageError as error:
        found.error = found.error or error
    found.total_bytes = source.offset
    return found


def note_trailing_bytes(found: Survey, trailing_bytes: int) -> None:
    """Record that the source goes on behind the image; that makes a whole image a damaged one."""
    if trailing_bytes and found.error is None:
        found.error = ImageError(
            f"{found.name}: {trailing_bytes} bytes follow the end of the image", offset=found.total_bytes
        )
    found.trailing_bytes = trailing_bytes
    found.total_bytes += trailing_bytes


class _Walk:
    """One pass over one image."""

    def __init__(self, source: ByteSource, found: Survey, on_progress: Progress) -> None:
        self._source = source
        self._found = found
        self._on_progress = on_progress
        self._buffer: WordPages | None = None

    def walk(self) -> None:
        prefix = self._source.read(PREFIX_BYTES, "the first header")
        if prefix == MAGIC[:PREFIX_BYTES]:
            self._found.layers.append("xl")
            self._take_config(XlHeader.read(self._source, prefix).config)
            self._libxl(b"")
        elif prefix == LIBXL_PREFIX:
            self._libxl(prefix)
        elif prefix == LIBXC_PREFIX:
            self._libxc(prefix, None)
        else:
            self._refuse(prefix)

    def _refuse(self, prefix: bytes) -> None:
        for magic, what in OTHER_FORMATS.items():
            if prefix.startswith(magic):
                raise BadHeader(f"{self._source.name}: no image as it is, but {what}", offset=0)
        raise BadHeader(
            f"{self._source.name}: no image of a Xen domain: it begins with {prefix.hex()}", offset=0
        )

    def _take_config(self, config: bytes | None) -> None:
        if config is None:
            return
        try:
            fields = json.loads(config)
            if not isinstance(fields, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            # Noted, and gone on: the rest of the image can be looked into all the same.
            self._found.error = BadHeader(
                f"{self._source.name}: the domain's configuration is no JSON of libxl: {error}",
                offset=self._source.offset,
            )
            return
        self._found.config = ConfigSummary.of(fields)

    def _libxl(self, prefix: bytes) -> None:
        reader = libxl.LibxlReader(self._source, prefix)
        self._found.layers.append("libxl")
        while (record := self._libxl_record(reader)).type is not T.END:
            if record.type is T.LIBXC_CONTEXT:
                self._libxc(b"", reader)
            elif record.type in (T.CHECKPOINT_END, T.CHECKPOINT_STATE):
                self._refuse_libxl(record, "outside a checkpoint")

    def _libxl_checkpoint(self, reader: libxl.LibxlReader) -> None:
        """Read libxl's part of a checkpoint, between CHECKPOINT and the next record of libxc."""
        while (record := self._libxl_record(reader)).type is not T.CHECKPOINT_END:
            if record.type is T.END:
                self._refuse_libxl(record, "inside a checkpoint")

    def _libxl_record(self, reader: libxl.LibxlReader) -> libxl.LibxlRecord:
        record = reader.next()
        self._count(f"libxl {record.type.name}", record.offset, self._source.offset)
        return record

    def _refuse_libxl(self, record: libxl.LibxlRecord, where: str) -> None:
        raise OutOfOrder(f"libxl {record.type.name} record {where}", offset=record.offset, type=record.type)

    def _libxc(self, prefix: bytes, outer: libxl.LibxlReader | None) -> None:
        reader = LibxcReader(self._source, prefix)
        self._found.layers.append("libxc")
        self._found.image, self._found.domain = reader.image, reader.domain
        while True:
            offset = self._source.offset
            record = reader.next()
            if isinstance(record, PageData):
                self._pages(reader, record)
            self._count(_name_of(record), offset, self._source.offset)
            self._note(record)
            if isinstance(record, Checkpoint) and outer is not None:
                self._libxl_checkpoint(outer)
            elif isinstance(record, End):
                return

    def _note(self, record: AnyRecord) -> None:
        if isinstance(record, Provenance):
            self._found.provenance = record.fields
        elif isinstance(record, ImageDigest):
            self._found.digest = record
        elif isinstance(record, Checkpoint):
            self._found.checkpoints += 1

    def _pages(self, reader: LibxcReader, record: PageData) -> None:
        pages = self._found.pages
        if reader.verifying:
            pages.nr_verify_entries += len(record.entries)
            reader.skip_pages()
            self._on_progress(self._source.offset)
            return
        pages.add_entries(record.pfns, record.types)
        if self._buffer is None:
            self._buffer = np.empty((BATCH_PAGES, PAGE_WORDS), dtype=np.uint64)
        while nr_left := reader.nr_pages_left:
            batch = self._buffer[: min(nr_left, BATCH_PAGES)]
            # Of deltas, only that they are well-formed is found: what they are against is not here.
            reader.read_some_pages([batch.data])
            if record.codec is not Codec.XOR:
                pages.add_pages(batch)
            self._on_progress(self._source.offset)
        if record.codec is Codec.XOR:
            pages.add_deltas(record.nr_data, record.nr_told_zero)

    def _count(self, name: str, begin: int, end: int) -> None:
        records = self._found.records
        if name not in records and len(records) >= RECORD_NAMES_MAX:
            name = OTHER_RECORDS
        entry = records.setdefault(name, RecordCount())
        entry.count += 1
        entry.length_bytes += end - begin


def _name_of(record: AnyRecord) -> str:
    if isinstance(record, UnknownOptional):
        return record_name(record.type).removeprefix("unknown ")
    return RecordType(record.type).name


def _no_progress(offset: int) -> None:
    """Take no notice."""


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _instance(value: object, kind: type[V]) -> V | None:
    return value if isinstance(value, kind) else None
