"""The order of records, for readers and writers alike."""

from __future__ import annotations

import pytest

from saverestore.stream import DomainType, OutOfOrder, RecordType
from saverestore.stream.grammar import Grammar

R = RecordType
LETTERS = {
    "I": R.X86_PV_INFO,
    "C": R.X86_CPUID_POLICY,
    "M": R.X86_MSR_POLICY,
    "S": R.STATIC_DATA_END,
    "F": R.X86_PV_P2M_FRAMES,
    "p": R.PAGE_DATA,
    "v": R.VERIFY,
    "t": R.X86_TSC_INFO,
    "s": R.SHARED_INFO,
    "b": R.X86_PV_VCPU_BASIC,
    "x": R.X86_PV_VCPU_EXTENDED,
    "X": R.X86_PV_VCPU_XSAVE,
    "m": R.X86_PV_VCPU_MSRS,
    "h": R.HVM_PARAMS,
    "H": R.HVM_CONTEXT,
    "k": R.CHECKPOINT,
    "d": R.IMAGE_DIGEST,
    "f": R.FOLLOWING,
    "o": R.PROVENANCE,
    "O": 0x8000_0001,
    "T": R.TOOLSTACK,
    "l": R.CHECKPOINT_DIRTY_PFN_LIST,
    "a": R.ARM64_PLATFORM,
    "i": R.ARM64_SHARED_INFO,
    "c": R.ARM64_VCPU,
    "E": R.END,
}
PV, HVM, ARM = DomainType.X86_PV, DomainType.X86_HVM, DomainType.ARM64


def follow(domain: DomainType, version: int, letters: str) -> Grammar:
    grammar = Grammar(domain, version)
    for index, letter in enumerate(letters):
        grammar.advance(LETTERS[letter], index)
    return grammar


@pytest.mark.parametrize(
    ("domain", "version", "letters"),
    [
        (PV, 3, "ICMSFppptsbxXmbxXmE"),  # Xen 4.14 to 4.20
        (PV, 3, "CMISFptsbE"),  # policies first
        (PV, 3, "ISFpbxstE"),  # tail in another order, no policies
        (PV, 3, "ISFsbE"),  # no pages at all
        (PV, 3, "ISFppvpptsbE"),  # debug save with a verifying pass
        (PV, 3, "ISFpptsbxXkptsbxXkptsbxXk"),  # Remus, broken off
        (PV, 3, "ISFpptsbkE"),  # ended at a checkpoint
        (PV, 3, "ISFpptsbkptsbE"),
        (PV, 3, "ISFpptsbktsbE"),  # a checkpoint without dirty pages
        (PV, 2, "IFpptsbxXE"),  # Xen 4.6 to 4.13
        (PV, 2, "ItFptpbxsE"),  # converted from a legacy image
        (PV, 3, "oOIOCSOFOpOtOsObOdE"),  # optional records anywhere
        (HVM, 3, "CMSppphHE"),
        (HVM, 3, "SpptHhE"),
        (HVM, 3, "SpptHE"),
        (HVM, 3, "tSpthtHtE"),
        (HVM, 3, "SpvptHhE"),
        (HVM, 3, "SpHhkpHhkHhkE"),
        (HVM, 2, "ppptHhE"),
        (HVM, 2, "HE"),
        (HVM, 3, "oSphHdE"),
        (HVM, 3, "SpHkdE"),
        (HVM, 3, "oSphHfdE"),
        (PV, 3, "ISFpptsbkfdE"),
        (ARM, 3, "oaSpphiccE"),
        (ARM, 3, "aSppcihdE"),
        (ARM, 1, "aSppcihdE"),
    ],
)
def test_an_order_that_xen_or_this_project_writes_is_taken(domain, version, letters):
    grammar = follow(domain, version, letters)
    assert grammar.ended == letters.endswith("E")


@pytest.mark.parametrize(
    ("domain", "version", "letters", "message"),
    [
        (
            PV,
            3,
            "S",
            "STATIC_DATA_END record at the start of an x86 PV image of version 3, where there could be "
            "X86_PV_INFO, X86_CPUID_POLICY, X86_MSR_POLICY",
        ),
        (PV, 3, "II", "X86_PV_INFO record among the static data"),
        (PV, 3, "IF", "X86_PV_P2M_FRAMES record among the static data"),
        (PV, 3, "ISp", "PAGE_DATA record after the static data .* there could be X86_PV_P2M_FRAMES"),
        (PV, 3, "ISC", "X86_CPUID_POLICY record after the static data"),
        (PV, 3, "ISFF", "X86_PV_P2M_FRAMES record among the pages"),
        (PV, 3, "ISFpH", "HVM_CONTEXT record among the pages"),
        (PV, 3, "ISFpE", "END record among the pages"),
        (PV, 3, "ISFpsE", "END before any X86_PV_VCPU_BASIC record"),
        (PV, 3, "ISFpxE", "END before any SHARED_INFO and X86_PV_VCPU_BASIC record"),
        (PV, 3, "ISFpsbp", "PAGE_DATA record after the pages"),
        (PV, 3, "ISFpk", "CHECKPOINT record among the pages"),
        (PV, 3, "ISFpsbksE", "END before any X86_PV_VCPU_BASIC record"),
        (PV, 3, "ISFpvpsbk", "CHECKPOINT record after the pages to compare"),
        (PV, 3, "ISFpvv", "VERIFY record among the pages to compare"),
        (PV, 2, "IS", "STATIC_DATA_END record among the static data of an x86 PV image of version 2"),
        (PV, 2, "IC", "X86_CPUID_POLICY record"),
        (HVM, 3, "p", "PAGE_DATA record among the static data of an x86 HVM image of version 3"),
        (HVM, 3, "I", "X86_PV_INFO record"),
        (HVM, 3, "SS", "STATIC_DATA_END record among the pages"),
        (HVM, 3, "SphE", "END before any HVM_CONTEXT record"),
        (HVM, 3, "SpHEo", "PROVENANCE record after the end"),
        (HVM, 3, "SpHEt", "X86_TSC_INFO record after the end"),
        (HVM, 3, "Spd", "IMAGE_DIGEST record among the pages"),
        (HVM, 3, "Sphd", "IMAGE_DIGEST before any HVM_CONTEXT record"),
        (HVM, 3, "SpHdH", "HVM_CONTEXT record after the image's digest .* there could be END"),
        (HVM, 3, "SpHdO", "unknown optional record 0x80000001 record after the image's digest"),
        (HVM, 3, "SpHdt", "X86_TSC_INFO record after the image's digest"),
        (HVM, 3, "Spf", "FOLLOWING record among the pages"),
        (HVM, 3, "Sphf", "FOLLOWING before any HVM_CONTEXT record"),
        (
            HVM,
            3,
            "SpHfE",
            "END record after the record about the bytes that follow .* there could be IMAGE_DIGEST",
        ),
        (HVM, 3, "SpHff", "FOLLOWING record after the record about"),
        (HVM, 3, "SpHfo", "PROVENANCE record after the record about"),
        (HVM, 3, "SpHdf", "FOLLOWING record after the image's digest"),
        (HVM, 2, "S", "STATIC_DATA_END record"),
        (HVM, 3, "a", "ARM64_PLATFORM record among the static data of an x86 HVM image"),
        (HVM, 3, "Spc", "ARM64_VCPU record among the pages of an x86 HVM image"),
        (ARM, 3, "S", "STATIC_DATA_END record at the start of an arm64 image .* could be ARM64_PLATFORM"),
        (ARM, 3, "aa", "ARM64_PLATFORM record among the static data"),
        (ARM, 3, "aC", "X86_CPUID_POLICY record among the static data of an arm64 image"),
        (ARM, 3, "aSt", "X86_TSC_INFO record among the pages of an arm64 image"),
        (ARM, 3, "aSpH", "HVM_CONTEXT record among the pages of an arm64 image"),
        (ARM, 3, "aSphcE", "END before any ARM64_SHARED_INFO record"),
        (ARM, 3, "aSpiE", "END before any ARM64_VCPU and HVM_PARAMS record"),
        (ARM, 2, "a", "ARM64_PLATFORM record at the start"),
        (HVM, 3, "T", "TOOLSTACK record: it is deprecated"),
        (HVM, 3, "SpHl", "CHECKPOINT_DIRTY_PFN_LIST record: it is of the back channel of COLO"),
    ],
)
def test_another_order_is_refused_with_what_could_have_come(domain, version, letters, message):
    with pytest.raises(OutOfOrder, match=message) as caught:
        follow(domain, version, letters)
    assert caught.value.offset == len(letters) - 1
    assert caught.value.type == LETTERS[letters[-1]]


def test_a_record_that_was_refused_leaves_the_state_as_it_was():
    grammar = follow(HVM, 3, "Sp")
    with pytest.raises(OutOfOrder):
        grammar.advance(R.END, 0)
    grammar.advance(R.HVM_CONTEXT, 0)
    grammar.advance(R.END, 0)
    assert grammar.ended


def test_verifying_begins_with_verify():
    assert not follow(HVM, 3, "Sp").verifying
    assert follow(HVM, 3, "Spv").verifying


@pytest.mark.parametrize(("domain", "before", "last"), [(PV, "I", "F"), (HVM, "", "p"), (HVM, "", "H")])
def test_in_version_2_the_first_record_behind_the_static_data_ends_them(domain, before, last):
    assert not follow(domain, 2, before).static_data_ended
    assert follow(domain, 2, before + last).static_data_ended
