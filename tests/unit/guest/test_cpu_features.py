"""What one CPU policy has beyond another, told in the words of the processors' manuals."""

from __future__ import annotations

import numpy as np
import pytest

from saverestore.guest.x86.cpu_features import (
    FEATURES,
    LEAF,
    MSR,
    NO_SUBLEAF,
    lacking,
    lacking_msr_bits,
)

KNOWN_PLACES = {
    # name: (leaf, subleaf, register, bit), from the manuals
    "SSE3": (0x1, 0, "ecx", 0),
    "PCID": (0x1, 0, "ecx", 17),
    "AVX": (0x1, 0, "ecx", 28),
    "RDRAND": (0x1, 0, "ecx", 30),
    "FPU": (0x1, 0, "edx", 0),
    "SSE2": (0x1, 0, "edx", 26),
    "PBE": (0x1, 0, "edx", 31),
    "FSGSBASE": (0x7, 0, "ebx", 0),
    "AVX2": (0x7, 0, "ebx", 5),
    "RTM": (0x7, 0, "ebx", 11),
    "MPX": (0x7, 0, "ebx", 14),
    "AVX512F": (0x7, 0, "ebx", 16),
    "SMAP": (0x7, 0, "ebx", 20),
    "SHA": (0x7, 0, "ebx", 29),
    "AVX512VL": (0x7, 0, "ebx", 31),
    "PKU": (0x7, 0, "ecx", 3),
    "LA57": (0x7, 0, "ecx", 16),
    "RDPID": (0x7, 0, "ecx", 22),
    "PKS": (0x7, 0, "ecx", 31),
    "MD_CLEAR": (0x7, 0, "edx", 10),
    "CET-IBT": (0x7, 0, "edx", 20),
    "IBRS/IBPB": (0x7, 0, "edx", 26),
    "SSBD": (0x7, 0, "edx", 31),
    "AVX512-BF16": (0x7, 1, "eax", 5),
    "AVX-IFMA": (0x7, 1, "eax", 23),
    "XSAVES": (0xD, 1, "eax", 3),
    "LZCNT": (0x8000_0001, 0, "ecx", 5),
    "FMA4": (0x8000_0001, 0, "ecx", 16),
    "TOPOEXT": (0x8000_0001, 0, "ecx", 22),
    "MWAITX": (0x8000_0001, 0, "ecx", 29),
    "SYSCALL": (0x8000_0001, 0, "edx", 11),
    "NX": (0x8000_0001, 0, "edx", 20),
    "1-GiB-pages": (0x8000_0001, 0, "edx", 26),
    "RDTSCP": (0x8000_0001, 0, "edx", 27),
    "LM": (0x8000_0001, 0, "edx", 29),
    "3DNow": (0x8000_0001, 0, "edx", 31),
    "invariant-TSC": (0x8000_0007, 0, "edx", 8),
    "CLZERO": (0x8000_0008, 0, "ebx", 0),
    "WBNOINVD": (0x8000_0008, 0, "ebx", 9),
    "IBPB": (0x8000_0008, 0, "ebx", 12),
    "virt-SSBD": (0x8000_0008, 0, "ebx", 25),
    "BTC_NO": (0x8000_0008, 0, "ebx", 29),
    "auto-IBRS": (0x8000_0021, 0, "eax", 8),
}


def policy(*leaves: tuple[int, int, str, int]) -> bytes:
    """A policy of one leaf for each (leaf, subleaf, register, value); no subleaf as Xen writes it where it is 0."""
    found = np.zeros(len(leaves), dtype=LEAF)
    for entry, (leaf, subleaf, register, value) in zip(found, leaves, strict=True):
        entry["leaf"], entry["subleaf"] = leaf, subleaf
        entry[register] = value
    return found.tobytes()


def msrs(*entries: tuple[int, int]) -> bytes:
    found = np.zeros(len(entries), dtype=MSR)
    for entry, (index, value) in zip(found, entries, strict=True):
        entry["index"], entry["value"] = index, value
    return found.tobytes()


@pytest.mark.parametrize("name", KNOWN_PLACES)
def test_a_feature_is_named_by_its_bit(name):
    leaf, subleaf, register, bit = KNOWN_PLACES[name]
    (told,) = lacking(
        policy((leaf, subleaf, register, 1 << bit)),
        policy((leaf, subleaf, register, ~(1 << bit) & 0xFFFFFFFF)),
    )
    assert told.startswith(f"{name} (CPUID {leaf:#x}")
    assert told.endswith(f"{register.upper()} bit {bit})")


def test_no_register_has_more_than_32_bits_and_no_name_stands_twice_in_one():
    for names in FEATURES.values():
        assert len(names) <= 32
        told = [name for name in names if name]
        assert len(told) == len(set(told))


def test_a_host_that_has_more_lacks_nothing():
    needed = policy((0x7, 0, "ebx", 1 << 5))
    assert lacking(needed, policy((0x7, 0, "ebx", 0xFFFFFFFF))) == []
    assert lacking(needed, needed) == []


def test_a_leaf_that_the_host_has_not_at_all_counts_as_zero():
    assert lacking(policy((0x7, 1, "eax", 1 << 4)), b"") == ["AVX-VNNI (CPUID 0x7.1, EAX bit 4)"]


def test_leaves_without_subleaves_are_found_however_that_is_written():
    needed = policy((0x1, NO_SUBLEAF, "ecx", 1 << 28))
    assert lacking(needed, policy((0x1, 0, "ecx", 1 << 28))) == []
    assert len(lacking(needed, b"")) == 1


def test_what_the_guest_itself_or_xen_turns_on_is_no_feature_of_the_host():
    osxsave, hypervisor, apic = (0x1, 0, "ecx", 1 << 27), (0x1, 0, "ecx", 1 << 31), (0x1, 0, "edx", 1 << 9)
    for own in (osxsave, hypervisor, apic):
        assert lacking(policy(own), b"") == []


def test_bits_of_msrs_are_named():
    assert lacking_msr_bits(msrs((0x10A, 1 << 4)), msrs((0x10A, 1))) == [
        "SSB_NO (MSR 0x10a ARCH_CAPABILITIES, bit 4)"
    ]
    assert lacking_msr_bits(msrs((0xCE, 1 << 31)), b"") == ["CPUID-faulting (MSR 0xce PLATFORM_INFO, bit 31)"]
    assert lacking_msr_bits(msrs((0x10A, 1 << 4)), msrs((0x10A, 1 << 4))) == []
