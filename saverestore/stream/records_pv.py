"""The bodies of the records that only images of x86 PV guests have; see `records`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn, Self

import numpy as np

from saverestore.stream.layout import ENTRY_BYTES, PAGE_SIZE, ByteOrder, Fields, RecordType, U64Array
from saverestore.stream.record_base import (
    Body,
    CheckedRecord,
    check_at_least,
    check_length,
    check_zero,
    refuse,
)

# X86_PV_INFO:        | guest width u8 | page-table levels u8 | reserved, 6 bytes |
PV_INFO = Fields("BBHI")
# X86_PV_P2M_FRAMES:  | first pfn u32 | last pfn u32 | pfn of each frame of the table, u64 …
P2M_FRAMES_HEADER = Fields("II")
# X86_PV_VCPU_*:      | vcpu u32 | reserved u32 | context …
VCPU_HEADER = Fields("II")

PAGE_TABLE_LEVELS = {4: 3, 8: 4}
"""Levels of the page tables by guest width in bytes; no other pairs exist."""


@dataclass(frozen=True)
class X86PvInfo(CheckedRecord):
    """Width in bytes of a PV guest's words (4 or 8) and the levels of its page tables (3 or 4)."""

    type = RecordType.X86_PV_INFO
    guest_width: int
    pt_levels: int

    def pack(self, order: ByteOrder = ByteOrder.LITTLE) -> bytes:
        """Return the 8-byte body."""
        self._check(None)
        return PV_INFO.pack(self.guest_width, self.pt_levels, 0, 0, order=order)

    @classmethod
    def unpack(cls, body: Body, offset: int, order: ByteOrder = ByteOrder.LITTLE) -> Self:
        """Read the 8-byte body."""
        check_length(cls.type, body, PV_INFO.size, offset)
        guest_width, pt_levels, reserved, more_reserved = PV_INFO.unpack(body, order)
        check_zero(cls.type, reserved | more_reserved, offset)
        record = cls(guest_width, pt_levels)
        record._check(offset)
        return record

    def _check(self, offset: int | None) -> None:
        if PAGE_TABLE_LEVELS.get(self.guest_width) != self.pt_levels:
            refuse(
                self.type,
                offset,
                f"guest width {self.guest_width} with {self.pt_levels} levels of page tables; "
                "there are 4 with 3 and 8 with 4",
            )


@dataclass(frozen=True, eq=False)
class X86PvP2mFrames(CheckedRecord):
    """Where a PV guest keeps its p2m table: the pfns (u64) of the frames that hold first_pfn…last_pfn.

    How many frames that makes depends on the guest's width, which another record tells: see
    `check_width`. `frames` is read-only when it comes from an image.
    """

    type = RecordType.X86_PV_P2M_FRAMES
    first_pfn: int
    last_pfn: int
    frames: U64Array

    def pack(self, order: ByteOrder = ByteOrder.LITTLE) -> bytes:
        """Return the body."""
        self._check(None)
        header = P2M_FRAMES_HEADER.pack(self.first_pfn, self.last_pfn, order=order)
        return header + self.frames.astype(order.entry_dtype, copy=False).tobytes()

    @classmethod
    def unpack(cls, body: Body, offset: int, order: ByteOrder = ByteOrder.LITTLE) -> Self:
        """Read the body; `frames` shares its memory where that is in the machine's order."""
        check_at_least(cls.type, body, P2M_FRAMES_HEADER.size, offset)
        if (len(body) - P2M_FRAMES_HEADER.size) % ENTRY_BYTES:
            refuse(cls.type, offset, f"body of {len(body)} bytes is not a whole number of frames")
        first_pfn, last_pfn = P2M_FRAMES_HEADER.unpack(body, order)
        frames = np.frombuffer(body, dtype=order.entry_dtype, offset=P2M_FRAMES_HEADER.size)
        record = cls(first_pfn, last_pfn, frames.astype(np.uint64, copy=False))
        record._check(offset)
        return record

    def _check(self, offset: int | None) -> None:
        if self.first_pfn > self.last_pfn:
            refuse(self.type, offset, f"first pfn {self.first_pfn:#x} is above the last, {self.last_pfn:#x}")
        if len(self.frames) not in {self._nr_frames(width) for width in PAGE_TABLE_LEVELS}:
            self._refuse_count(offset)
        outside = np.flatnonzero(self.frames > np.uint64(self.last_pfn))
        if len(outside):
            index = int(outside[0])
            refuse(
                self.type,
                offset,
                f"frame {index} of the p2m table is pfn {int(self.frames[index]):#x}, "
                f"above the last pfn {self.last_pfn:#x}",
            )

    def _nr_frames(self, guest_width: int) -> int:
        pfns_per_frame = PAGE_SIZE // guest_width
        return self.last_pfn // pfns_per_frame - self.first_pfn // pfns_per_frame + 1

    def check_width(self, guest_width: int, offset: int | None = None) -> None:
        """Raise `BadRecord` unless the number of frames is what a guest of this width needs."""
        if len(self.frames) != self._nr_frames(guest_width):
            self._refuse_count(offset, guest_width)

    def _refuse_count(self, offset: int | None, guest_width: int | None = None) -> NoReturn:
        widths = PAGE_TABLE_LEVELS if guest_width is None else [guest_width]
        wanted = " or ".join(f"{self._nr_frames(width)} ({8 * width}-bit guest)" for width in widths)
        refuse(
            self.type,
            offset,
            f"{len(self.frames)} frames for pfns {self.first_pfn:#x} to {self.last_pfn:#x}; "
            f"that takes {wanted}",
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, X86PvP2mFrames):
            return NotImplemented
        ends = (self.first_pfn, self.last_pfn) == (other.first_pfn, other.last_pfn)
        return ends and np.array_equal(self.frames, other.frames)

    __hash__ = None  # type: ignore[assignment]  # arrays are compared, never hashed


@dataclass(frozen=True)
class _VcpuBlob(CheckedRecord):
    """State of one vcpu, opaque: written by one domctl and read by its counterpart.

    An empty context is tolerated and to be ignored: Xen 4.6 to 4.8 wrote such records.
    """

    vcpu: int
    context: bytes

    def pack(self, order: ByteOrder = ByteOrder.LITTLE) -> bytes:
        """Return the body."""
        return VCPU_HEADER.pack(self.vcpu, 0, order=order) + self.context

    @classmethod
    def unpack(cls, body: Body, offset: int, order: ByteOrder = ByteOrder.LITTLE) -> Self:
        """Read the body; the context is copied out of it."""
        check_at_least(cls.type, body, VCPU_HEADER.size, offset)
        vcpu, reserved = VCPU_HEADER.unpack(body, order)
        check_zero(cls.type, reserved, offset)
        return cls(vcpu, bytes(body[VCPU_HEADER.size :]))


class X86PvVcpuBasic(_VcpuBlob):
    """XEN_DOMCTL_getvcpucontext: registers, with frames as pfns."""

    type = RecordType.X86_PV_VCPU_BASIC


class X86PvVcpuExtended(_VcpuBlob):
    """XEN_DOMCTL_get_ext_vcpucontext: sysenter, syscall, machine-check state."""

    type = RecordType.X86_PV_VCPU_EXTENDED


class X86PvVcpuXsave(_VcpuBlob):
    """XEN_DOMCTL_getvcpuextstate: the XSAVE area."""

    type = RecordType.X86_PV_VCPU_XSAVE


class X86PvVcpuMsrs(_VcpuBlob):
    """XEN_DOMCTL_get_vcpu_msrs: 16 bytes per MSR."""

    type = RecordType.X86_PV_VCPU_MSRS


@dataclass(frozen=True)
class SharedInfo(CheckedRecord):
    """A PV guest's shared info page, all 4096 bytes of it."""

    type = RecordType.SHARED_INFO
    page: bytes

    def pack(self, order: ByteOrder = ByteOrder.LITTLE) -> bytes:
        """Return the page."""
        check_length(self.type, self.page, PAGE_SIZE, None)
        return self.page

    @classmethod
    def unpack(cls, body: Body, offset: int, order: ByteOrder = ByteOrder.LITTLE) -> Self:
        """Take the page."""
        check_length(cls.type, body, PAGE_SIZE, offset)
        return cls(bytes(body))
