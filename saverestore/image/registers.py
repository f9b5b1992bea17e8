"""The registers in an image: what is where in the records of vCPUs. x86-64 only.

PV: X86_PV_VCPU_BASIC is vcpu_guest_context (xen/public/arch-x86/xen.h, xen-x86_64.h). HVM: HVM_CONTEXT is a chain of
records {u16 type, u16 instance, u32 length} of which type 2 is a vCPU (xen/public/arch-x86/hvm/save.h). Tests hold
both layouts against the compiler's.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saverestore.errors import ImageError
from saverestore.image.index import ImageIndex
from saverestore.stream.layout import RecordType
from saverestore.stream.records import HvmContext, X86PvVcpuBasic

PAD = "_"
"""Begins the names of fields that hold nothing."""

FXSAVE_BYTES = 512
NR_TRAPS = 256
TRAP_BYTES = 16

U64 = "<u8"


def _u64(*names: str) -> list[tuple[str, str]]:
    return [(name, U64) for name in names]


def _selector(name: str) -> list[tuple[str, str]]:
    return [(name, "<u2"), (f"_{name}", "V6")]


PV_CONTEXT = np.dtype(
    [
        ("fpu", f"V{FXSAVE_BYTES}"),
        *_u64("flags", "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8"),
        *_u64("rax", "rcx", "rdx", "rsi", "rdi"),
        ("error_code", "<u4"),
        ("entry_vector", "<u4"),
        *_u64("rip"),
        ("cs", "<u2"),
        ("_cs", "V2"),
        ("saved_upcall_mask", "u1"),
        ("_mask", "V3"),
        *_u64("rflags", "rsp"),
        *(field for name in ("ss", "es", "ds", "fs", "gs") for field in _selector(name)),
        ("traps", f"V{NR_TRAPS * TRAP_BYTES}"),
        *_u64(
            "ldt_base",
            "ldt_ents",
            *(f"gdt_frame{i}" for i in range(16)),
            "gdt_ents",
            "kernel_ss",
            "kernel_sp",
        ),
        *_u64(*(f"cr{i}" for i in range(8)), *(f"dr{i}" for i in range(8))),
        *_u64("event_callback_eip", "failsafe_callback_eip", "syscall_callback_eip", "vm_assist"),
        *_u64("fs_base", "gs_base_kernel", "gs_base_user"),
    ]
)

SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldtr")
TABLES = ("idtr", "gdtr")

HVM_CPU = np.dtype(
    [
        ("fpu", f"V{FXSAVE_BYTES}"),
        *_u64("rax", "rbx", "rcx", "rdx", "rbp", "rsi", "rdi", "rsp", *(f"r{i}" for i in range(8, 16))),
        *_u64("rip", "rflags", "cr0", "cr2", "cr3", "cr4", "dr0", "dr1", "dr2", "dr3", "dr6", "dr7"),
        *((name, "<u4") for name in SEGMENTS),
        *((f"{name}_limit", "<u4") for name in (*SEGMENTS, *TABLES)),
        *_u64(*(f"{name}_base" for name in (*SEGMENTS, *TABLES))),
        *((f"{name}_arbytes", "<u4") for name in SEGMENTS),
        *_u64(
            "sysenter_cs", "sysenter_esp", "sysenter_eip", "shadow_gs", "msr_flags", "msr_lstar", "msr_star"
        ),
        *_u64("msr_cstar", "msr_syscall_mask", "msr_efer", "msr_tsc_aux", "tsc"),
        ("pending_event", "<u4"),
        ("error_code", "<u4"),
        ("flags", "<u4"),
        ("_pad0", "<u4"),
    ]
)

PV_IN_KERNEL = 1 << 2
"""Bit of `flags` in a PV context: the vCPU runs the kernel, so its gs base is the kernel's (VGCF_IN_KERNEL)."""

# HVM_CONTEXT:  | type u16 | instance u16 | length u32 | body … | … until type 0, length 0
HVM_DESCRIPTOR = struct.Struct("<HHI")
HVM_END = 0
HVM_CPU_TYPE = 2
HVM_TYPE_NAMES = {
    1: "HEADER",
    2: "CPU",
    3: "PIC",
    4: "IOAPIC",
    5: "LAPIC",
    6: "LAPIC_REGS",
    7: "PCI_IRQ",
    8: "ISA_IRQ",
    9: "PCI_LINK",
    10: "PIT",
    11: "RTC",
    12: "HPET",
    13: "PMTIMER",
    14: "MTRR",
    15: "VIRIDIAN_DOMAIN",
    16: "CPU_XSAVE",
    17: "VIRIDIAN_VCPU",
    18: "VMCE_VCPU",
    19: "TSC_ADJUST",
    20: "CPU_MSR",
}


@dataclass(frozen=True)
class HvmRecord:
    """One record of an HVM context; `instance` is the vCPU for what is a vCPU's."""

    type: int
    instance: int
    body: bytes

    @property
    def name(self) -> str:
        """Its name in Xen's header."""
        return HVM_TYPE_NAMES.get(self.type, f"type {self.type}")


@dataclass(frozen=True)
class Vcpu:
    """One vCPU: `values` by the names of `PV_CONTEXT` or `HVM_CPU`, which `is_pv` tells."""

    number: int
    is_pv: bool
    values: dict[str, int]

    @property
    def gs_base(self) -> int:
        """The base of gs that is in force."""
        if not self.is_pv:
            return self.values["gs_base"]
        in_kernel = self.values["flags"] & PV_IN_KERNEL
        return self.values["gs_base_kernel" if in_kernel else "gs_base_user"]


def hvm_records(context: bytes) -> list[HvmRecord]:
    """Take an HVM context apart, without its end. `ImageError` if it is not a chain of records."""
    records: list[HvmRecord] = []
    at = 0
    while at + HVM_DESCRIPTOR.size <= len(context):
        type, instance, length = HVM_DESCRIPTOR.unpack_from(context, at)
        at += HVM_DESCRIPTOR.size
        if type == HVM_END:
            return records
        if length > len(context) - at:
            raise ImageError(f"HVM_CONTEXT: record of type {type} has {length} bytes of {len(context) - at}")
        records.append(HvmRecord(type, instance, context[at : at + length]))
        at += length
    raise ImageError(f"HVM_CONTEXT: its {len(context)} bytes have no end among their records")


def values_of(layout: np.dtype[np.void], data: bytes) -> dict[str, int] | None:
    """Registers by name, in the order of `layout`; None for data of another length, another layout."""
    if len(data) != layout.itemsize:
        return None
    fields = np.frombuffer(data, dtype=layout)[0]
    return {
        name: int(fields[name])
        for name in layout.names or ()
        if not name.startswith(PAD) and layout[name].kind != "V"
    }


def opaque_parts(layout: np.dtype[np.void]) -> dict[str, slice]:
    """Where the parts are that are no registers: the FPU's area, and the traps of a PV vCPU."""
    return {
        name: slice(offset, offset + dtype.itemsize)
        for name, (dtype, offset, *_) in (layout.fields or {}).items()
        if not name.startswith(PAD) and dtype.kind == "V"
    }


def vcpus_of(index: ImageIndex) -> tuple[list[Vcpu], list[str]]:
    """The vCPUs of an image, and what could not be understood, in words."""
    found: list[tuple[int, bytes]] = []
    unknown: list[str] = []
    is_pv = bool(index.records_of(RecordType.X86_PV_VCPU_BASIC))
    if is_pv:
        for record in index.records_of(RecordType.X86_PV_VCPU_BASIC):
            assert isinstance(record, X86PvVcpuBasic)  # of that type
            found.append((record.vcpu, record.context))
    for record in index.records_of(RecordType.HVM_CONTEXT):
        assert isinstance(record, HvmContext)  # of that type
        try:
            parts: Sequence[HvmRecord] = hvm_records(record.context)
        except ImageError as error:
            unknown.append(str(error))
            parts = ()
        found += [(part.instance, part.body) for part in parts if part.type == HVM_CPU_TYPE]
    layout = PV_CONTEXT if is_pv else HVM_CPU
    vcpus = []
    for number, data in found:
        values = values_of(layout, data)
        if values is None:
            unknown.append(
                f"vcpu {number}: {len(data)} bytes, the context of a 64-bit vCPU has {layout.itemsize}"
            )
        else:
            vcpus.append(Vcpu(number, is_pv, values))
    return vcpus, unknown
