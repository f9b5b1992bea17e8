"""Xen's domain image format, pure: bytes from a source to records and back. Nothing here needs Xen.

`LibxcReader` and `LibxcWriter` are the heart; docs/stream-format.md says what they read and write.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saverestore.stream.errors import BadHeader, BadRecord, OutOfOrder, UnknownRecord
    from saverestore.stream.layout import DomainType, PageType, RecordType
    from saverestore.stream.libxl import LibxlReader, LibxlRecordType, LibxlWriter
    from saverestore.stream.reader import LibxcReader, PageData
    from saverestore.stream.writer import LibxcWriter
    from saverestore.stream.xl import XlHeader

__all__ = [
    "BadHeader",
    "BadRecord",
    "DomainType",
    "LibxcReader",
    "LibxcWriter",
    "LibxlReader",
    "LibxlRecordType",
    "LibxlWriter",
    "OutOfOrder",
    "PageData",
    "PageType",
    "RecordType",
    "UnknownRecord",
    "XlHeader",
]

_HOME = {
    "BadHeader": "errors",
    "BadRecord": "errors",
    "DomainType": "layout",
    "LibxcReader": "reader",
    "LibxcWriter": "writer",
    "LibxlReader": "libxl",
    "LibxlRecordType": "libxl",
    "LibxlWriter": "libxl",
    "OutOfOrder": "errors",
    "PageData": "reader",
    "PageType": "layout",
    "RecordType": "layout",
    "UnknownRecord": "errors",
    "XlHeader": "xl",
}


def __getattr__(name: str) -> Any:
    """Bring names in when they are used: a command that offers the names of digests needs no numpy for that."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"saverestore.stream.{_HOME[name]}"), name)
