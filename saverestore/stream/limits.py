"""How long the body of each record may be, checked before anything is allocated for it.

Exact lengths are exact; the others are bounds far above what Xen writes, and never above its own.
"""

from __future__ import annotations

from saverestore.stream.layout import MIB, OPTIONAL_BIT, PAGE_SIZE, RECORD_BODY_MAX, RecordType
from saverestore.stream.records_arm64 import BODY_MAX as ARM64_BODY_MAX

KIB = 1 << 10

BODY_MAX: dict[RecordType, int] = {
    RecordType.END: 0,
    RecordType.PAGE_DATA: RECORD_BODY_MAX,
    RecordType.X86_PV_INFO: 8,
    # 32-bit pfns, 512 to a frame of the p2m table: 2^23 frames, 8 bytes each.
    RecordType.X86_PV_P2M_FRAMES: 8 + 64 * MIB,
    RecordType.X86_PV_VCPU_BASIC: 64 * KIB,  # 0x1430 for a 64-bit guest
    RecordType.X86_PV_VCPU_EXTENDED: 4 * KIB,  # at most 128, xg_sr_restore_x86_pv.c
    RecordType.X86_PV_VCPU_XSAVE: 1 * MIB,  # 11 KiB with AMX
    RecordType.X86_PV_VCPU_MSRS: 64 * KIB,  # 16 bytes each
    RecordType.SHARED_INFO: PAGE_SIZE,
    RecordType.X86_TSC_INFO: 24,
    RecordType.HVM_CONTEXT: 64 * MIB,  # some 20 KiB per vcpu, and the devices
    RecordType.HVM_PARAMS: 64 * KIB,  # 16 bytes each; there are fewer than 64
    RecordType.TOOLSTACK: 0,
    RecordType.VERIFY: 0,
    RecordType.CHECKPOINT: 0,
    RecordType.CHECKPOINT_DIRTY_PFN_LIST: RECORD_BODY_MAX,
    RecordType.STATIC_DATA_END: 0,
    RecordType.X86_CPUID_POLICY: 1 * MIB,  # 24 bytes each, some hundreds
    RecordType.X86_MSR_POLICY: 1 * MIB,
    **ARM64_BODY_MAX,
    RecordType.IMAGE_DIGEST: 8 + 64,
    RecordType.PROVENANCE: 1 * MIB,
    RecordType.FOLLOWING: 8 + 16,
    RecordType.DISKS: 1 * MIB,
}

UNKNOWN_OPTIONAL_MAX = RECORD_BODY_MAX
"""Passed over and never allocated; still bounded, because stock Xen reads such a record whole."""


def body_max_of(type: int) -> int:
    """Most bytes that the body of a record of this type may have."""
    if type & OPTIONAL_BIT and type not in BODY_MAX:
        return UNKNOWN_OPTIONAL_MAX
    return BODY_MAX[RecordType(type)]
