"""Whether an image's domain would run on this host's processors: found by a second look into the file."""

from __future__ import annotations

from saverestore.errors import ErrorName, ImageError
from saverestore.guest.common.handles import Handles
from saverestore.guest.kinds import Architecture
from saverestore.operations.image import is_file, opened
from saverestore.stream.layout import RecordType
from saverestore.stream.reader import LibxcReader, PageData
from saverestore.stream.records import ImageDigest, Provenance, Record, UnknownOptional


def pages_of(image: str) -> int:
    """How many pages the domain had when its save began, as the image says; 0 where that is not known beforehand.

    A guest that gave no memory back has more than its target.
    """
    if not is_file(image):
        return 0
    with opened(image) as found:
        first = LibxcReader(found.source, check_digest=False).next()
    memory = first.fields.get("memory") if isinstance(first, Provenance) else None
    pages = memory.get("pages") if isinstance(memory, dict) else None
    return pages if isinstance(pages, int) and pages > 0 else 0


def check_has_digest(image: str) -> None:
    """ImageError when it has no digest. Of a pipe, that is found at the end of the image."""
    if not is_file(image):
        return
    with opened(image) as found:
        reader = LibxcReader(found.source, check_digest=False)
        while not reader.ended:
            record = reader.next()
            if isinstance(record, ImageDigest):
                return
            if isinstance(record, Provenance) and "integrity" in record.fields:
                return  # announced: one that does not come is found when the image is read
    raise ImageError(
        f"{image} has no digest, and one is required; no changes were made", name=ErrorName.DIGEST_MISSING
    )


def check(handles: Handles, kinds: Architecture, image: str, *, force: bool) -> None:
    """ImageError or DomainError when it would not. What comes through a pipe is checked once the domain is there."""
    if not is_file(image):
        return
    with opened(image) as found:
        reader = LibxcReader(found.source)
        kind = kinds.of_image(reader.domain.type, found.config.kind)
        records: list[Record] = []
        while not reader.static_data_ended:
            record = reader.next()
            if isinstance(record, PageData) or record.type == RecordType.END:
                break
            if not isinstance(record, UnknownOptional):
                records.append(record)
        kind.check_static_records(handles, records, found.config, check_cpu=not force)
