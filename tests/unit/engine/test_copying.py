"""The compiled kernel and its twin in numpy copy the same bytes, and none besides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saverestore.kernels import compiled
from saverestore.kernels.copying import (
    copy_pages,
    copy_pages_in_numpy,
    gather_pages,
    gather_pages_in_numpy,
    spread_pages,
    spread_pages_in_numpy,
)

PAGE = 4096


@pytest.mark.parametrize("spread", [spread_pages, spread_pages_in_numpy])
@given(zero=st.lists(st.booleans(), max_size=9), times=st.sampled_from([1, 40]))
def test_pages_are_spread_over_the_places_that_are_not_to_be_zero_and_nothing_besides(spread, zero, times):
    told = np.repeat(np.array(zero, dtype=bool), times)
    source = np.random.default_rng(1).integers(1, 256, (np.count_nonzero(~told), PAGE), dtype=np.uint8)
    to = np.full(len(told) * PAGE + 2, 0xEE, dtype=np.uint8)
    spread(to[1:-1], source.reshape(-1), told)
    pages = to[1:-1].reshape(-1, PAGE)
    assert np.array_equal(pages[~told], source)
    assert not pages[told].any()
    assert to[0] == to[-1] == 0xEE


@pytest.mark.skipif(compiled() is None, reason="saverestore._kernels is not compiled")
@pytest.mark.parametrize(("to", "source"), [(2 * PAGE, PAGE - 1), (2 * PAGE, PAGE + 1), (PAGE, PAGE)])
def test_pages_that_are_not_as_many_as_their_places_are_refused(to, source):
    with pytest.raises(ValueError):
        spread_pages(np.zeros(to, dtype=np.uint8), memoryview(bytes(source)), np.array([True, False]))


@pytest.mark.skipif(compiled() is None, reason="saverestore._kernels is not compiled")
def test_memory_that_may_only_be_read_is_not_copied_to():
    with pytest.raises((BufferError, ValueError)):
        spread_pages(
            np.frombuffer(bytes(PAGE), dtype=np.uint8), memoryview(bytes(PAGE)), np.zeros(1, dtype=bool)
        )


def test_without_the_kernel_the_twin_is_used(without_kernels):
    to = np.ones(2 * PAGE, dtype=np.uint8)
    spread_pages(to, memoryview(b"a" * PAGE), np.array([True, False]))
    assert to.tobytes() == bytes(PAGE) + b"a" * PAGE


KINDS = ("zero", "first byte", "last byte", "one in the middle", "all")


def page_of(kind: str) -> np.ndarray:
    page = np.zeros(PAGE, dtype=np.uint8)
    where = {"zero": [], "first byte": 0, "last byte": -1, "one in the middle": 1999, "all": slice(None)}[
        kind
    ]
    page[where] = 7
    return page


@pytest.mark.parametrize("copy", [copy_pages, copy_pages_in_numpy])
@given(rounds=st.lists(st.lists(st.sampled_from(KINDS), max_size=5), max_size=4))
def test_pages_are_copied_and_zero_ones_told_over_what_was_copied_before(copy, rounds):
    to = np.full((5, PAGE), 0xEE, dtype=np.uint8)
    zero = np.zeros(5, dtype=bool)
    for kinds in rounds:
        nr = len(kinds)
        untouched = to[nr:].copy()
        source = np.array([page_of(kind) for kind in kinds], dtype=np.uint8).reshape(nr, PAGE)
        copy(to[:nr], source.reshape(-1).data, zero[:nr])
        assert np.array_equal(to[:nr], source)
        assert zero[:nr].tolist() == [kind == "zero" for kind in kinds]
        assert np.array_equal(to[nr:], untouched)
        assert np.array_equal(zero, ~to.any(axis=1))


@pytest.mark.skipif(compiled() is None, reason="saverestore._kernels is not compiled")
@pytest.mark.parametrize(("source", "flags"), [(PAGE - 1, 1), (2 * PAGE, 1), (PAGE, 2)])
def test_pages_that_do_not_match_their_places_are_refused(source, flags):
    with pytest.raises(ValueError):
        copy_pages(
            np.zeros((1, PAGE), dtype=np.uint8), memoryview(bytes(source)), np.zeros(flags, dtype=bool)
        )


def test_without_the_kernel_pages_are_copied_by_the_twin(without_kernels):
    to, zero = np.ones((2, PAGE), dtype=np.uint8), np.zeros(2, dtype=bool)
    copy_pages(to, memoryview(bytes(PAGE) + b"a" * PAGE), zero)
    assert zero.tolist() == [True, False]
    assert to[1].tobytes() == b"a" * PAGE


@pytest.mark.parametrize("gather", [gather_pages, gather_pages_in_numpy])
@given(rounds=st.lists(st.lists(st.integers(0, len(KINDS) - 1), max_size=6), max_size=4))
def test_pages_from_here_and_there_are_copied_and_zero_ones_told_over_what_was_copied_before(gather, rounds):
    source = np.array([page_of(kind) for kind in KINDS], dtype=np.uint8)
    to = np.full((6, PAGE), 0xEE, dtype=np.uint8)
    zero = np.zeros(6, dtype=bool)
    for which in rounds:
        nr = len(which)
        untouched = to[nr:].copy()
        gather(to[:nr], source, np.array(which, dtype=np.uint64), zero[:nr])
        assert np.array_equal(to[:nr], source[which])
        assert np.array_equal(to[nr:], untouched)
        assert np.array_equal(zero, ~to.any(axis=1))


@pytest.mark.parametrize("without", [False, True])
def test_a_page_that_is_not_there_is_refused_rather_than_read(without, request):
    if without:
        request.getfixturevalue("without_kernels")
    to, zero = np.zeros((2, PAGE), dtype=np.uint8), np.zeros(2, dtype=bool)
    with pytest.raises(IndexError, match="page 3 of 3"):
        gather_pages(to, np.ones((3, PAGE), dtype=np.uint8), np.array([0, 3], dtype=np.uint64), zero)
    assert not to.any()


@pytest.mark.parametrize(("places", "flags"), [(1, 2), (2, 1), (3, 3)])
def test_pages_from_here_and_there_that_do_not_match_their_places_are_refused(places, flags):
    to, zero = np.zeros((places, PAGE), dtype=np.uint8), np.zeros(flags, dtype=bool)
    with pytest.raises(ValueError):
        gather_pages(to, np.ones((3, PAGE), dtype=np.uint8), np.array([0, 1], dtype=np.uint64), zero)


MORE_THAN_IS_CACHED = 1100  # pages: see kernels/copying.h


@pytest.mark.parametrize("begin", [0, 8, 16, 64], ids=lambda begin: f"{begin} bytes from a page's begin")
def test_large_copies_are_the_same_wherever_they_begin(begin):
    nr = MORE_THAN_IS_CACHED
    source = np.random.default_rng(1).integers(0, 256, (nr, PAGE), dtype=np.uint8)
    source[5:9] = 0
    memory = np.full((nr + 2) * PAGE, 0xEE, dtype=np.uint8)
    first = -memory.ctypes.data % PAGE + begin
    to = memory[first : first + nr * PAGE].reshape(nr, PAGE)
    backwards = np.arange(nr, dtype=np.uint64)[::-1].copy()
    for copy, wanted in (
        (lambda zero: copy_pages(to, source.reshape(-1).data, zero), source),
        (lambda zero: gather_pages(to, source, backwards, zero), source[::-1]),
    ):
        to[:] = 0xEE
        zero = np.zeros(nr, dtype=bool)
        copy(zero)
        assert np.array_equal(to, wanted)
        assert np.array_equal(zero, ~wanted.any(axis=1))
        assert (memory[:first] == 0xEE).all()
        assert (memory[first + nr * PAGE :] == 0xEE).all()
