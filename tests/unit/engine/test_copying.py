"""The compiled kernel and its twin in numpy copy the same bytes, and none besides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saverestore.kernels import compiled
from saverestore.kernels.copying import copy_in_numpy, copy_pages, copy_pages_in_numpy, copy_to

KIB = 1 << 10


@pytest.mark.parametrize("nr_bytes", [0, 1, 4096, 256 * KIB - 1, 256 * KIB, 256 * KIB + 1, 3 << 20])
@pytest.mark.parametrize("copy", [copy_to, copy_in_numpy])
def test_all_is_copied_and_nothing_besides(copy, nr_bytes):
    source = np.random.default_rng(nr_bytes).integers(1, 256, nr_bytes, dtype=np.uint8)
    to = np.zeros(nr_bytes + 2, dtype=np.uint8)
    copy(to[1:-1], memoryview(source.tobytes()))
    assert to[1:-1].tobytes() == source.tobytes()
    assert not to[0] and not to[-1]


@pytest.mark.parametrize("size", [4095, 4097])
def test_buffers_of_different_lengths_are_refused(size):
    with pytest.raises(ValueError):
        copy_to(np.zeros(4096, dtype=np.uint8), memoryview(bytes(size)))


@pytest.mark.skipif(compiled() is None, reason="saverestore._kernels is not compiled")
def test_memory_that_may_only_be_read_is_not_copied_to():
    with pytest.raises((BufferError, ValueError)):
        copy_to(np.frombuffer(bytes(4096), dtype=np.uint8), memoryview(bytes(4096)))


def test_without_the_kernel_the_twin_is_used(without_kernels):
    to = np.zeros(2, dtype=np.uint8)
    copy_to(to, memoryview(b"ab"))
    assert to.tobytes() == b"ab"


PAGE = 4096
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
