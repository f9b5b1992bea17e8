"""Records of arm64 guests: their bytes, and what is refused of them."""

from __future__ import annotations

import struct

import pytest

from saverestore.stream import BadRecord
from saverestore.stream.layout import OPTIONAL_BIT, ByteOrder, RecordType
from saverestore.stream.records import Arm64Platform, Arm64SharedInfo, Arm64Vcpu

PLATFORM = Arm64Platform(gic=3, nr_vcpus=2, midr=0x411FD070, cntfrq=62_500_000, banks=((0x40000, 0x8000),))
PLATFORM_BYTES = bytes.fromhex(
    "03000000 0200000070d01f41 00000000a0acb903 0000000001000000 0000000000000400 00000000 00800000 00000000"
)
VCPU = Arm64Vcpu(vcpu=1, online=True, registers=((0x0100_C600, 0xFFFF), (0x0200_0000, 1 << 64 | 2)))
VCPU_BYTES = bytes.fromhex(
    "01000000 01000000 02000000 00000000"
    "00c60001 08000000 ffff0000 00000000 00000000 00000000"
    "00000002 10000000 02000000 00000000 01000000 00000000"
)
SHARED = Arm64SharedInfo(pfn=0x41234, vcpu_info=(0x4567_8910, 0))
SHARED_BYTES = bytes.fromhex("34120400 00000000 02000000 00000000 10896745 00000000 00000000 00000000")


@pytest.mark.parametrize(
    ("record", "data"), [(PLATFORM, PLATFORM_BYTES), (VCPU, VCPU_BYTES), (SHARED, SHARED_BYTES)]
)
def test_a_record_has_the_bytes_of_the_specification(record, data):
    assert record.pack() == data
    assert type(record).unpack(data, 0) == record
    assert type(record).unpack(record.pack(ByteOrder.BIG), 0, ByteOrder.BIG) == record


@pytest.mark.parametrize("kind", [kind for kind in RecordType if kind.name.startswith("ARM64")])
def test_none_of_them_may_be_skipped_by_a_reader_that_does_not_know_it(kind):
    assert not kind & OPTIONAL_BIT


def changed(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        (Arm64Platform, PLATFORM_BYTES[:-1], "body of 47 bytes; 1 banks take 48"),
        (Arm64Platform, PLATFORM_BYTES[:20], "body of 20 bytes, at least 32 wanted"),
        (Arm64Platform, changed(PLATFORM_BYTES, 0, b"\x04"), "version 4 of the GIC"),
        (Arm64Platform, changed(PLATFORM_BYTES, 4, bytes(4)), "0 vCPUs"),
        (Arm64Platform, changed(PLATFORM_BYTES, 16, bytes(8)), "does not count"),
        (Arm64Platform, changed(PLATFORM_BYTES, 28, b"\x01"), "reserved bytes"),
        (Arm64Platform, changed(PLATFORM_BYTES[:32], 24, bytes(4)), "0 banks of memory"),
        (Arm64Platform, changed(PLATFORM_BYTES, 40, bytes(8)), "a bank of 0x0 pfns"),
        (Arm64Platform, changed(PLATFORM_BYTES, 47, b"\xff"), "a bank of 0xff"),
        (Arm64Vcpu, VCPU_BYTES[:-24], "body of 40 bytes; 2 registers take 64"),
        (Arm64Vcpu, changed(VCPU_BYTES, 4, b"\x02"), "vCPU 1 is online 2 times"),
        (Arm64Vcpu, changed(VCPU_BYTES, 8, b"\xff\xff\xff\xff"), "4294967295 registers take"),
        (Arm64Vcpu, changed(VCPU_BYTES, 12, b"\x01"), "reserved bytes"),
        (Arm64Vcpu, changed(VCPU_BYTES, 20, b"\x04"), "vbar_el1 is 4 bytes wide"),
        (Arm64Vcpu, changed(VCPU_BYTES, 19, b"\x09"), "register 0x900c600 is 8 bytes wide"),
        (Arm64Vcpu, changed(VCPU_BYTES, 32, b"\x01"), "vbar_el1 does not hold 0x1000000000000ffff"),
        (Arm64Vcpu, VCPU_BYTES[:40] + VCPU_BYTES[16:40], "vbar_el1 is there twice"),
        (Arm64SharedInfo, SHARED_BYTES[:-1], "body of 31 bytes; 2 vCPUs take 32"),
        (Arm64SharedInfo, changed(SHARED_BYTES[:16], 8, bytes(4)), "0 vCPUs"),
        (Arm64SharedInfo, changed(SHARED_BYTES, 16, b"\x11"), "vCPU 0 cannot be at 0x45678911"),
        (
            Arm64SharedInfo,
            changed(SHARED_BYTES, 16, struct.pack("<Q", 0x41234010)),
            "cannot be at 0x41234010",
        ),
    ],
)
def test_a_damaged_record_is_refused_with_what_is_wrong(kind, body, message):
    with pytest.raises(BadRecord, match=message) as caught:
        kind.unpack(body, 88)
    assert caught.value.offset == 88


def test_what_cannot_be_read_is_not_written():
    with pytest.raises(BadRecord, match="does not hold"):
        Arm64Vcpu(0, True, ((0x0300_0000, 1 << 32),)).pack()
    with pytest.raises(BadRecord, match="cannot be at"):
        Arm64SharedInfo(5, (4,)).pack()
    with pytest.raises(BadRecord, match="version 5 of the GIC"):
        Arm64Platform(5, 1, 0, 1, ((0, 1),)).pack()
