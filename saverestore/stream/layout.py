"""Numbers, masks and byte layouts of the libxc stream, each declared once.

Source: Xen's docs/specs/libxc-migration-stream.pandoc, revision 3, and docs/stream-format.md for the dialect
`draft-b` (image version 1). Everything behind the image header is in the image's byte order, which is
little-endian in Xen's own versions.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from enum import Enum, IntEnum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from saverestore.kernels.page import PAGE_SHIFT as PAGE_SHIFT
from saverestore.kernels.page import PAGE_SIZE as PAGE_SIZE

U64Array: TypeAlias = NDArray[np.uint64]
U8Array: TypeAlias = NDArray[np.uint8]
U32Array: TypeAlias = NDArray[np.uint32]
BoolArray: TypeAlias = NDArray[np.bool_]

MIB = 1 << 20


class ByteOrder(Enum):
    """Of the numbers behind an image header, as `struct` and numpy write it."""

    LITTLE = "<"
    BIG = ">"

    @property
    def entry_dtype(self) -> np.dtype[np.uint64]:
        """A pfn entry, or anything else of 64 bits, as it is in the image."""
        return np.dtype(np.uint64).newbyteorder(self.value)


MACHINE_ORDER = ByteOrder.LITTLE if sys.byteorder == "little" else ByteOrder.BIG


class Fields:
    """A `struct` layout in both byte orders; `size` in bytes is the same in either."""

    def __init__(self, fields: str) -> None:
        """`fields`: format characters, without the byte order before them."""
        self._by_order = {order: struct.Struct(order.value + fields) for order in ByteOrder}
        self.size = self._by_order[ByteOrder.LITTLE].size

    def pack(self, *values: int, order: ByteOrder) -> bytes:
        """Return the bytes."""
        return self._by_order[order].pack(*values)

    def unpack(self, data: bytes | memoryview, order: ByteOrder) -> tuple[Any, ...]:
        """Return the values at the front of `data`, which may go on behind them."""
        return self._by_order[order].unpack_from(data)

    def iter_unpack(self, data: bytes | memoryview, order: ByteOrder) -> Iterator[tuple[Any, ...]]:
        """Return the values of one after the other; `data` holds whole ones."""
        return self._by_order[order].iter_unpack(data)


# Image header, big-endian whatever its options say:
#
#     0     1     2     3     4     5     6     7
#    +-----------------------------------------------+
#    | marker, all ones                              |
#    +-----------------------+-----------------------+
#    | "XENF"                | version               |
#    +-----------+-----------+-----------------------+
#    | options   | reserved  | reserved              |
#    +-----------+-----------+-----------------------+
IMAGE_HEADER = struct.Struct(">QIIHHI")
IMAGE_MARKER = 0xFFFF_FFFF_FFFF_FFFF
IMAGE_ID = 0x58454E46
IMAGE_OPTION_BIG_ENDIAN = 1

DRAFT_B_VERSION = 1
"""Image version of the dialect with checksums and coded pages; its number in the proposal of 2014."""

XEN_VERSIONS = (2, 3)
IMAGE_VERSIONS = (DRAFT_B_VERSION, *XEN_VERSIONS)

# Domain header:
#
#    +-----------------------+-----------+-----------+
#    | type                  |page shift | reserved  |
#    +-----------------------+-----------+-----------+
#    | Xen major             | Xen minor             |
#    +-----------------------+-----------------------+
DOMAIN_HEADER = Fields("IHHII")

# Record header of Xen's own versions (`framing` has the other); the body follows, then zeroes up to a multiple
# of RECORD_ALIGN:
#
#    +-----------------------+-----------------------+
#    | type                  | body length           |
#    +-----------------------+-----------------------+
RECORD_HEADER = Fields("II")
RECORD_ALIGN = 8
RECORD_BODY_MAX = 128 * MIB
"""Longest body of any record: Xen's own limit, REC_LENGTH_MAX in xg_sr_stream_format.h."""

OPTIONAL_BIT = 1 << 31
"""Set in the type of a record that a reader may skip."""

# PAGE_DATA's body: this, C entries of 64 bits, then a page for every entry that has data.
#
#    +-----------------------+-----------------------+
#    | count C > 0           | reserved              |
#    +-----------------------+-----------------------+
#    | entry[0..C-1]   63-60: type, 59-52: 0, 51-0: pfn
PAGE_DATA_HEADER = Fields("II")
ENTRY_BYTES = 8
TYPE_SHIFT = 60
PFN_MASK = (1 << 52) - 1
RESERVED_MASK = ((1 << TYPE_SHIFT) - 1) & ~PFN_MASK


class DomainType(IntEnum):
    """Kind of guest in the domain header; PVH is HVM here. Xen's specification ends with 2."""

    X86_PV = 1
    X86_HVM = 2
    ARM64 = 3


class RecordType(IntEnum):
    """Record types of the libxc stream; those with 0x5000 in them are this project's own."""

    END = 0x00
    PAGE_DATA = 0x01
    X86_PV_INFO = 0x02
    X86_PV_P2M_FRAMES = 0x03
    X86_PV_VCPU_BASIC = 0x04
    X86_PV_VCPU_EXTENDED = 0x05
    X86_PV_VCPU_XSAVE = 0x06
    SHARED_INFO = 0x07
    X86_TSC_INFO = 0x08
    HVM_CONTEXT = 0x09
    HVM_PARAMS = 0x0A
    TOOLSTACK = 0x0B
    X86_PV_VCPU_MSRS = 0x0C
    VERIFY = 0x0D
    CHECKPOINT = 0x0E
    CHECKPOINT_DIRTY_PFN_LIST = 0x0F
    STATIC_DATA_END = 0x10
    X86_CPUID_POLICY = 0x11
    X86_MSR_POLICY = 0x12
    ARM64_PLATFORM = 0x5003
    ARM64_VCPU = 0x5004
    ARM64_SHARED_INFO = 0x5005
    IMAGE_DIGEST = 0x8000_5001
    PROVENANCE = 0x8000_5002
    FOLLOWING = 0x8000_5003
    DISKS = 0x8000_5004


class PageType(IntEnum):
    """Type of a page in an entry: XEN_DOMCTL_PFINFO_* of public/domctl.h, shifted down by 28."""

    NOTAB = 0x0
    L1TAB = 0x1
    L2TAB = 0x2
    L3TAB = 0x3
    L4TAB = 0x4
    L1TAB_PINNED = 0x9
    L2TAB_PINNED = 0xA
    L3TAB_PINNED = 0xB
    L4TAB_PINNED = 0xC
    BROKEN = 0xD
    XALLOC = 0xE
    XTAB = 0xF


PIN = 0x8
"""Bit that makes a table type the pinned one."""

# For numpy, which takes several times as long with an IntEnum.
_BROKEN, _XTAB = np.uint8(PageType.BROKEN), np.uint8(PageType.XTAB)

NR_PAGE_TYPES = 16
KNOWN_PAGE_TYPES: BoolArray = np.isin(np.arange(NR_PAGE_TYPES), [int(kind) for kind in PageType])
KNOWN_PAGE_TYPES.setflags(write=False)


def padding_of(length: int) -> int:
    """How many zero bytes follow a body of `length` bytes."""
    return -length % RECORD_ALIGN


def record_name(type: int) -> str:
    """Name of a record type, as the specification spells it, for messages."""
    try:
        return RecordType(type).name
    except ValueError:
        kind = "optional" if type & OPTIONAL_BIT else "mandatory"
        return f"unknown {kind} record {type:#x}"


def entries_of(pfns: NDArray[Any], types: NDArray[Any]) -> U64Array:
    """Join pfns and page types (`PageType`, any integer dtypes, equal shapes) into entries, native u64."""
    shifted = types.astype(np.uint64) << np.uint64(TYPE_SHIFT)
    entries: U64Array = pfns.astype(np.uint64) | shifted
    return entries


def pfns_of(entries: U64Array) -> U64Array:
    """Frame numbers of entries, as u64."""
    pfns: U64Array = entries & np.uint64(PFN_MASK)
    return pfns


def types_of(entries: U64Array) -> U8Array:
    """Page types (`PageType`) of entries."""
    return (entries >> np.uint64(TYPE_SHIFT)).astype(np.uint8)


def has_data(types: NDArray[Any]) -> BoolArray:
    """For each page type, whether a page of data follows in the record."""
    data: BoolArray = types < _BROKEN
    return data


def has_memory(types: NDArray[Any]) -> BoolArray:
    """For each page type, whether the domain has memory there: there may be none of XTAB."""
    memory: BoolArray = types != _XTAB
    return memory


def wants_memory(types: NDArray[Any]) -> BoolArray:
    """For each page type, whether a domain that is restored gets memory there: all but BROKEN and XTAB."""
    wanted: BoolArray = (types != _XTAB) & (types != _BROKEN)
    return wanted
