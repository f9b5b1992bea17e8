"""A vCPU's registers on their way between Xen's calls, a stub's data page and the image. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from saverestore.arm64_registers import (
    COMPARED,
    CORE,
    CORE_SPECIAL,
    Register,
    hidden_registers,
    name_of,
)
from saverestore.errors import DomainError, ErrorName, ImageError
from saverestore.guest.arm64.layout import (
    FOUND_SLOTS,
    PAGE_SHIFT,
    SCRATCH_GFN,
    SLOTS,
    Control,
    data_gfn,
    private_frame,
)
from saverestore.stream.records import Arm64Vcpu

U8 = npt.NDArray[np.uint8]

MMU_AND_CACHES = 0x1005  # SCTLR_EL1.M, .C, .I
EL1H_MASKED = 0x3C5  # EL1h, debug, SError, IRQ and FIQ masked
AARCH32 = 1 << 4  # PSTATE.nRW

DONE = 0x600D
FAULTED = 0xDEAD


@dataclass(frozen=True)
class Context:
    """What Xen's calls tell of a vCPU, the same as `pyxc.arm64.VcpuContext`; here, so that this module is pure."""

    x: tuple[int, ...]
    pc: int
    cpsr: int
    spsr_el1: int
    sp_el0: int
    sp_el1: int
    elr_el1: int
    sctlr_el1: int
    tcr_el1: int
    ttbr0_el1: int
    ttbr1_el1: int
    online: bool

    def with_x0(self, value: int) -> Context:
        """A copy in which x0, the result of a hypercall, is this."""
        return replace(self, x=(value, *self.x[1:]))

    @property
    def in_stub(self) -> bool:
        """Whether the vCPU runs a stub, or has run it: its MMU is off and it is in our page."""
        return not self.sctlr_el1 & 1 and self.pc >> PAGE_SHIFT in (SCRATCH_GFN, SCRATCH_GFN + 1)

    @property
    def has_ended(self) -> bool:
        """Whether it has run a stub to its end, good or bad."""
        return self.in_stub and self.verdict in (DONE, FAULTED)

    @property
    def verdict(self) -> int:
        """What a stub ended with: DONE, FAULTED, or anything else while it is under way."""
        return self.x[30]


def into_stub(context: Context, vcpu: int, gic: int, flags: int, *, run: bool) -> Context:
    """A context that begins a stub; `run`: whether this vCPU is one that does, the others being taken down."""
    x = [0] * 31
    x[:4] = data_gfn(vcpu) << PAGE_SHIFT, private_frame(gic, vcpu), flags, vcpu
    return replace(
        context,
        x=tuple(x),
        pc=SCRATCH_GFN << PAGE_SHIFT,
        cpsr=EL1H_MASKED,
        sctlr_el1=context.sctlr_el1 & ~MMU_AND_CACHES,
        online=run,
    )


# ---- data pages ------------------------------------------------------------------------------------------


def _value_in(page: U8, at: int, width: int) -> int:
    return int.from_bytes(page[at : at + width].tobytes(), "little")


def read_slots(page: U8, gic: int) -> dict[Register, int]:
    """The hidden registers that a save stub left in a data page."""
    return {register: _value_in(page, SLOTS[register], register.width) for register in hidden_registers(gic)}


def read_found(page: U8) -> dict[Register, int]:
    """The COMPARED registers that a load stub found."""
    return {register: _value_in(page, FOUND_SLOTS[register], register.width) for register in COMPARED}


def write_slots(page: U8, values: Mapping[Register, int]) -> None:
    """Put hidden registers where a load stub takes them from."""
    for register, value in values.items():
        at = SLOTS[register]
        page[at : at + register.width] = np.frombuffer(
            value.to_bytes(register.width, "little"), dtype=np.uint8
        )


def write_vcpu_info(page: U8, address: int) -> None:
    """The argument of VCPUOP_register_vcpu_info."""
    data = struct.pack("<QII", address >> PAGE_SHIFT, address & (1 << PAGE_SHIFT) - 1, 0)
    page[Control.VCPU_INFO : Control.VCPU_INFO + len(data)] = np.frombuffer(data, dtype=np.uint8)


def write_priority(page: U8, priority: int) -> None:
    """The priority of the event channel that the event stub makes."""
    page[Control.PRIORITY + 4 : Control.PRIORITY + 8] = np.frombuffer(
        struct.pack("<I", priority), dtype=np.uint8
    )


def control_result(page: U8, at: int) -> int:
    """The result of a hypercall: 0, or a negative number."""
    return int(page[at : at + 8].view("<i8")[0])


# ---- the image -------------------------------------------------------------------------------------------


def record_of(vcpu: int, context: Context, hidden: Mapping[Register, int]) -> Arm64Vcpu:
    """A vCPU's record; `hidden` is empty for one that is not online."""
    core = [*context.x, *(getattr(context, name) for name in CORE_SPECIAL)]
    registers = [(register.encoding, value) for register, value in zip(CORE, core, strict=True)]
    registers += [(register.encoding, value) for register, value in hidden.items()]
    return Arm64Vcpu(vcpu, context.online, tuple(registers))


def unpack_record(record: Arm64Vcpu, gic: int) -> tuple[Context, dict[Register, int]]:
    """Context and hidden registers again. ImageError when one is missing, or is there that cannot be set."""
    values = dict(record.registers)
    context = Context(
        x=tuple(_take(values, record, CORE[:31])),
        **dict(zip(CORE_SPECIAL, _take(values, record, CORE[31:]), strict=True)),
        online=record.online,
    )
    hidden: dict[Register, int] = {}
    if record.online:
        registers = hidden_registers(gic)
        hidden = dict(zip(registers, _take(values, record, registers), strict=True))
    if values:
        raise ImageError(
            f"vCPU {record.vcpu} has registers that this version cannot restore: {', '.join(map(name_of, values))}",
            name=ErrorName.IMAGE_UNSUPPORTED,
        )
    return context, hidden


def _take(values: dict[int, int], record: Arm64Vcpu, registers: Iterable[Register]) -> list[int]:
    taken = []
    for register in registers:
        value = values.pop(register.encoding, None)
        if value is None:
            raise ImageError(f"the image lacks {register.name} of vCPU {record.vcpu}")
        taken.append(value)
    return taken


# ---- what stands in the way ------------------------------------------------------------------------------


def check_can_be_carried(vcpu: int, hidden: Mapping[Register, int]) -> None:
    """DomainError for a vCPU with state that nothing here reads: SVE, and the keys of pointer authentication."""
    by_name = {register.name: value for register, value in hidden.items()}
    if by_name["id_aa64pfr0_el1"] >> 32 & 0xF:
        raise DomainError(f"vCPU {vcpu} has SVE, whose registers cannot be saved; the domain is running")
    if by_name["id_aa64isar1_el1"] >> 4 & 0xFF or by_name["id_aa64isar1_el1"] >> 24 & 0xFF:
        raise DomainError(
            f"vCPU {vcpu} has pointer authentication, whose keys cannot be saved; the domain is running"
        )


def check_is_64_bit(vcpu: int, context: Context) -> None:
    """DomainError for a vCPU that runs 32-bit code in its kernel's place."""
    if context.cpsr & AARCH32:
        raise DomainError(
            f"vCPU {vcpu} is in AArch32 state: 32-bit guests cannot be saved; the domain is running"
        )


def differences(saved: Mapping[Register, int], found: Mapping[Register, int]) -> list[str]:
    """What of the COMPARED registers is different on this host, for people."""
    return [
        f"{register.name} is {found[register]:#x} here, was {saved[register]:#x}"
        for register in COMPARED
        if saved[register] != found[register]
    ]
