"""Contexts, start_info and shared_info of PV guests."""

from __future__ import annotations

import numpy as np
import pytest

from saverestore.errors import DomainError, ImageError
from saverestore.guest.x86 import layout, vcpu

OFFSET = 1000
"""Frames are pfns plus this, in these tests."""


def to_pfn(mfn: int, what: str) -> int:
    return mfn - OFFSET


def to_mfn(pfn: int, what: str) -> int:
    return pfn + OFFSET


MAPS = vcpu.FrameMaps(plain=to_mfn, top_table=to_mfn)


def context(**fields: object) -> bytes:
    """A context with recognisable bytes everywhere, frames 1001 … and these fields."""
    raw = bytearray(i * 7 % 251 for i in range(layout.VCPU_CONTEXT.itemsize))
    named = np.frombuffer(raw, dtype=layout.VCPU_CONTEXT)[0]
    named["gdt_ents"] = 0
    named["rdx"] = OFFSET + 1
    named["ctrlreg"][3] = (OFFSET + 3) << 12
    named["ctrlreg"][1] = 0
    for name, value in fields.items():
        named[name] = value
    return bytes(raw)


def fields_of(raw: bytes) -> np.void:
    return np.frombuffer(raw, dtype=layout.VCPU_CONTEXT)[0]


def changed_bytes(one: bytes, two: bytes) -> list[int]:
    return np.flatnonzero(np.frombuffer(one, np.uint8) != np.frombuffer(two, np.uint8)).tolist()


def test_start_info_is_in_rdx_of_vcpu_0_only():
    raw = context()
    assert fields_of(vcpu.context_to_pfns(raw, 0, to_pfn))["rdx"] == 1
    assert vcpu.start_info_pfn(vcpu.context_to_pfns(raw, 0, to_pfn)) == 1
    assert fields_of(vcpu.context_to_pfns(raw, 1, to_pfn))["rdx"] == OFFSET + 1


def test_nothing_but_frames_is_changed_not_even_between_the_named_fields():
    raw = context()
    told = vcpu.context_to_pfns(raw, 1, to_pfn)
    ctrlreg = layout.VCPU_CONTEXT.fields["ctrlreg"][1]
    assert set(changed_bytes(raw, told)) <= set(range(ctrlreg + 24, ctrlreg + 32))
    back = vcpu.context_to_mfns(told, 1, MAPS)
    flags = layout.VCPU_CONTEXT.fields["flags"][1]
    assert set(changed_bytes(raw, back)) <= set(range(flags, flags + 8))
    assert len(back) == len(raw)


def test_the_bytes_given_are_not_changed():
    raw = bytearray(context())
    before = bytes(raw)
    vcpu.context_to_pfns(raw, 0, to_pfn)
    vcpu.context_to_mfns(raw, 0, MAPS)
    assert raw == before


@pytest.mark.parametrize(("entries", "nr_frames"), [(0, 0), (1, 1), (512, 1), (513, 2), (14 * 512, 14)])
def test_as_many_gdt_frames_are_translated_as_the_entries_need(entries, nr_frames):
    frames = [OFFSET + 50 + i for i in range(16)]
    told = fields_of(vcpu.context_to_pfns(context(gdt_ents=entries, gdt_frames=frames), 1, to_pfn))
    assert told["gdt_frames"].tolist() == [50 + i for i in range(nr_frames)] + frames[nr_frames:]


@pytest.mark.parametrize("entries", [14 * 512 + 1, 2**63])
def test_more_gdt_entries_than_a_guest_can_have_are_refused_both_ways(entries):
    raw = context(gdt_ents=entries)
    for translate in (
        lambda: vcpu.context_to_pfns(raw, 2, to_pfn),
        lambda: vcpu.context_to_mfns(raw, 2, MAPS),
    ):
        with pytest.raises(ImageError, match=r"vcpu 2.*GDT entries"):
            translate()


def test_the_user_page_table_is_marked_as_present_in_the_image_and_not_on_the_processor():
    registers = [0, (OFFSET + 9) << 12, 0, (OFFSET + 3) << 12, 0, 0, 0, 0]
    raw = context(ctrlreg=registers)
    told = vcpu.context_to_pfns(raw, 0, to_pfn)
    assert fields_of(told)["ctrlreg"][1] == 9 << 12 | 1
    assert fields_of(vcpu.context_to_mfns(told, 0, MAPS))["ctrlreg"].tolist() == registers


def test_a_vcpu_without_user_page_table_gets_none():
    told = vcpu.context_to_pfns(context(), 0, to_pfn)
    assert fields_of(told)["ctrlreg"][1] == 0
    assert fields_of(vcpu.context_to_mfns(told, 0, MAPS))["ctrlreg"][1] == 0


def test_top_tables_are_looked_up_as_such_and_other_frames_are_not():
    asked: dict[str, list[str]] = {"plain": [], "top": []}
    maps = vcpu.FrameMaps(
        plain=lambda pfn, what: asked["plain"].append(what) or pfn,
        top_table=lambda pfn, what: asked["top"].append(what) or pfn,
    )
    vcpu.context_to_mfns(context(gdt_ents=1, ctrlreg=[0, 0x1001, 0, 0x2000, 0, 0, 0, 0]), 0, maps)
    assert asked == {
        "plain": ["start_info", "vcpu 0's GDT frame 0"],
        "top": ["vcpu 0's cr3", "vcpu 0's user cr3"],
    }


def test_a_frame_that_is_not_the_guests_is_the_callers_error():
    def refuse(mfn: int, what: str) -> int:
        raise DomainError(f"{what} is not its own")

    with pytest.raises(DomainError, match="start_info"):
        vcpu.context_to_pfns(context(), 0, refuse)


@pytest.mark.parametrize("length", [0, 2800, 5167, 5169])
def test_a_context_of_another_length_is_refused(length):
    with pytest.raises(ImageError, match=f"{length} bytes"):
        vcpu.context_to_mfns((context() * 2)[:length], 0, MAPS)


def test_start_info_gets_the_new_domains_rings_ports_and_size_and_keeps_the_rest():
    page = np.arange(4096, dtype=np.uint64).astype(np.uint8)
    info = page.view(layout.START_INFO)[0]
    info["store_mfn"], info["console_mfn"] = 5, 6
    before = page.copy()
    rings = vcpu.patch_start_info(
        page, to_mfn, nr_pages=777, shared_info_frame=0xABC, store_port=3, console_port=4
    )
    assert rings == (1005, 1006)
    found = {name: int(info[name]) for name in layout.START_INFO.names}
    assert found == {
        "nr_pages": 777,
        "shared_info": 0xABC000,
        "flags": 0,
        "store_mfn": 1005,
        "store_evtchn": 3,
        "console_mfn": 1006,
        "console_evtchn": 4,
    }
    assert np.array_equal(page[:32], before[:32])  # magic
    assert np.array_equal(page[84:], before[84:])


def saved_shared_info() -> tuple[bytes, np.void]:
    raw = bytearray(i * 11 % 253 for i in range(4096))
    return bytes(raw), np.frombuffer(raw, dtype=layout.SHARED_INFO)[0]


def test_shared_info_takes_vcpus_and_arch_from_the_image_and_the_clock_from_the_new_domain():
    saved, old = saved_shared_info()
    page = np.full(4096, 0xEE, dtype=np.uint8)
    vcpu.merge_shared_info(page, saved)
    fresh = page.view(layout.SHARED_INFO)[0]
    assert (page[3072:3088] == 0xEE).all()  # the wall clock
    for name in ("max_pfn", "p2m_cr3", "p2m_vaddr", "p2m_generation"):
        assert fresh["arch"][name] == old["arch"][name]
    # vcpu_info but for its selector of pending channels
    vcpus, old_vcpus = page[:2048].reshape(32, 64), np.frombuffer(saved, np.uint8)[:2048].reshape(32, 64)
    assert np.array_equal(vcpus[:, :8], old_vcpus[:, :8])
    assert np.array_equal(vcpus[:, 16:], old_vcpus[:, 16:])


def test_no_event_channel_of_the_image_is_pending_and_all_are_masked():
    page = np.zeros(4096, dtype=np.uint8)
    vcpu.merge_shared_info(page, saved_shared_info()[0])
    fresh = page.view(layout.SHARED_INFO)[0]
    assert not fresh["vcpu_info"]["evtchn_pending_sel"].any()
    assert not fresh["evtchn_pending"].any()
    assert (fresh["evtchn_mask"] == 2**64 - 1).all()
    assert fresh["arch"]["frame_list_list"] == 0
