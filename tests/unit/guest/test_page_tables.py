"""Page tables of PV guests, one case at a time; the properties are in tests/property."""

from __future__ import annotations

import numpy as np
import pytest

from saverestore.errors import ImageError
from saverestore.guest.x86 import layout, tables
from saverestore.stream.layout import PageType

# A host of 32 frames; the guest's pfns 0..7 lie in frames 20, 21, …; frame 3 is someone else's pfn 1.
NR_PFNS = 8
P2M = np.arange(20, 20 + NR_PFNS, dtype=np.uint64)
M2P = np.full(32, tables.INVALID_MFN, dtype=np.uint64)
M2P[P2M] = np.arange(NR_PFNS)
M2P[3] = 1


def table(**entries: int) -> np.ndarray:
    """One table; `e7=pte` sets entry 7."""
    words = np.zeros((1, 512), dtype=np.uint64)
    for name, pte in entries.items():
        words[0, int(name[1:])] = pte
    return words


def pte(frame: int, flags: int = 0x67) -> int:
    return frame << 12 | flags


def normalise(words: np.ndarray, kind: int = PageType.L1TAB) -> tuple[np.ndarray, bool]:
    found, good = tables.normalise(words, np.array([kind], dtype=np.uint8), M2P, P2M)
    return found, bool(good[0])


def test_frames_become_pfns_and_flags_stay():
    found, good = normalise(table(e0=pte(20), e511=pte(27, 0x8000_0000_0000_0163)))
    assert good
    assert int(found[0, 0]) == pte(0)
    assert int(found[0, 511]) == pte(7, 0x8000_0000_0000_0163)


def test_bits_above_the_frame_are_no_part_of_it():
    found, good = normalise(table(e1=pte(21) | 0x7FF << 52))
    assert good
    assert int(found[0, 1]) == pte(1) | 0x7FF << 52


def test_entries_that_are_not_present_pass_untouched_whatever_they_hold():
    junk = 0xDEAD_BEEF_DEAD_BEEE
    found, good = normalise(table(e5=junk))
    assert good
    assert int(found[0, 5]) == junk


def test_the_tables_given_are_not_changed():
    given = table(e0=pte(20))
    normalise(given)
    assert int(given[0, 0]) == pte(20)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(3, id="a frame whose m2p entry names a pfn that lies elsewhere"),
        pytest.param(5, id="a frame that has no pfn"),
        pytest.param(32, id="a frame behind the host's last"),
        pytest.param(0xFF_FFFF_FFFF, id="the highest frame there is"),
    ],
)
def test_a_table_with_a_foreign_frame_is_told_and_others_of_the_batch_are_good(frame):
    words = np.concatenate([table(e0=pte(20)), table(e0=pte(20), e9=pte(frame)), table(e1=pte(21))])
    found, good = tables.normalise(words, np.full(3, PageType.L1TAB, dtype=np.uint8), M2P, P2M)
    assert good.tolist() == [True, False, True]
    assert found[[0, 2], [0, 1]].tolist() == [pte(0), pte(1)]


@pytest.mark.parametrize("kind", [PageType.L2TAB, PageType.L3TAB, PageType.L4TAB, PageType.L2TAB_PINNED])
def test_a_table_with_a_superpage_is_not_good(kind):
    assert not normalise(table(e0=pte(20, 0xE7)), kind)[1]


def test_the_same_bit_in_an_l1_table_is_the_cache_type_and_in_an_absent_entry_nothing():
    assert normalise(table(e0=pte(20, 0xE7)))[1]
    assert normalise(table(e0=pte(20, 0xE6)), PageType.L2TAB)[1]


@pytest.mark.parametrize("kind", [PageType.L4TAB, PageType.L4TAB_PINNED])
def test_xens_own_slots_of_a_top_table_become_zero_whatever_they_hold(kind):
    words = table(e255=pte(20), e256=pte(3), e271=pte(99), e272=pte(21))
    words[0, 260] = 0xDEAD_BEE0  # not present
    words[0, 261] = pte(20, 0xE7)  # would be a superpage
    found, good = normalise(words, kind)
    assert good
    assert not found[0, layout.XEN_L4_SLOTS].any()
    assert found[0, [255, 272]].tolist() == [pte(0), pte(1)]


@pytest.mark.parametrize("kind", [PageType.L1TAB, PageType.L2TAB, PageType.L3TAB])
def test_the_same_slots_of_other_tables_are_the_guests(kind):
    assert int(normalise(table(e260=pte(20)), kind)[0][0, 260]) == pte(0)
    assert not normalise(table(e260=pte(3)), kind)[1]


def test_no_tables_at_all_are_fine():
    none = np.empty((0, 512), dtype=np.uint64)
    found, good = tables.normalise(none, np.empty(0, dtype=np.uint8), M2P, P2M)
    assert found.shape == (0, 512)
    assert not len(good)
    assert not len(tables.referenced_pfns(none))
    assert tables.localise(none, P2M).shape == (0, 512)


def test_pfns_named_are_told_once_each_and_sorted():
    words = np.concatenate([table(e0=pte(5), e1=pte(2)), table(e7=pte(5), e8=pte(1, 0x66))])
    assert tables.referenced_pfns(words).tolist() == [2, 5]


def test_a_pfn_beyond_the_last_is_refused_with_entry_and_slot():
    with pytest.raises(ImageError, match=r"beyond the domain's last pfn: entry 9 is 0x0*8067"):
        tables.localise(table(e3=pte(1), e9=pte(8)), P2M)


def test_a_pfn_without_memory_is_refused_with_entry_and_slot():
    p2m = P2M.copy()
    p2m[4] = tables.INVALID_MFN
    with pytest.raises(ImageError, match=r"without memory: entry 2 is 0x0*4067"):
        tables.localise(table(e2=pte(4)), p2m)
    assert tables.localise(table(e2=pte(4, 0x66)), p2m)[0, 2] == pte(4, 0x66)


def test_pages_are_seen_as_tables_without_a_copy():
    pages = np.zeros((2, 4096), dtype=np.uint8)
    tables.as_tables(pages)[1, 0] = 0x0102
    assert pages[1, :2].tolist() == [2, 1]
