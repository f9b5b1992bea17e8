"""Whether an image's domain can be restored on this host: found by reading the file once before a domain is made."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from saverestore.guest.common.handles import Handles
from saverestore.guest.kinds import Architecture
from saverestore.operations.image import is_file, opened
from saverestore.stream.layout import DomainType, RecordType
from saverestore.stream.reader import LibxcReader, PageData
from saverestore.stream.records import Disks, ImageDigest, Provenance, Record, UnknownOptional
from saverestore.toolstack.config import GuestConfig
from saverestore.toolstack.disks import Disk


@dataclass(frozen=True)
class Contents:
    """What is known of an image beforehand.

    `pages`: how many the domain had when its save began, which may be more than its target; 0 where the image does
    not say. `static_records`: those that describe the host. `disks`: as they were; none where they are not known.
    `domain_uuid`: of the domain that was saved.
    `has_digest`: of the whole of it, announced or there; None where that is found at its end.
    """

    domain_type: DomainType
    pages: int = 0
    static_records: list[Record] = field(default_factory=list)
    disks: list[Disk] = field(default_factory=list)
    has_digest: bool | None = None
    domain_uuid: uuid.UUID | None = None


def contents_of(image: str) -> Contents | None:
    """Read the records of a file, passing over its pages. None for a pipe, which can be read only once.

    Of a compressed file the records before the first page: its disks are compared when their record comes, with the
    domain filled and paused.
    """
    if not is_file(image):
        return None
    pages, static_records, disks = 0, list[Record](), list[Disk]()
    has_digest: bool | None = False
    with opened(image) as found:
        reader = LibxcReader(found.source, check_digest=False)
        is_static = True
        while not reader.ended:
            record = reader.next()
            if isinstance(record, PageData):
                if found.source.regular_file is None:  # compressed
                    has_digest = has_digest or None
                    break
                is_static = False
                reader.skip_pages()
            elif isinstance(record, Provenance):
                pages = _pages_in(record)
                has_digest = has_digest or "integrity" in record.fields
            elif isinstance(record, ImageDigest):
                has_digest = True
            elif isinstance(record, Disks):
                disks += record.disks
            elif is_static and not isinstance(record, UnknownOptional) and record.type != RecordType.END:
                static_records.append(record)
            is_static = is_static and not reader.static_data_ended
        return Contents(reader.domain.type, pages, static_records, disks, has_digest, found.saved_uuid)


def check(
    handles: Handles, kinds: Architecture, config: GuestConfig, contents: Contents, *, force: bool
) -> None:
    """ImageError or DomainError when the image's domain would not run on this host's processors."""
    kind = kinds.of_image(contents.domain_type, config.kind)
    kind.check_static_records(handles, contents.static_records, config, check_cpu=not force)


def _pages_in(provenance: Provenance) -> int:
    memory = provenance.fields.get("memory")
    pages = memory.get("pages") if isinstance(memory, dict) else None
    return pages if isinstance(pages, int) and pages > 0 else 0
