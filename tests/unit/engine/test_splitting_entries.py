"""The compiled kernel and its twin in numpy take the same entries apart, and refuse the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from saverestore.kernels import compiled, entries
from saverestore.stream.layout import PFN_MASK, PageType, entries_of, has_data
from saverestore.stream.reader import ENTRY_FORM

needs_kernel = pytest.mark.skipif(compiled() is None, reason="saverestore._kernels is not compiled")

PFNS = st.integers(0, PFN_MASK) | st.integers(0, 5)
RISING = st.lists(PFNS, unique=True, max_size=30).map(sorted)


def both(words, max_pfn):
    array = np.array(words, dtype=np.uint64)
    return [split(array, ENTRY_FORM, max_pfn) for split in (entries.split, entries.split_in_numpy)]


@needs_kernel
@given(words=st.lists(st.integers(0, (1 << 64) - 1) | PFNS, max_size=5), max_pfn=st.none() | PFNS)
@example([1 << 52], None)
@example([1 << 59], None)
@example([5 << 60], None)
@example([3, 3], None)
@example([3, 2], None)
@example([0, 4], 3)
@example([0, PFN_MASK], PFN_MASK)
def test_whatever_the_entries_both_say_the_same(words, max_pfn):
    compiled_one, twin = both(words, max_pfn)
    assert (compiled_one is None) == (twin is None)
    if compiled_one is not None:
        for one, other in zip(compiled_one, twin, strict=True):
            assert np.array_equal(one, other)
            assert not isinstance(one, np.ndarray) or one.dtype == other.dtype


@given(pfns=RISING, data=st.data())
def test_good_entries_come_apart_as_they_were_put_together(pfns, data):
    kinds = data.draw(st.lists(st.sampled_from(PageType), min_size=len(pfns), max_size=len(pfns)))
    together = entries_of(np.array(pfns, dtype=np.uint64), np.array(kinds, dtype=np.uint8))
    for split in (entries.split, entries.split_in_numpy):
        found_pfns, found_types, nr_data = split(together, ENTRY_FORM, None)
        assert found_pfns.tolist() == pfns
        assert found_types.tolist() == [int(kind) for kind in kinds]
        assert nr_data == np.count_nonzero(has_data(found_types))


@pytest.mark.parametrize(
    ("words", "max_pfn"), [([1 << 52], None), ([7 << 60], None), ([9], 8), ([1, 1], None), ([2, 1], None)]
)
def test_what_is_not_as_usual_is_left_to_who_can_tell_why(words, max_pfn):
    assert both(words, max_pfn) == [None, None]


def test_without_the_kernel_the_twin_is_used(without_kernels):
    pfns, types, nr_data = entries.split(np.array([7], dtype=np.uint64), ENTRY_FORM, 7)
    assert (pfns.tolist(), types.tolist(), nr_data) == ([7], [0], 1)
