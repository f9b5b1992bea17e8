"""The compiled kernel and its twin in numpy find the same pages to be all zero."""

from __future__ import annotations

import numpy as np
import pytest

from saverestore.kernels import compiled
from saverestore.kernels.page import PAGE_WORDS
from saverestore.kernels.zero_pages import zero_pages, zero_pages_in_numpy

needs_kernel = pytest.mark.skipif(compiled() is None, reason="saverestore._kernels is not compiled")


@needs_kernel
def test_one_bit_anywhere_in_a_page_is_seen():
    pages = np.zeros((PAGE_WORDS, PAGE_WORDS), dtype=np.uint64)
    pages[np.arange(PAGE_WORDS), np.arange(PAGE_WORDS)] = (
        np.uint64(1) << np.arange(PAGE_WORDS, dtype=np.uint64) % 64
    )
    assert not zero_pages(pages).any()
    pages[5] = pages[511] = 0
    assert zero_pages(pages).nonzero()[0].tolist() == [5, 511]


@needs_kernel
@pytest.mark.parametrize("nr", [0, 1, 7, 1024])
def test_the_compiled_kernel_equals_its_twin(nr):
    random = np.random.default_rng(nr)
    pages = random.integers(0, 2, (nr, PAGE_WORDS), dtype=np.uint64)
    pages[random.random(nr) < 0.5] = 0
    found = zero_pages(pages)
    assert found.dtype == np.bool_
    assert np.array_equal(found, zero_pages_in_numpy(pages))


def test_memory_that_may_only_be_read_is_looked_at_as_well():
    pages = np.frombuffer(bytes(4096) + b"\1" * 4096, dtype=np.uint64).reshape(-1, PAGE_WORDS)
    assert zero_pages(pages).tolist() == [True, False]


def test_without_the_kernel_the_twin_is_used(without_kernels):
    assert zero_pages(np.zeros((2, PAGE_WORDS), dtype=np.uint64)).tolist() == [True, True]
