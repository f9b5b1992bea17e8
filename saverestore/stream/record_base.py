"""What all records have in common: how they check themselves, and how they say what is wrong.

Xen's specification lets a reader ignore reserved fields. Here they must be zero, as Xen's own
checker (verify-stream-v2) demands: the format has no checksums, and this finds damage.
"""

from __future__ import annotations

from typing import ClassVar, NoReturn, TypeAlias

from saverestore.stream.errors import BadRecord
from saverestore.stream.layout import RecordType

Body: TypeAlias = "bytes | memoryview"


def refuse(type: RecordType, offset: int | None, problem: str) -> NoReturn:
    """Raise `BadRecord` for a record of `type` that begins at `offset` (None: it is being written)."""
    raise BadRecord(f"{type.name}: {problem}", offset=offset, type=type)


def check_length(type: RecordType, body: Body, wanted: int, offset: int | None) -> None:
    """Raise `BadRecord` unless the body has exactly this length in bytes."""
    if len(body) != wanted:
        refuse(type, offset, f"body of {len(body)} bytes, {wanted} wanted")


def check_at_least(type: RecordType, body: Body, wanted: int, offset: int | None) -> None:
    """Raise `BadRecord` if the body is shorter than this many bytes."""
    if len(body) < wanted:
        refuse(type, offset, f"body of {len(body)} bytes, at least {wanted} wanted")


def check_multiple(type: RecordType, body: Body, entry_bytes: int, offset: int | None) -> None:
    """Raise `BadRecord` unless the body is one or more entries of this size."""
    if len(body) == 0 or len(body) % entry_bytes:
        refuse(type, offset, f"body of {len(body)} bytes, a multiple of {entry_bytes} wanted")


def check_zero(type: RecordType, reserved: int, offset: int | None) -> None:
    """Raise `BadRecord` if reserved bytes, read as a number, are not zero."""
    if reserved:
        refuse(type, offset, f"reserved bytes are not zero but {reserved:#x}")


class CheckedRecord:
    """Base of the records: they check themselves when made, packed ones and unpacked ones alike."""

    type: ClassVar[RecordType]

    def _check(self, offset: int | None) -> None:
        """Raise `BadRecord` for content that no image may have."""
