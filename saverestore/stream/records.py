"""The bodies of all records but PAGE_DATA: one frozen class each, `pack` and `unpack` in pairs.

`pack()` returns the body, without record header and padding. `unpack(body, offset)` takes exactly the
body; `offset` is where its record begins and appears in the `BadRecord` that wrong content raises.
Both sides check the same things, so that what is written can be read.

Xen's specification lets a reader ignore reserved fields. Here they must be zero, as Xen's own
checker (verify-stream-v2) demands: the format has no checksums, and this finds damage.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, Self, TypeAlias

import numpy as np

from saverestore.stream.errors import BadRecord
from saverestore.stream.layout import ENTRY_DTYPE, PAGE_SIZE, RecordType, U64Array

Body: TypeAlias = "bytes | memoryview"

# X86_PV_INFO:        | guest width u8 | page-table levels u8 | reserved, 6 bytes |
PV_INFO = struct.Struct("<BBHI")
# X86_PV_P2M_FRAMES:  | first pfn u32 | last pfn u32 | pfn of each frame of the table, u64 …
P2M_FRAMES_HEADER = struct.Struct("<II")
# X86_PV_VCPU_*:      | vcpu u32 | reserved u32 | context …
VCPU_HEADER = struct.Struct("<II")
# X86_TSC_INFO:       | mode u32 | kHz u32 | ns u64 | incarnation u32 | reserved u32 |
TSC_INFO = struct.Struct("<IIQII")
# HVM_PARAMS:         | count u32 | reserved u32 | { index u64 | value u64 } …
HVM_PARAMS_HEADER = struct.Struct("<II")
HVM_PARAM = struct.Struct("<QQ")
# IMAGE_DIGEST:       | algorithm u16 | reserved u16 | reserved u32 | digest …
DIGEST_HEADER = struct.Struct("<HHI")

CPUID_LEAF_BYTES = 24  # xen_cpuid_leaf_t, public/arch-x86/xen.h
MSR_ENTRY_BYTES = 16  # xen_msr_entry_t, same place

PAGE_TABLE_LEVELS = {4: 3, 8: 4}
"""Levels of the page tables by guest width in bytes; no other pairs exist."""

DIGEST_BYTES = {1: 16, 2: 32, 3: 32}
"""Digest length by algorithm: XXH3-128, SHA-256, BLAKE3."""


def _refuse(type: RecordType, offset: int | None, problem: str) -> NoReturn:
    raise BadRecord(f"{type.name}: {problem}", offset=offset, type=type)


class _Checked:
    """Base of the records: they check themselves when made, packed ones and unpacked ones alike."""

    type: ClassVar[RecordType]

    def _check(self, offset: int | None) -> None:
        """Raise `BadRecord` for content that no image may have."""


@dataclass(frozen=True)
class _Empty(_Checked):
    """A record whose presence is all it says."""

    def pack(self) -> bytes:
        """Return the empty body."""
        return b""

    @classmethod
    def unpack(cls, body: Body, offset: int) -> Self:
        """Check that the body is empty."""
        if len(body):
            _refuse(cls.type, offset, f"{len(body)} bytes of body where there are none")
        return cls()


class End(_Empty):
    """The image is complete; nothing of it follows."""

    type = RecordType.END


class Verify(_Empty):
    """All memory has been sent; the PAGE_DATA that follows is to be compared, not stored."""

    type = RecordType.VERIFY


class Checkpoint(_Empty):
    """Everything up to here is one consistent state of the guest; another set may follow."""

    type = RecordType.CHECKPOINT


class StaticDataEnd(_Empty):
    """What cannot change while the guest runs has all been sent (version 3 only)."""

    type = RecordType.STATIC_DATA_END


@dataclass(frozen=True)
class X86PvInfo(_Checked):
    """Width in bytes of a PV guest's words (4 or 8) and the levels of its page tables (3 or 4)."""

    type = RecordType.X86_PV_INFO
    guest_width: int
    pt_levels: int

    def pack(self) -> bytes:
        """Return the 8-byte body."""
        self._check(None)
        return PV_INFO.pack(self.guest_width, self.pt_levels, 0, 0)

    @classmethod
    def unpack(cls, body: Body, offset: int) -> Self:
        """Read the 8-byte body."""
        _exact(cls.type, body, PV_INFO.size, offset)
        guest_width, pt_levels, reserved, more_reserved = PV_INFO.unpack(body)
        _zero(cls.type, reserved | more_reserved, offset)
        record = cls(guest_width, pt_levels)
        record._check(offset)
        return record

    def _check(self, offset: int | None) -> None:
        if PAGE_TABLE_LEVELS.get(self.guest_width) != self.pt_levels:
            _refuse(
                self.type,
                offset,
                f"guest width {self.guest_width} with {self.pt_levels} levels of page tables; "
                "there are 4 with 3 and 8 with 4",
            )


@dataclass(frozen=True, eq=False)
class X86PvP2mFrames(_Checked):
    """Where a PV guest keeps its p2m table: the pfns (u64) of the frames that hold first_pfn…last_pfn.

    How many frames that makes depends on the guest's width, which another record tells: see
    `check_width`. `frames` is read-only when it comes from an image.
    """

    type = RecordType.X86_PV_P2M_FRAMES
    first_pfn: int
    last_pfn: int
    frames: U64Array

    def pack(self) -> bytes:
        """Return the body."""
        self._check(None)
        header = P2M_FRAMES_HEADER.pack(self.first_pfn, self.last_pfn)
        return header + self.frames.astype(ENTRY_DTYPE, copy=False).tobytes()

    @classmethod
    def unpack(cls, body: Body, offset: int) -> Self:
        """Read the body; `frames` shares its memory."""
        _at_least(cls.type, body, P2M_FRAMES_HEADER.size, offset)
        if (len(body) - P2M_FRAMES_HEADER.size) % ENTRY_DTYPE.itemsize:
            _refuse(cls.type, offset, f"body of {len(body)} bytes is no whole number of frames")
        first_pfn, last_pfn = P2M_FRAMES_HEADER.unpack_from(body)
        frames = np.frombuffer(body, dtype=ENTRY_DTYPE, offset=P2M_FRAMES_HEADER.size)
        record = cls(first_pfn, last_pfn, frames)
        record._check(offset)
        return record

    def _check(self, offset: int | None) -> None:
        if self.first_pfn > self.last_pfn:
            _refuse(self.type, offset, f"first pfn {self.first_pfn:#x} is above the last, {self.last_pfn:#x}")
        if len(self.frames) not in {self._nr_frames(width) for width in PAGE_TABLE_LEVELS}:
            self._refuse_count(offset)
        outside = np.flatnonzero(self.frames > np.uint64(self.last_pfn))
        if len(outside):
            index = int(outside[0])
            _refuse(
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
        _refuse(
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
class _VcpuBlob(_Checked):
    """State of one vcpu, opaque: written by one domctl and read by its counterpart.

    An empty context is tolerated and to be ignored: Xen 4.6 to 4.8 wrote such records.
    """

    vcpu: int
    context: bytes

    def pack(self) -> bytes:
        """Return the body."""
        return VCPU_HEADER.pack(self.vcpu, 0) + self.context

    @classmethod
    def unpack(cls, body: Body, offset: int) -> Self:
        """Read the body; the context is copied out of it."""
        _at_least(cls.type, body, VCPU_HEADER.size, offset)
        vcpu, reserved = VCPU_HEADER.unpack_from(body)
        _zero(cls.type, reserved, offset)
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
class SharedInfo(_Checked):
    """A PV guest's shared info page, all 4096 bytes of it."""

    type = RecordType.SHARED_INFO
    page: bytes

    def pack(self) -> bytes:
        """Return the page."""
        _exact(self.type, self.page, PAGE_SIZE, None)
        return self.page

    @classmethod
    def unpack(cls, body: Body, offset: int) -> Self:
        """Take the page."""
        _exact(cls.type, body, PAGE_SIZE, offset)
        return cls(bytes(body))


@dataclass(frozen=True)
class X86TscInfo(_Checked):
    """The guest's time-stamp counter: TSC_MODE_*, rate in kHz, elapsed time in ns, incarnation."""

    type = RecordType.X86_TSC_INFO
    mode: int
    khz: int
    nsec: int
    incarnation: int

    def pack(self) -> bytes:
        """Return the 24-byte body."""
        return TSC_INFO.pack(self.mode, self.khz, self.nsec, self.incarnation, 0)

    @classmethod
    def unpack(cls, body: Body, offset: int) -> Self:
        """Read the 24-byte body."""
        _exact(cls.type, body, TSC_INFO.size, offset)
        mode, khz, nsec, incarnation, reserved = TSC_INFO.unpack(body)
        _zero(cls.type, reserved, offset)
        return cls(mode, khz, nsec, incarnation)


@dataclass(frozen=True)
class HvmContext(_Checked):
    """An HVM guest's context as XEN_DOMCTL_gethvmcontext gives it; never empty."""

    type = RecordType.HVM_CONTEXT
    context: bytes

    def pack(self) -> bytes:
        """Return the context."""
        _at_least(self.type, self.context, 1, None)
        return self.context

    @classmethod
    def unpack(cls, body: Body, offset: int) -> Self:
        """Take the context."""
        _at_least(cls.type, body, 1, offset)
        return cls(bytes(body))


@dataclass(frozen=True)
class HvmParams(_Checked):
    """HVM parameters as (index, value), in the order of the image.

    None at all is tolerated: Xen 4.6 to 4.8 wrote such records.
    """

    type = RecordType.HVM_PARAMS
    params: tuple[tuple[int, int], ...]

    def pack(self) -> bytes:
        """Return the body."""
        header = HVM_PARAMS_HEADER.pack(len(self.params), 0)
        return header + b"".join(HVM_PARAM.pack(index, value) for index, value in self.params)

    @classmethod
    def unpack(cls, body: Body, offset: int) -> Self:
        """Read the body."""
        _at_least(cls.type, body, HVM_PARAMS_HEADER.size, offset)
        count, reserved = HVM_PARAMS_HEADER.unpack_from(body)
        _zero(cls.type, reserved, offset)
        wanted = HVM_PARAMS_HEADER.size + count * HVM_PARAM.size
        if len(body) != wanted:
            _refuse(cls.type, offset, f"body of {len(body)} bytes; {count} parameters take {wanted}")
        return cls(tuple(HVM_PARAM.iter_unpack(body[HVM_PARAMS_HEADER.size :])))


@dataclass(frozen=True, eq=False)
class CheckpointDirtyPfnList(_Checked):
    """Pfns (u64) that the secondary dirtied; goes over the back channel of COLO, never into an image."""

    type = RecordType.CHECKPOINT_DIRTY_PFN_LIST
    pfns: U64Array

    def pack(self) -> bytes:
        """Return the body."""
        return self.pfns.astype(ENTRY_DTYPE, copy=False).tobytes()

    @classmethod
    def unpack(cls, body: Body, offset: int) -> Self:
        """Read the body; `pfns` shares its memory."""
        if len(body) % ENTRY_DTYPE.itemsize:
            _refuse(cls.type, offset, f"body of {len(body)} bytes is no whole number of pfns")
        return cls(np.frombuffer(body, dtype=ENTRY_DTYPE))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CheckpointDirtyPfnList):
            return NotImplemented
        return np.array_equal(self.pfns, other.pfns)

    __hash__ = None  # type: ignore[assignment]  # arrays are compared, never hashed


@dataclass(frozen=True)
class X86CpuidPolicy(_Checked):
    """The CPUID leaves the guest was given, 24 bytes each; at least one."""

    type = RecordType.X86_CPUID_POLICY
    leaves: bytes

    def pack(self) -> bytes:
        """Return the leaves."""
        _entries(self.type, self.leaves, CPUID_LEAF_BYTES, None)
        return self.leaves

    @classmethod
    def unpack(cls, body: Body, offset: int) -> Self:
        """Take the leaves."""
        _entries(cls.type, body, CPUID_LEAF_BYTES, offset)
        return cls(bytes(body))


@dataclass(frozen=True)
class X86MsrPolicy(_Checked):
    """The MSRs the guest was given, 16 bytes each; at least one."""

    type = RecordType.X86_MSR_POLICY
    entries: bytes

    def pack(self) -> bytes:
        """Return the entries."""
        _entries(self.type, self.entries, MSR_ENTRY_BYTES, None)
        return self.entries

    @classmethod
    def unpack(cls, body: Body, offset: int) -> Self:
        """Take the entries."""
        _entries(cls.type, body, MSR_ENTRY_BYTES, offset)
        return cls(bytes(body))


@dataclass(frozen=True)
class Provenance(_Checked):
    """Where an image comes from, a JSON object: tool, version, host, time, domain, options. Ours."""

    type = RecordType.PROVENANCE
    fields: dict[str, Any]

    def pack(self) -> bytes:
        """Return the object as UTF-8 JSON."""
        try:
            text = json.dumps(self.fields, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            return text.encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise BadRecord(
                f"PROVENANCE: not to be put as JSON: {error}", offset=None, type=self.type
            ) from error

    @classmethod
    def unpack(cls, body: Body, offset: int) -> Self:
        """Read the object."""
        try:
            fields = json.loads(bytes(body).decode(), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise BadRecord(f"PROVENANCE: no JSON in UTF-8: {error}", offset=offset, type=cls.type) from error
        if not isinstance(fields, dict):
            _refuse(cls.type, offset, f"a JSON {type(fields).__name__} where an object belongs")
        return cls(fields)


@dataclass(frozen=True)
class ImageDigest(_Checked):
    """Digest of the libxc stream from its image header up to this record. Ours; directly before END.

    `algorithm`: 1 XXH3-128, 2 SHA-256, 3 BLAKE3. Others are carried as they are, 1 to 64 bytes long.
    """

    type = RecordType.IMAGE_DIGEST
    algorithm: int
    digest: bytes

    def pack(self) -> bytes:
        """Return the body."""
        self._check(None)
        return DIGEST_HEADER.pack(self.algorithm, 0, 0) + self.digest

    @classmethod
    def unpack(cls, body: Body, offset: int) -> Self:
        """Read the body; the digest is not compared with anything here."""
        _at_least(cls.type, body, DIGEST_HEADER.size, offset)
        algorithm, reserved, more_reserved = DIGEST_HEADER.unpack_from(body)
        _zero(cls.type, reserved | more_reserved, offset)
        record = cls(algorithm, bytes(body[DIGEST_HEADER.size :]))
        record._check(offset)
        return record

    def _check(self, offset: int | None) -> None:
        wanted = DIGEST_BYTES.get(self.algorithm)
        if not self.digest or len(self.digest) != (wanted or len(self.digest)):
            _refuse(
                self.type,
                offset,
                f"digest of {len(self.digest)} bytes for algorithm {self.algorithm}, {wanted} wanted",
            )


@dataclass(frozen=True)
class UnknownOptional:
    """An optional record of a type that is not known here; its body has been passed over."""

    type: int
    length: int


Record: TypeAlias = (
    End
    | X86PvInfo
    | X86PvP2mFrames
    | X86PvVcpuBasic
    | X86PvVcpuExtended
    | X86PvVcpuXsave
    | X86PvVcpuMsrs
    | SharedInfo
    | X86TscInfo
    | HvmContext
    | HvmParams
    | Verify
    | Checkpoint
    | CheckpointDirtyPfnList
    | StaticDataEnd
    | X86CpuidPolicy
    | X86MsrPolicy
    | ImageDigest
    | Provenance
)
"""Every record that can be packed."""

RECORD_CLASSES: dict[RecordType, type[Record]] = {
    record.type: record
    for record in (
        End,
        X86PvInfo,
        X86PvP2mFrames,
        X86PvVcpuBasic,
        X86PvVcpuExtended,
        X86PvVcpuXsave,
        X86PvVcpuMsrs,
        SharedInfo,
        X86TscInfo,
        HvmContext,
        HvmParams,
        Verify,
        Checkpoint,
        CheckpointDirtyPfnList,
        StaticDataEnd,
        X86CpuidPolicy,
        X86MsrPolicy,
        ImageDigest,
        Provenance,
    )
}
"""The class for each record type; PAGE_DATA is the reader's, TOOLSTACK is refused."""


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _exact(type: RecordType, body: Body, wanted: int, offset: int | None) -> None:
    if len(body) != wanted:
        _refuse(type, offset, f"body of {len(body)} bytes, {wanted} wanted")


def _at_least(type: RecordType, body: Body, wanted: int, offset: int | None) -> None:
    if len(body) < wanted:
        _refuse(type, offset, f"body of {len(body)} bytes, at least {wanted} wanted")


def _entries(type: RecordType, body: Body, entry_bytes: int, offset: int | None) -> None:
    if len(body) == 0 or len(body) % entry_bytes:
        _refuse(type, offset, f"body of {len(body)} bytes, a multiple of {entry_bytes} wanted")


def _zero(type: RecordType, reserved: int, offset: int | None) -> None:
    if reserved:
        _refuse(type, offset, f"reserved bytes are not zero but {reserved:#x}")
