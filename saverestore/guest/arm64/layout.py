"""An arm64 domain's memory, and the scratch pages that a stub runs in. Pure.

    gfn                                                     (xen/public/arch-arm.h, libxl's headroom)
    0x38000     the grant table, where Linux asks Xen to map it
    0x39000     console ring, xenstore ring, memaccess, vuart
    0x39100     ours, while a stub runs:  stub | vectors | data of vCPU 0 | data of vCPU 1 | …
    0x40000     memory, up to 3 GiB
    0x200000    memory beyond that

A data page:

    0x000  control words: arguments and results of hypercalls
    0x100  a slot for each hidden register of the domain's GIC version, in the list's order
    0x800  slots for COMPARED registers as the load stub finds them
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import NewType

from saverestore.arm64_registers import COMPARED, INTERFACE_V2, Register, hidden_registers
from saverestore.kernels.page import PAGE_SHIFT as PAGE_SHIFT
from saverestore.kernels.page import PAGE_SIZE as PAGE_SIZE

Gfn = NewType("Gfn", int)

SCRATCH_GFN = Gfn(0x39100)
FIRST_DATA_GFN = Gfn(SCRATCH_GFN + 2)

BANKS = ((0x40000, 0xC0000), (0x200000, 0xFE00000))
"""(first gfn, pages) of where memory may be: GUEST_RAM_BANK_BASES and _SIZES."""

MAX_VCPUS = 128  # GUEST_MAX_VCPUS

GICD_BASE = 0x0300_1000
REDISTRIBUTOR_SGI_BASE = 0x0303_0000  # GUEST_GICV3_GICR0_BASE, and 64 KiB further the frame of SGIs and PPIs
REDISTRIBUTOR_STRIDE = 0x2_0000


class Control:
    """Offsets in a data page: structures of hypercalls, and their results (64 bits each)."""

    BIND_IPI = 0x00  # struct evtchn_bind_ipi: u32 vcpu, then …
    PORT = 0x04  # … u32 port, which Xen fills in
    BOUND = 0x08
    SEND = 0x10  # struct evtchn_send, evtchn_unmask, evtchn_close: u32 port
    UNMASKED = 0x18
    SENT = 0x20
    CLOSED = 0x28
    VCPU_INFO = 0x30  # struct vcpu_register_vcpu_info: u64 mfn, u32 offset, u32 reserved
    REGISTERED = 0x40
    PRIORITY = 0x48  # struct evtchn_set_priority: u32 port, u32 priority, which is filled in beforehand
    PRIORITIZED = 0x50


class Flag(IntFlag):
    """What a stub is told in x2."""

    FIRST_VCPU = 1 << 0
    VCPU_INFO = 1 << 1


SLOTS_AT = 0x100
FOUND_AT = 0x800


def _slots_of(registers: tuple[Register, ...], start: int) -> dict[Register, int]:
    slots, at = {}, start
    for register in registers:
        room = 16 if register.width == 16 else 8
        at = -(-at // room) * room
        slots[register] = at
        at += room
    return slots


# Those of both versions of the GIC have one list, so that a register has one slot.
SLOTS = _slots_of((*hidden_registers(3), *INTERFACE_V2), SLOTS_AT)
FOUND_SLOTS = _slots_of(COMPARED, FOUND_AT)


def private_frame(gic: int, vcpu: int) -> int:
    """Physical address of the GIC's registers that each vCPU has of its own."""
    return GICD_BASE if gic == 2 else REDISTRIBUTOR_SGI_BASE + vcpu * REDISTRIBUTOR_STRIDE


def data_gfn(vcpu: int) -> Gfn:
    """The frame of a vCPU's data page."""
    return Gfn(FIRST_DATA_GFN + vcpu)


def scratch_gfns(nr_vcpus: int) -> range:
    """All frames that a stub needs in a domain of so many vCPUs."""
    return range(SCRATCH_GFN, FIRST_DATA_GFN + nr_vcpus)


def last_gfn(max_pages: int) -> int:
    """The last gfn that a domain of so many pages may have."""
    (first, room), (second, _) = BANKS
    return first + max_pages if max_pages <= room else second + max_pages - room


@dataclass(frozen=True)
class Layout:
    """Which gfns may have memory: (first gfn, pages) of each bank, ascending."""

    banks: tuple[tuple[int, int], ...]

    @property
    def end(self) -> int:
        """One more than the highest gfn that may have memory."""
        first, pages = self.banks[-1]
        return first + pages

    @staticmethod
    def of_domain(nr_gfns: int, max_pages: int) -> Layout:
        """Of a domain whose highest gfn is one less than `nr_gfns`, and which may have `max_pages` of memory."""
        banks = []
        left = max_pages
        for first, room in BANKS:
            pages = min(room, nr_gfns - first, left)
            if pages > 0:
                banks.append((first, pages))
                left -= pages
        return Layout(tuple(banks))
