"""The registers of an AArch64 vCPU that an image carries: declared here once.

Out of this list come the image's ARM64_VCPU records, the slots of the page through which the stubs (guest/arm64/
stub.S) and we exchange values, the lists that the stubs are assembled with, and the comparison of a restored domain
with the saved one.

An encoding says what a register is without any table: 8 bits of kind, 24 bits of number.

    kind                 number                                          width in bytes
    CORE          0      0-30: x0-x30; 31 and up: CORE_SPECIAL           8
    SYSTEM        1      op0 op1 CRn CRm op2, as in MRS and MSR          8
    VECTOR        2      0-31: q0-q31                                    16
    DISTRIBUTOR   3      offset in the frame of the GIC's distributor    4
    PRIVATE       4      offset of what the GIC has for each vCPU        4
                         (v3: the redistributor's SGI frame; v2: banked in the distributor)
    INTERFACE     5      v2: offset in the GIC's CPU interface frame     4

Sources: Arm ARM (DDI 0487), C5.3 and D19; GIC architecture (IHI 0069), 12.9 to 12.14.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum


class Kind(IntEnum):
    """What a register belongs to: the top 8 bits of its encoding."""

    CORE = 0
    SYSTEM = 1
    VECTOR = 2
    DISTRIBUTOR = 3
    PRIVATE = 4
    INTERFACE = 5


WIDTHS = {
    Kind.CORE: 8,
    Kind.SYSTEM: 8,
    Kind.VECTOR: 16,
    Kind.DISTRIBUTOR: 4,
    Kind.PRIVATE: 4,
    Kind.INTERFACE: 4,
}
KIND_SHIFT = 24


class Group(Enum):
    """What is done with a register, and when: see stub.S, which has a block for each."""

    CORE = "Xen's calls have it"
    FIRST = "what a stub changes or an exception would: saved first, put back last"
    SYSTEM = "read and written back"
    TIMER = "written back shifted by how far the counter moved"
    COMPARED = "must be the same where the domain is restored"
    FLOAT = "readable once CPACR allows it"
    VECTOR = "the same"
    DISTRIBUTOR = "one for the whole domain: vCPU 0's"
    PRIVATE = "the GIC's registers of this vCPU"
    ENABLE = "written after the other ones of the GIC"
    INTERFACE_V3 = "ICC_*: GICv3"
    INTERFACE_V2 = "GICC_*: GICv2"


@dataclass(frozen=True)
class Register:
    """One register. `number` as its kind says."""

    name: str
    kind: Kind
    number: int
    group: Group

    @property
    def encoding(self) -> int:
        """Kind and number, as an image has them."""
        return self.kind << KIND_SHIFT | self.number

    @property
    def width(self) -> int:
        """In bytes."""
        return WIDTHS[self.kind]

    @property
    def assembler_name(self) -> str:
        """A SYSTEM register as every assembler takes it, whatever names it knows: S3_0_C12_C0_0."""
        n = self.number
        return f"S{n >> 14}_{n >> 11 & 7}_C{n >> 7 & 15}_C{n >> 3 & 15}_{n & 7}"


CORE_SPECIAL = (
    "pc", "cpsr", "spsr_el1", "sp_el0", "sp_el1", "elr_el1", "sctlr_el1", "tcr_el1", "ttbr0_el1", "ttbr1_el1",
)  # fmt: skip
"""What Xen's calls tell of a vCPU besides x0 to x30, in the order of their numbers from 31 on."""


def _system(group: Group, **registers: tuple[int, int, int, int, int]) -> tuple[Register, ...]:
    return tuple(
        Register(name, Kind.SYSTEM, op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2, group)
        for name, (op0, op1, crn, crm, op2) in registers.items()
    )


def _frame(kind: Kind, group: Group, **registers: int) -> tuple[Register, ...]:
    return tuple(Register(name, kind, offset, group) for name, offset in registers.items())


CORE = tuple(
    Register(name, Kind.CORE, number, Group.CORE)
    for number, name in enumerate([*(f"x{n}" for n in range(31)), *CORE_SPECIAL])
)

FIRST = _system(
    Group.FIRST,
    vbar_el1=(3, 0, 12, 0, 0),
    esr_el1=(3, 0, 5, 2, 0),
    far_el1=(3, 0, 6, 0, 0),
    cpacr_el1=(3, 0, 1, 0, 2),
)

SYSTEM = _system(
    Group.SYSTEM,
    tpidr_el1=(3, 0, 13, 0, 4),
    tpidr_el0=(3, 3, 13, 0, 2),
    tpidrro_el0=(3, 3, 13, 0, 3),
    mair_el1=(3, 0, 10, 2, 0),
    amair_el1=(3, 0, 10, 3, 0),
    contextidr_el1=(3, 0, 13, 0, 1),
    cntkctl_el1=(3, 0, 14, 1, 0),
    afsr0_el1=(3, 0, 5, 1, 0),
    afsr1_el1=(3, 0, 5, 1, 1),
    par_el1=(3, 0, 7, 4, 0),
    csselr_el1=(3, 2, 0, 0, 0),
    mdscr_el1=(2, 0, 0, 2, 2),
)

TIMER = _system(
    Group.TIMER,
    cntv_ctl_el0=(3, 3, 14, 3, 1),
    cntv_cval_el0=(3, 3, 14, 3, 2),
    cntvct_el0=(3, 3, 14, 0, 2),
    cntp_ctl_el0=(3, 3, 14, 2, 1),
    cntp_cval_el0=(3, 3, 14, 2, 2),
)

COMPARED = _system(
    Group.COMPARED,
    cntfrq_el0=(3, 3, 14, 0, 0),
    midr_el1=(3, 0, 0, 0, 0),
    mpidr_el1=(3, 0, 0, 0, 5),
    id_aa64pfr0_el1=(3, 0, 0, 4, 0),
    id_aa64pfr1_el1=(3, 0, 0, 4, 1),
    id_aa64dfr0_el1=(3, 0, 0, 5, 0),
    id_aa64isar0_el1=(3, 0, 0, 6, 0),
    id_aa64isar1_el1=(3, 0, 0, 6, 1),
    id_aa64mmfr0_el1=(3, 0, 0, 7, 0),
    id_aa64mmfr1_el1=(3, 0, 0, 7, 1),
    id_aa64mmfr2_el1=(3, 0, 0, 7, 2),
    ctr_el0=(3, 3, 0, 0, 1),
    dczid_el0=(3, 3, 0, 0, 7),
)

FLOAT = _system(Group.FLOAT, fpcr=(3, 3, 4, 4, 0), fpsr=(3, 3, 4, 4, 1))

VECTOR = tuple(Register(f"q{n}", Kind.VECTOR, n, Group.VECTOR) for n in range(32))

DISTRIBUTOR = _frame(Kind.DISTRIBUTOR, Group.DISTRIBUTOR, gicd_ctlr=0x0)

PRIVATE = _frame(
    Kind.PRIVATE,
    Group.PRIVATE,
    igroupr0=0x80,
    icfgr1=0xC04,
    **{f"ipriorityr{n}": 0x400 + 4 * n for n in range(8)},
)
ENABLE = _frame(Kind.PRIVATE, Group.ENABLE, isenabler0=0x100)

INTERFACE_V3 = _system(
    Group.INTERFACE_V3,
    icc_sre_el1=(3, 0, 12, 12, 5),
    icc_ap1r0_el1=(3, 0, 12, 9, 0),
    icc_bpr1_el1=(3, 0, 12, 12, 3),
    icc_ctlr_el1=(3, 0, 12, 12, 4),
    icc_pmr_el1=(3, 0, 4, 6, 0),
    icc_igrpen1_el1=(3, 0, 12, 12, 7),
)

INTERFACE_V2 = _frame(
    Kind.INTERFACE,
    Group.INTERFACE_V2,
    gicc_apr0=0xD0,
    gicc_bpr=0x8,
    gicc_abpr=0x1C,
    gicc_pmr=0x4,
    gicc_ctlr=0x0,
)

GIC_VERSIONS = (2, 3)


def hidden_registers(gic: int) -> tuple[Register, ...]:
    """Those that only the vCPU itself can read and write, of a domain whose GIC has this version."""
    interface = {2: INTERFACE_V2, 3: INTERFACE_V3}[gic]
    return (
        *FIRST, *SYSTEM, *TIMER, *COMPARED, *FLOAT, *VECTOR, *DISTRIBUTOR, *PRIVATE, *ENABLE, *interface,
    )  # fmt: skip


ALL = (*CORE, *hidden_registers(3), *INTERFACE_V2)
BY_ENCODING = {register.encoding: register for register in ALL}
BY_NAME = {register.name: register for register in ALL}


def name_of(encoding: int) -> str:
    """A register's name; where it is not in the list, what its encoding says."""
    known = BY_ENCODING.get(encoding)
    if known is not None:
        return known.name
    kind, number = encoding >> KIND_SHIFT, encoding & (1 << KIND_SHIFT) - 1
    try:
        return f"{Kind(kind).name.lower()} register {number:#x}"
    except ValueError:
        return f"register {encoding:#x}"
