"""The compiled kernel and its twin in Python give the same digests."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash

from saverestore.kernels import page_digests as digests

needs_kernel = pytest.mark.skipif(
    digests._kernels is None,
    reason="saverestore._kernels is not compiled: install a C compiler and libxxhash-dev, then install again",
)


def some_pages(nr: int, size: int = 4096) -> np.ndarray:
    return np.random.default_rng(nr).integers(0, 256, (nr, size), dtype=np.uint8)


@pytest.mark.parametrize("nr", [0, 1, 5, 300])
def test_the_twin_in_python_is_xxh3_128_low_half_first(nr):
    pages = some_pages(nr)
    found = digests.page_digests_in_python(pages)
    assert found.shape == (nr, 2)
    for page, (low, high) in zip(pages, found.tolist(), strict=True):
        assert high << 64 | low == xxhash.xxh3_128_intdigest(page)


@needs_kernel
@pytest.mark.parametrize("nr", [0, 1, 5, 300])
@pytest.mark.parametrize("size", [4096, 512, 240])
def test_the_compiled_kernel_equals_its_twin(nr, size):
    pages = some_pages(nr, size)
    assert np.array_equal(digests.page_digests(pages), digests.page_digests_in_python(pages))


@needs_kernel
def test_the_compiled_kernel_reads_the_rows_it_is_given_and_no_others():
    pages = some_pages(10)
    assert np.array_equal(digests.page_digests(pages[3:7]), digests.page_digests_in_python(pages)[3:7])


def test_without_the_kernel_the_twin_is_used(monkeypatch):
    monkeypatch.setattr(digests, "_kernels", None)
    pages = some_pages(3)
    assert np.array_equal(digests.page_digests(pages), digests.page_digests_in_python(pages))
