"""The bodies of the records that only images of arm64 guests have: this project's own, see docs/stream-format.md.

Their types have no `OPTIONAL_BIT`: no other reader can restore such an image, and none must try.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from saverestore.arm64_registers import GIC_VERSIONS, KIND_SHIFT, WIDTHS, Kind, name_of
from saverestore.stream.layout import PAGE_SHIFT, ByteOrder, Fields, RecordType
from saverestore.stream.record_base import Body, CheckedRecord, check_at_least, check_zero, refuse

# ARM64_PLATFORM:
#
#     0     1     2     3     4     5     6     7
#    +-----------------------+-----------------------+
#    | version of the GIC    | vCPUs                 |
#    +-----------------------+-----------------------+
#    | MIDR_EL1                                      |
#    +-----------------------------------------------+
#    | CNTFRQ_EL0                                    |
#    +-----------------------+-----------------------+
#    | banks of memory B     | reserved              |
#    +-----------------------+-----------------------+
#    | { first pfn | pfns }, 64 bits each, B times …
PLATFORM_HEADER = Fields("IIQQII")
BANK = Fields("QQ")
MAX_BANKS = 16

# ARM64_VCPU:
#
#    +-----------------------+-----------------------+
#    | vCPU                  | 1 if it is online     |
#    +-----------------------+-----------------------+
#    | registers R           | reserved              |
#    +-----------------------+-----------------------+
#    | encoding              | width in bytes        |   R times
#    +-----------------------+-----------------------+
#    | value, 128 bits, low half first               |
#    |                                               |
#    +-----------------------------------------------+
VCPU_HEADER = Fields("IIII")
REGISTER = Fields("IIQQ")
MAX_REGISTERS = 4096

# ARM64_SHARED_INFO:
#
#    +-----------------------------------------------+
#    | pfn of the shared_info page                   |
#    +-----------------------+-----------------------+
#    | vCPUs V               | reserved              |
#    +-----------------------+-----------------------+
#    | guest physical address of its vcpu_info, 64 bits, V times …
SHARED_INFO_HEADER = Fields("QII")
ADDRESS = Fields("Q")
VCPU_INFO_ALIGN = 8

MAX_VCPUS = 4096
LOW_HALF = (1 << 64) - 1


@dataclass(frozen=True)
class Arm64Platform(CheckedRecord):
    """What the domain needs of the host it is restored on. `banks`: (first pfn, pfns) of its memory, ascending."""

    type = RecordType.ARM64_PLATFORM
    gic: int
    nr_vcpus: int
    midr: int
    cntfrq: int
    banks: tuple[tuple[int, int], ...]

    def pack(self, order: ByteOrder = ByteOrder.LITTLE) -> bytes:
        """Return the body."""
        self._check(None)
        header = PLATFORM_HEADER.pack(
            self.gic, self.nr_vcpus, self.midr, self.cntfrq, len(self.banks), 0, order=order
        )
        return header + b"".join(BANK.pack(first, pfns, order=order) for first, pfns in self.banks)

    @classmethod
    def unpack(cls, body: Body, offset: int, order: ByteOrder = ByteOrder.LITTLE) -> Self:
        """Read the body."""
        check_at_least(cls.type, body, PLATFORM_HEADER.size, offset)
        gic, nr_vcpus, midr, cntfrq, nr_banks, reserved = PLATFORM_HEADER.unpack(body, order)
        check_zero(cls.type, reserved, offset)
        wanted = PLATFORM_HEADER.size + nr_banks * BANK.size
        if len(body) != wanted:
            refuse(cls.type, offset, f"body of {len(body)} bytes; {nr_banks} banks take {wanted}")
        banks = tuple(BANK.iter_unpack(body[PLATFORM_HEADER.size :], order))
        record = cls(gic, nr_vcpus, midr, cntfrq, banks)
        record._check(offset)
        return record

    def _check(self, offset: int | None) -> None:
        if self.gic not in GIC_VERSIONS:
            refuse(self.type, offset, f"version {self.gic} of the GIC; there are {GIC_VERSIONS}")
        if not 1 <= self.nr_vcpus <= MAX_VCPUS:
            refuse(self.type, offset, f"{self.nr_vcpus} vCPUs")
        if not self.cntfrq:
            refuse(self.type, offset, "a counter that does not count")
        if not 1 <= len(self.banks) <= MAX_BANKS:
            refuse(self.type, offset, f"{len(self.banks)} banks of memory, 1 to {MAX_BANKS} wanted")
        end = 0
        for first, pfns in self.banks:
            if first < end or not pfns or first + pfns > 1 << 52:
                refuse(
                    self.type,
                    offset,
                    f"a bank of {pfns:#x} pfns from {first:#x}, where {end:#x} is the end so far",
                )
            end = first + pfns


@dataclass(frozen=True)
class Arm64Vcpu(CheckedRecord):
    """A vCPU's registers: (encoding, value), see `arm64_registers`. Each is there once."""

    type = RecordType.ARM64_VCPU
    vcpu: int
    online: bool
    registers: tuple[tuple[int, int], ...]

    def pack(self, order: ByteOrder = ByteOrder.LITTLE) -> bytes:
        """Return the body."""
        entries = [
            (encoding, WIDTHS[Kind(encoding >> KIND_SHIFT)], value) for encoding, value in self.registers
        ]
        self._check_entries(entries, None)
        header = VCPU_HEADER.pack(self.vcpu, int(self.online), len(self.registers), 0, order=order)
        return header + b"".join(
            REGISTER.pack(encoding, width, value & LOW_HALF, value >> 64, order=order)
            for encoding, width, value in entries
        )

    @classmethod
    def unpack(cls, body: Body, offset: int, order: ByteOrder = ByteOrder.LITTLE) -> Self:
        """Read the body."""
        check_at_least(cls.type, body, VCPU_HEADER.size, offset)
        vcpu, online, count, reserved = VCPU_HEADER.unpack(body, order)
        check_zero(cls.type, reserved, offset)
        wanted = VCPU_HEADER.size + count * REGISTER.size
        if len(body) != wanted or count > MAX_REGISTERS:
            refuse(cls.type, offset, f"body of {len(body)} bytes; {count} registers take {wanted}")
        if online not in (0, 1):
            refuse(cls.type, offset, f"vCPU {vcpu} is online {online} times")
        entries = [
            (encoding, width, low | high << 64)
            for encoding, width, low, high in REGISTER.iter_unpack(body[VCPU_HEADER.size :], order)
        ]
        record = cls(vcpu, bool(online), tuple((encoding, value) for encoding, _, value in entries))
        record._check_entries(entries, offset)
        return record

    def _check_entries(self, entries: list[tuple[int, int, int]], offset: int | None) -> None:
        seen = set()
        for encoding, width, value in entries:
            kind = encoding >> KIND_SHIFT
            if kind not in WIDTHS or WIDTHS[Kind(kind)] != width:
                refuse(self.type, offset, f"vCPU {self.vcpu}: {name_of(encoding)} is {width} bytes wide")
            if not 0 <= value < 1 << 8 * width:
                refuse(self.type, offset, f"vCPU {self.vcpu}: {name_of(encoding)} does not hold {value:#x}")
            if encoding in seen:
                refuse(self.type, offset, f"vCPU {self.vcpu}: {name_of(encoding)} is there twice")
            seen.add(encoding)


@dataclass(frozen=True)
class Arm64SharedInfo(CheckedRecord):
    """Where the guest has what it shares with Xen: the shared_info page, and each vCPU's vcpu_info (0: nowhere)."""

    type = RecordType.ARM64_SHARED_INFO
    pfn: int
    vcpu_info: tuple[int, ...]

    def pack(self, order: ByteOrder = ByteOrder.LITTLE) -> bytes:
        """Return the body."""
        self._check(None)
        header = SHARED_INFO_HEADER.pack(self.pfn, len(self.vcpu_info), 0, order=order)
        return header + b"".join(ADDRESS.pack(address, order=order) for address in self.vcpu_info)

    @classmethod
    def unpack(cls, body: Body, offset: int, order: ByteOrder = ByteOrder.LITTLE) -> Self:
        """Read the body."""
        check_at_least(cls.type, body, SHARED_INFO_HEADER.size, offset)
        pfn, count, reserved = SHARED_INFO_HEADER.unpack(body, order)
        check_zero(cls.type, reserved, offset)
        wanted = SHARED_INFO_HEADER.size + count * ADDRESS.size
        if len(body) != wanted:
            refuse(cls.type, offset, f"body of {len(body)} bytes; {count} vCPUs take {wanted}")
        addresses = tuple(
            address for (address,) in ADDRESS.iter_unpack(body[SHARED_INFO_HEADER.size :], order)
        )
        record = cls(pfn, addresses)
        record._check(offset)
        return record

    def _check(self, offset: int | None) -> None:
        if not 1 <= len(self.vcpu_info) <= MAX_VCPUS:
            refuse(self.type, offset, f"{len(self.vcpu_info)} vCPUs")
        for vcpu, address in enumerate(self.vcpu_info):
            if address % VCPU_INFO_ALIGN or address >> PAGE_SHIFT == self.pfn:
                refuse(self.type, offset, f"the vcpu_info of vCPU {vcpu} cannot be at {address:#x}")


BODY_MAX = {
    RecordType.ARM64_PLATFORM: PLATFORM_HEADER.size + MAX_BANKS * BANK.size,
    RecordType.ARM64_VCPU: VCPU_HEADER.size + MAX_REGISTERS * REGISTER.size,
    RecordType.ARM64_SHARED_INFO: SHARED_INFO_HEADER.size + MAX_VCPUS * ADDRESS.size,
}
