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
from saverestore.kernels.page import PAGE_WORDS
from saverestore.stream.codecs import Codec
from saverestore.stream.digest_algorithms import DigestAlgorithm
from saverestore.stream.errors import BadHeader
from saverestore.stream.headers import DomainHeader, ImageHeader
from saverestore.stream.layout import RecordType, record_name
from saverestore.stream.libxl import LibxlReader, LibxlRecord
from saverestore.stream.reader import AnyRecord, LibxcReader, PageData
from saverestore.stream.records import Checkpoint, Disks, ImageDigest, Provenance, UnknownOptional
from saverestore.stream.tally import PageDigests, PageStatistics, WordPages
from saverestore.stream.walk import walk
from saverestore.stream.xl import XlHeader
from saverestore.transport.base import ByteSource

V = TypeVar("V")

BATCH_PAGES = 1024

RECORD_NAMES_MAX = 100
"""Kinds of records told apart; a damaged image may have any number of optional ones."""

OTHER_RECORDS = "further optional records"

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
    all. `trailing_bytes`: behind the end of the image. `digest`: the image's own; `checked_digest`: its algorithm
    once it was found to hold (one that does not is the `error`).
    """

    name: str
    layers: list[str] = field(default_factory=list)
    image: ImageHeader | None = None
    domain: DomainHeader | None = None
    config: ConfigSummary | None = None
    provenance: dict[str, Any] | None = None
    disks: list[dict[str, Any]] = field(default_factory=list)
    digest: ImageDigest | None = None
    checked_digest: DigestAlgorithm | None = None
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


def survey(
    source: ByteSource, on_progress: Progress | None = None, page_digests: PageDigests | None = None
) -> Survey:
    """Read `source` to the end of the image in it, whichever layer that begins with.

    `on_progress(offset)` is called after every batch of pages. With `page_digests`, pages of the same content are
    counted. Errors of the image are returned in
    `Survey.error`; `TransportError` is raised. What follows the image is not looked at.
    """
    found = Survey(source.name, pages=PageStatistics(page_digests))
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
        self._reader: LibxcReader | None = None

    def walk(self) -> None:
        begin = 0
        for event in walk(self._source):
            if isinstance(event, LibxcReader):
                self._reader = event
                self._found.layers.append("libxc")
                self._found.image, self._found.domain = event.image, event.domain
            elif isinstance(event, LibxlReader):
                self._found.layers.append("libxl")
            elif isinstance(event, XlHeader):
                self._found.layers.append("xl")
                self._take_config(event.config)
            else:
                self._note(event)
                self._count(_name_of(event), begin, self._source.offset)
                self._found.checked_digest = self._reader.checked_digest if self._reader else None
            begin = self._source.offset

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
                f"{self._source.name}: the domain's configuration is not JSON of libxl: {error}",
                offset=self._source.offset,
            )
            return
        self._found.config = ConfigSummary.of(fields)

    def _note(self, record: AnyRecord | LibxlRecord) -> None:
        if isinstance(record, PageData):
            self._pages(record)
        elif isinstance(record, Provenance):
            self._found.provenance = record.fields
        elif isinstance(record, Disks):
            self._found.disks = record.disks
        elif isinstance(record, ImageDigest):
            self._found.digest = record
        elif isinstance(record, Checkpoint):
            self._found.checkpoints += 1

    def _pages(self, record: PageData) -> None:
        pages, reader = self._found.pages, self._reader
        assert reader is not None  # its headers come before any record
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
            pages.add_deltas(record.nr_data, record.nr_marked_zero)

    def _count(self, name: str, begin: int, end: int) -> None:
        records = self._found.records
        if name not in records and len(records) >= RECORD_NAMES_MAX:
            name = OTHER_RECORDS
        entry = records.setdefault(name, RecordCount())
        entry.count += 1
        entry.length_bytes += end - begin


def _name_of(record: AnyRecord | LibxlRecord) -> str:
    if isinstance(record, LibxlRecord):
        return f"libxl {record.type.name}"
    if isinstance(record, UnknownOptional):
        return record_name(record.type).removeprefix("unknown ")
    return RecordType(record.type).name


def _no_progress(offset: int) -> None:
    """Take no notice."""


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _instance(value: object, kind: type[V]) -> V | None:
    return value if isinstance(value, kind) else None
