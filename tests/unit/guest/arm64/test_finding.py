"""shared_info and vcpu_info, found in pages by what Xen writes into them."""

from __future__ import annotations

import numpy as np
import pytest

from saverestore.guest.arm64 import find
from saverestore.kernels.xxh3 import page_digests

WC = find.WC_AT // 4


def pages(count: int) -> np.ndarray:
    random = np.random.default_rng(7)
    return random.integers(0, 256, (count, 4096), dtype=np.uint8)


def shared_info(version: int = 4, sec: int = 1_790_000_000, nsec: int = 123) -> np.ndarray:
    page = np.zeros(4096, dtype=np.uint8)
    page[48:1000] = 0xA5  # event channels
    page.view("<u4")[WC : WC + 3] = version, sec, nsec
    return page


def test_a_shared_info_page_is_found_among_others():
    memory = pages(64)
    memory[::3] = 0
    memory[41] = shared_info()
    assert find.shared_info_candidates(memory).tolist() == [41]


@pytest.mark.parametrize(
    "page",
    [
        shared_info(version=0),
        shared_info(version=5),  # being written
        shared_info(sec=1_400_000_000),
        shared_info(nsec=1_000_000_000),
    ],
)
def test_a_page_that_xen_could_not_have_written_is_no_candidate(page):
    assert len(find.shared_info_candidates(page[None])) == 0


def test_a_page_with_something_behind_the_clock_is_no_candidate():
    page = shared_info()
    page[4095] = 1
    assert len(find.shared_info_candidates(page[None])) == 0


def with_event(
    page: np.ndarray, at: int, bit: int, *, was_pending: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """A page with a vcpu_info at byte `at`, before and after it got an event."""
    before = page.copy()
    words = before.view("<u8")
    words[at // 8] = int(was_pending)
    words[at // 8 + 1] &= ~np.uint64(1 << bit)
    after = before.copy()
    after.view("<u8")[at // 8] |= np.uint64(1)
    after.view("<u8")[at // 8 + 1] |= np.uint64(1 << bit)
    return before, after


@pytest.mark.parametrize("was_pending", [False, True])
@pytest.mark.parametrize(("at", "bit"), [(0, 0), (512, 3), (4032, 63)])
def test_an_event_is_seen_where_it_was_noted(at, bit, was_pending):
    before, after = with_event(pages(1)[0], at, bit, was_pending=was_pending)
    assert find.event_since(after, page_digests(before[None])[0]) == at


def test_an_event_whose_selector_bit_was_set_already_is_seen():
    before, after = with_event(pages(1)[0], 256, 5)
    before.view("<u8")[33] = after.view("<u8")[33]
    assert find.event_since(after, page_digests(before[None])[0]) == 256


def test_a_page_that_changed_in_another_way_is_not_taken_for_a_vcpu_info():
    before, after = with_event(pages(1)[0], 256, 5)
    after[2000] ^= 1
    assert find.event_since(after, page_digests(before[None])[0]) is None


def test_a_channel_of_ours_is_taken_out_of_shared_info_and_events_of_others_stay():
    before = shared_info()
    pending, mask = (slice(at, at + 512) for at in (find.PENDING_AT, find.MASK_AT))
    before[pending], before[mask] = 0, 0xFF
    now = before.copy()
    now[pending].view("<u8")[3] = 1 << 7 | 1 << 9  # ours, and somebody else's
    now[mask].view("<u8")[3] &= ~np.uint64(1 << 7)  # we unmasked it
    now[pending].view("<u8")[0] = 1 << 2
    find.undo_in_shared_info(now, before.tobytes())
    assert (now[mask] == before[mask]).all()
    assert now[pending].view("<u8")[[0, 3]].tolist() == [1 << 2, 1 << 9]


def test_places_that_may_be_a_vcpu_info_with_an_event_pending_are_found_with_their_selectors():
    memory = pages(3)
    for page, at, selector in ((0, 64, 5), (1, 4096 - 48, 0), (2, 0, 2**64 - 1)):
        words = memory[page].view("<u8")
        words[at // 8 : at // 8 + 6] = [1, selector, 0, 0, 0, 0]
    offsets, selectors = find.pending_candidates(memory)
    assert offsets.tolist() == [64, 4096 + 4096 - 48, 2 * 4096]
    assert selectors.tolist() == [5, 0, 2**64 - 1]


@pytest.mark.parametrize(
    "words", [[0, 0, 0, 0, 0, 0], [1, 0, 7, 0, 0, 0], [1, 0, 0, 0, 0, 7], [257, 0, 0, 0, 0, 0]]
)
def test_a_place_without_an_event_or_with_a_time_is_no_candidate(words):
    page = np.zeros((1, 4096), dtype=np.uint8)
    page[0].view("<u8")[8:14] = words
    assert len(find.pending_candidates(page)[0]) == 0


def test_a_vcpu_info_does_not_go_on_in_the_next_page():
    memory = np.zeros((2, 4096), dtype=np.uint8)
    memory[0].view("<u8")[512 - 5] = 1
    assert len(find.pending_candidates(memory)[0]) == 0
