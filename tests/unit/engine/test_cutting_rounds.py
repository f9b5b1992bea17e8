"""Where the pfns of a round are cut into batches."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from saverestore.engine.sending import LARGE_PAGE_PFNS, end_of_batch

SCATTERED = st.sets(st.integers(0, 1 << 22), min_size=1, max_size=400)
DENSE = st.builds(
    lambda first, nr: set(range(first, first + nr)), st.integers(0, 1 << 22), st.integers(1, 3000)
)


def cut(pfns: np.ndarray, wanted: int, most: int) -> list[np.ndarray]:
    batches, start = [], 0
    while start < len(pfns):
        stop = end_of_batch(pfns, start, wanted, most)
        assert stop > start
        batches.append(pfns[start:stop])
        start = stop
    return batches


def large_page_of(pfn: np.uint64) -> int:
    return int(pfn) // LARGE_PAGE_PFNS


@given(chosen=SCATTERED | DENSE, wanted=st.integers(1, 900), more=st.integers(0, 900))
def test_batches_are_all_of_a_round_in_order_and_none_is_too_large(chosen, wanted, more):
    pfns = np.array(sorted(chosen), dtype=np.uint64)
    batches = cut(pfns, wanted, wanted + more)
    assert np.array_equal(np.concatenate(batches), pfns)
    assert max(len(batch) for batch in batches) <= wanted + more


@given(chosen=SCATTERED | DENSE, wanted=st.integers(LARGE_PAGE_PFNS, 900), more=st.integers(0, 900))
def test_no_large_page_is_cut_in_two_when_a_batch_has_room_for_one(chosen, wanted, more):
    pfns = np.array(sorted(chosen), dtype=np.uint64)
    batches = cut(pfns, wanted, wanted + more)
    for before, behind in pairwise(batches):
        assert large_page_of(before[-1]) != large_page_of(behind[0])


@given(chosen=SCATTERED | DENSE, nr=st.integers(1, 6))
def test_a_round_cut_into_equal_batches_has_no_small_one_left(chosen, nr):
    pfns = np.array(sorted(chosen), dtype=np.uint64)
    fair = -(-len(pfns) // nr)
    assert len(cut(pfns, fair, fair + LARGE_PAGE_PFNS)) <= nr
