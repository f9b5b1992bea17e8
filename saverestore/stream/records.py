"""The bodies of all records but PAGE_DATA: one frozen class each, `pack` and `unpack` in pairs.

`pack(order)` returns the body, without record header and padding. `unpack(body, offset, order)` takes exactly
the body; `offset` is where its record begins and appears in the `BadRecord` that wrong content raises. `order`
is that of the image's numbers; what is opaque here (contexts, policies) is the same in either.
Both sides check the same things, so that what is written can be read.
Those of x86 PV guests are in `records_pv`, those of arm64 guests in `records_arm64`.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from typing import Any, NoReturn, Self, TypeAlias

import numpy as np

from saverestore.stream.errors import BadRecord
from saverestore.stream.layout import ENTRY_BYTES, ByteOrder, Fields, RecordType, U64Array
from saverestore.stream.record_base import (
    Body,
    CheckedRecord,
    check_at_least,
    check_length,
    check_multiple,
    check_zero,
    refuse,
)
from saverestore.stream.records_arm64 import Arm64Platform, Arm64SharedInfo, Arm64Vcpu
from saverestore.stream.records_pv import (
    SharedInfo,
    X86PvInfo,
    X86PvP2mFrames,
    X86PvVcpuBasic,
    X86PvVcpuExtended,
    X86PvVcpuMsrs,
    X86PvVcpuXsave,
)

__all__ = [
    "RECORD_CLASSES",
    "Arm64Platform",
    "Arm64SharedInfo",
    "Arm64Vcpu",
    "Checkpoint",
    "CheckpointDirtyPfnList",
    "Disks",
    "End",
    "Following",
    "HvmContext",
    "HvmParams",
    "ImageDigest",
    "Provenance",
    "Record",
    "SharedInfo",
    "StaticDataEnd",
    "UnknownOptional",
    "Verify",
    "X86CpuidPolicy",
    "X86MsrPolicy",
    "X86PvInfo",
    "X86PvP2mFrames",
    "X86PvVcpuBasic",
    "X86PvVcpuExtended",
    "X86PvVcpuMsrs",
    "X86PvVcpuXsave",
    "X86TscInfo",
]

# X86_TSC_INFO:       | mode u32 | kHz u32 | ns u64 | incarnation u32 | reserved u32 |
TSC_INFO = Fields("IIQII")
# HVM_PARAMS:         | count u32 | reserved u32 | { index u64 | value u64 } …
HVM_PARAMS_HEADER = Fields("II")
HVM_PARAM = Fields("QQ")
# IMAGE_DIGEST:       | algorithm u16 | reserved u16 | reserved u32 | digest …
DIGEST_HEADER = Fields("HHI")
# FOLLOWING:          | length u64 | XXH3-128, 16 bytes |
FOLLOWING_LENGTH = Fields("Q")

CPUID_LEAF_BYTES = 24  # xen_cpuid_leaf_t, public/arch-x86/xen.h
MSR_ENTRY_BYTES = 16  # xen_msr_entry_t, same place

DIGEST_BYTES = {1: 16, 2: 32, 3: 32}
"""Digest length by algorithm: XXH3-128, SHA-256, BLAKE3."""
XXH3_BYTES = DIGEST_BYTES[1]


@dataclass(frozen=True)
class _Empty(CheckedRecord):
    """A record whose presence is all it says."""

    def pack(self, order: ByteOrder = ByteOrder.LITTLE) -> bytes:
        """Return the empty body."""
        return b""

    @classmethod
    def unpack(cls, body: Body, offset: int, order: ByteOrder = ByteOrder.LITTLE) -> Self:
        """Check that the body is empty."""
        if len(body):
            refuse(cls.type, offset, f"{len(body)} bytes of body where there are none")
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
class X86TscInfo(CheckedRecord):
    """The guest's time-stamp counter: TSC_MODE_*, rate in kHz, elapsed time in ns, incarnation."""

    type = RecordType.X86_TSC_INFO
    mode: int
    khz: int
    nsec: int
    incarnation: int

    def pack(self, order: ByteOrder = ByteOrder.LITTLE) -> bytes:
        """Return the 24-byte body."""
        return TSC_INFO.pack(self.mode, self.khz, self.nsec, self.incarnation, 0, order=order)

    @classmethod
    def unpack(cls, body: Body, offset: int, order: ByteOrder = ByteOrder.LITTLE) -> Self:
        """Read the 24-byte body."""
        check_length(cls.type, body, TSC_INFO.size, offset)
        mode, khz, nsec, incarnation, reserved = TSC_INFO.unpack(body, order)
        check_zero(cls.type, reserved, offset)
        return cls(mode, khz, nsec, incarnation)


@dataclass(frozen=True)
class HvmContext(CheckedRecord):
    """An HVM guest's context as XEN_DOMCTL_gethvmcontext gives it; never empty."""

    type = RecordType.HVM_CONTEXT
    context: bytes

    def pack(self, order: ByteOrder = ByteOrder.LITTLE) -> bytes:
        """Return the context."""
        check_at_least(self.type, self.context, 1, None)
        return self.context

    @classmethod
    def unpack(cls, body: Body, offset: int, order: ByteOrder = ByteOrder.LITTLE) -> Self:
        """Take the context."""
        check_at_least(cls.type, body, 1, offset)
        return cls(bytes(body))


@dataclass(frozen=True)
class HvmParams(CheckedRecord):
    """HVM parameters as (index, value), in the order of the image.

    None at all is tolerated: Xen 4.6 to 4.8 wrote such records.
    """

    type = RecordType.HVM_PARAMS
    params: tuple[tuple[int, int], ...]

    def pack(self, order: ByteOrder = ByteOrder.LITTLE) -> bytes:
        """Return the body."""
        header = HVM_PARAMS_HEADER.pack(len(self.params), 0, order=order)
        return header + b"".join(HVM_PARAM.pack(index, value, order=order) for index, value in self.params)

    @classmethod
    def unpack(cls, body: Body, offset: int, order: ByteOrder = ByteOrder.LITTLE) -> Self:
        """Read the body."""
        check_at_least(cls.type, body, HVM_PARAMS_HEADER.size, offset)
        count, reserved = HVM_PARAMS_HEADER.unpack(body, order)
        check_zero(cls.type, reserved, offset)
        wanted = HVM_PARAMS_HEADER.size + count * HVM_PARAM.size
        if len(body) != wanted:
            refuse(cls.type, offset, f"body of {len(body)} bytes; {count} parameters take {wanted}")
        return cls(tuple(HVM_PARAM.iter_unpack(body[HVM_PARAMS_HEADER.size :], order)))


@dataclass(frozen=True, eq=False)
class CheckpointDirtyPfnList(CheckedRecord):
    """Pfns (u64) that the secondary dirtied; goes over the back channel of COLO, never into an image."""

    type = RecordType.CHECKPOINT_DIRTY_PFN_LIST
    pfns: U64Array

    def pack(self, order: ByteOrder = ByteOrder.LITTLE) -> bytes:
        """Return the body."""
        return self.pfns.astype(order.entry_dtype, copy=False).tobytes()

    @classmethod
    def unpack(cls, body: Body, offset: int, order: ByteOrder = ByteOrder.LITTLE) -> Self:
        """Read the body; `pfns` shares its memory where that is in the machine's order."""
        if len(body) % ENTRY_BYTES:
            refuse(cls.type, offset, f"body of {len(body)} bytes is not a whole number of pfns")
        pfns = np.frombuffer(body, dtype=order.entry_dtype)
        return cls(pfns.astype(np.uint64, copy=False))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CheckpointDirtyPfnList):
            return NotImplemented
        return np.array_equal(self.pfns, other.pfns)

    __hash__ = None  # type: ignore[assignment]  # arrays are compared, never hashed


@dataclass(frozen=True)
class X86CpuidPolicy(CheckedRecord):
    """The CPUID leaves the guest was given, 24 bytes each; at least one."""

    type = RecordType.X86_CPUID_POLICY
    leaves: bytes

    def pack(self, order: ByteOrder = ByteOrder.LITTLE) -> bytes:
        """Return the leaves."""
        check_multiple(self.type, self.leaves, CPUID_LEAF_BYTES, None)
        return self.leaves

    @classmethod
    def unpack(cls, body: Body, offset: int, order: ByteOrder = ByteOrder.LITTLE) -> Self:
        """Take the leaves."""
        check_multiple(cls.type, body, CPUID_LEAF_BYTES, offset)
        return cls(bytes(body))


@dataclass(frozen=True)
class X86MsrPolicy(CheckedRecord):
    """The MSRs the guest was given, 16 bytes each; at least one."""

    type = RecordType.X86_MSR_POLICY
    entries: bytes

    def pack(self, order: ByteOrder = ByteOrder.LITTLE) -> bytes:
        """Return the entries."""
        check_multiple(self.type, self.entries, MSR_ENTRY_BYTES, None)
        return self.entries

    @classmethod
    def unpack(cls, body: Body, offset: int, order: ByteOrder = ByteOrder.LITTLE) -> Self:
        """Take the entries."""
        check_multiple(cls.type, body, MSR_ENTRY_BYTES, offset)
        return cls(bytes(body))


@dataclass(frozen=True)
class JsonRecord(CheckedRecord):
    """A JSON object in UTF-8. Ours."""

    fields: dict[str, Any]

    def pack(self, order: ByteOrder = ByteOrder.LITTLE) -> bytes:
        """Return the object as UTF-8 JSON."""
        try:
            text = json.dumps(self.fields, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            return text.encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise BadRecord(
                f"{self.type.name}: not to be put as JSON: {error}", offset=None, type=self.type
            ) from error

    @classmethod
    def unpack(cls, body: Body, offset: int, order: ByteOrder = ByteOrder.LITTLE) -> Self:
        """Read the object."""
        try:
            fields = json.loads(bytes(body).decode(), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise BadRecord(
                f"{cls.type.name}: no JSON in UTF-8: {error}", offset=offset, type=cls.type
            ) from error
        if not isinstance(fields, dict):
            refuse(cls.type, offset, f"a JSON {type(fields).__name__} instead of an object")
        return cls(fields)


@dataclass(frozen=True)
class Provenance(JsonRecord):
    """Where an image comes from: tool, version, host, time, domain, options. Ours."""

    type = RecordType.PROVENANCE

    @property
    def time(self) -> datetime.datetime | None:
        """When the save began; None where the image does not tell it in ISO 8601 with an offset from UTC."""
        try:
            found = datetime.datetime.fromisoformat(self.fields["time"])
        except (KeyError, TypeError, ValueError):
            return None
        return None if found.tzinfo is None else found


@dataclass(frozen=True)
class Disks(JsonRecord):
    """What the domain's disks were when it was suspended, a list under "disks". Ours."""

    type = RecordType.DISKS

    @property
    def disks(self) -> list[dict[str, Any]]:
        """One object each; none where the record has no such list."""
        found = self.fields.get("disks")
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


@dataclass(frozen=True)
class ImageDigest(CheckedRecord):
    """Digest of the libxc stream from its image header up to this record. Ours; directly before END.

    `algorithm`: 1 XXH3-128, 2 SHA-256, 3 BLAKE3. Others are carried as they are, 1 to 64 bytes long.
    """

    type = RecordType.IMAGE_DIGEST
    algorithm: int
    digest: bytes

    def pack(self, order: ByteOrder = ByteOrder.LITTLE) -> bytes:
        """Return the body."""
        self._check(None)
        return DIGEST_HEADER.pack(self.algorithm, 0, 0, order=order) + self.digest

    @classmethod
    def unpack(cls, body: Body, offset: int, order: ByteOrder = ByteOrder.LITTLE) -> Self:
        """Read the body; the digest is not compared with anything here."""
        check_at_least(cls.type, body, DIGEST_HEADER.size, offset)
        algorithm, reserved, more_reserved = DIGEST_HEADER.unpack(body, order)
        check_zero(cls.type, reserved | more_reserved, offset)
        record = cls(algorithm, bytes(body[DIGEST_HEADER.size :]))
        record._check(offset)
        return record

    def _check(self, offset: int | None) -> None:
        wanted = DIGEST_BYTES.get(self.algorithm)
        if not self.digest or len(self.digest) != (wanted or len(self.digest)):
            refuse(
                self.type,
                offset,
                f"digest of {len(self.digest)} bytes for algorithm {self.algorithm}, {wanted} wanted",
            )


@dataclass(frozen=True)
class Following(CheckedRecord):
    """Length and XXH3-128 of what comes in the file behind END. Ours; directly before IMAGE_DIGEST."""

    type = RecordType.FOLLOWING
    length_bytes: int
    xxh3: bytes

    def pack(self, order: ByteOrder = ByteOrder.LITTLE) -> bytes:
        """Return the 24-byte body."""
        check_length(self.type, self.xxh3, XXH3_BYTES, None)
        return FOLLOWING_LENGTH.pack(self.length_bytes, order=order) + self.xxh3

    @classmethod
    def unpack(cls, body: Body, offset: int, order: ByteOrder = ByteOrder.LITTLE) -> Self:
        """Read the 24-byte body; nothing is compared with it here."""
        check_length(cls.type, body, FOLLOWING_LENGTH.size + XXH3_BYTES, offset)
        (length_bytes,) = FOLLOWING_LENGTH.unpack(body, order)
        return cls(length_bytes, bytes(body[FOLLOWING_LENGTH.size :]))


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
    | Arm64Platform
    | Arm64Vcpu
    | Arm64SharedInfo
    | ImageDigest
    | Provenance
    | Following
    | Disks
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
        Arm64Platform,
        Arm64Vcpu,
        Arm64SharedInfo,
        ImageDigest,
        Provenance,
        Following,
        Disks,
    )
}
"""The class for each record type; PAGE_DATA is the reader's, TOOLSTACK is refused."""


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
