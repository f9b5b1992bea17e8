"""The cache of last versions sent: bounded, and never wrong about a page."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from saverestore.stream.versions import VersionCache


def pages_of(values: list[int]) -> np.ndarray:
    return np.repeat(np.array(values, dtype=np.uint8), 4096).reshape(-1, 4096)


def replace(cache: VersionCache, versions: dict[int, int]) -> dict[int, int]:
    """Keep these; which versions were known before, by pfn."""
    pfns = np.array(list(versions), dtype=np.uint64)
    bases, known = cache.replace(pfns, pages_of(list(versions.values())))
    assert len(bases) == known.sum()
    assert (bases == bases[:, :1]).all()
    return dict(zip(pfns[known].tolist(), bases[:, 0].tolist(), strict=True))


def test_a_page_is_coded_against_the_version_before():
    cache = VersionCache(10 * 4096)
    assert replace(cache, {5: 1, 6: 2}) == {}
    assert replace(cache, {6: 3, 7: 4}) == {6: 2}
    assert replace(cache, {5: 9, 6: 9}) == {5: 1, 6: 3}


def test_what_is_forgotten_is_new_again():
    cache = VersionCache(10 * 4096)
    replace(cache, {5: 1, 6: 2})
    cache.forget(np.array([5, 1000], dtype=np.uint64))
    assert replace(cache, {5: 3, 6: 3}) == {6: 2}


def test_pages_that_were_not_touched_for_longest_make_room():
    cache = VersionCache(3 * 4096)
    for pfn in (1, 2, 3):
        replace(cache, {pfn: pfn})
    replace(cache, {1: 11})
    replace(cache, {4: 4})
    assert replace(cache, {1: 0, 3: 0, 4: 0}) == {1: 11, 3: 3, 4: 4}
    assert replace(cache, {2: 0}) == {}


def test_a_batch_larger_than_the_cache_is_kept_in_part():
    cache = VersionCache(2 * 4096)
    replace(cache, {pfn: pfn for pfn in range(5)})
    assert len(replace(cache, dict.fromkeys(range(5), 9))) == 2


def test_a_cache_without_room_knows_nothing():
    cache = VersionCache(100)
    replace(cache, {1: 1})
    assert replace(cache, {1: 1}) == {}


@given(
    st.integers(0, 6),
    st.lists(
        st.one_of(
            st.dictionaries(st.integers(0, 12), st.integers(0, 255), min_size=1, max_size=8),
            st.sets(st.integers(0, 20), max_size=4),
        ),
        max_size=30,
    ),
)
@settings(max_examples=200, deadline=None)
def test_what_is_known_of_a_page_is_what_was_sent_last(nr_slots, steps):
    cache, sent = VersionCache(nr_slots * 4096), {}
    for step in steps:
        if isinstance(step, set):
            cache.forget(np.array(sorted(step), dtype=np.uint64))
            sent = {pfn: version for pfn, version in sent.items() if pfn not in step}
            continue
        found = replace(cache, step)
        assert found.items() <= sent.items()
        sent |= step
