"""Xen's domain image format, pure: bytes from a source to records and back. Nothing here needs Xen.

`LibxcReader` and `LibxcWriter` are the heart; docs/stream-format.md says what they read and write.
"""

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
