"""Both builds of the compiled kernel, and what stands in where it is missing, give the package's digests."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from saverestore.kernels import compiled, xxh3

needs_kernel = pytest.mark.skipif(
    compiled() is None,
    reason="saverestore._kernels is not compiled: install a C compiler and libxxhash-dev, then install again",
)


def some_pages(nr: int, size: int = 4096) -> np.ndarray:
    return np.random.default_rng(nr).integers(0, 256, (nr, size), dtype=np.uint8)


@pytest.mark.parametrize("nr", [0, 1, 5, 300])
def test_the_twin_in_python_is_xxh3_128_low_half_first(nr):
    pages = some_pages(nr)
    found = xxh3.page_digests_in_python(pages)
    assert found.shape == (nr, 2)
    for page, (low, high) in zip(pages, found.tolist(), strict=True):
        assert high << 64 | low == xxhash.xxh3_128_intdigest(page)


@needs_kernel
@pytest.mark.parametrize("build", xxh3.BUILDS)
@pytest.mark.parametrize("nr", [0, 1, 5, 300])
@pytest.mark.parametrize("size", [4096, 512, 240])
def test_the_compiled_kernels_equal_their_twin(nr, size, build):
    pages = some_pages(nr, size)
    assert np.array_equal(xxh3.page_digests(pages, build), xxh3.page_digests_in_python(pages))


@needs_kernel
@pytest.mark.parametrize("build", xxh3.BUILDS)
def test_the_compiled_kernels_read_the_rows_they_are_given_and_no_others(build):
    pages = some_pages(10)
    assert np.array_equal(xxh3.page_digests(pages[3:7], build), xxh3.page_digests_in_python(pages)[3:7])


@needs_kernel
@pytest.mark.parametrize("build", xxh3.BUILDS)
@given(parts=st.lists(st.binary(max_size=3000) | st.just(bytes(70_000)), max_size=6))
def test_a_digest_of_parts_is_that_of_the_whole_at_any_time(build, parts):
    ours, theirs = xxh3.CompiledXxh3(build), xxhash.xxh3_128()
    for part in parts:
        ours.update(part)
        theirs.update(part)
        assert ours.digest() == theirs.digest()
    assert ours.digest() == theirs.digest()


@needs_kernel
@pytest.mark.parametrize("data", [bytearray(b"abc"), memoryview(b"abcd")[1:], np.arange(6).reshape(2, 3)])
def test_buffers_of_any_kind_are_taken(data):
    ours = xxh3.CompiledXxh3()
    ours.update(data)
    assert ours.digest() == xxhash.xxh3_128_digest(data)


@needs_kernel
def test_memory_with_gaps_is_refused():
    with pytest.raises((BufferError, ValueError, TypeError)):
        xxh3.CompiledXxh3().update(np.zeros((4, 4), dtype=np.uint8)[:, 1])


@pytest.mark.parametrize(("vector_s", "scalar_s", "found"), [(1, 2, "vector"), (1, 0.5, "scalar")])
def test_the_build_that_takes_less_time_is_found_whatever_the_first_try_of_each_takes(
    vector_s, scalar_s, found
):
    takes = {"vector": [9.0, vector_s, vector_s], "scalar": [9.0, scalar_s, scalar_s]}
    now = 0.0

    def work(build: str) -> None:
        nonlocal now
        now += takes[build].pop(0)

    assert xxh3.quickest(work, clock=lambda: now) == found


@needs_kernel
def test_one_of_the_builds_is_the_fastest_here():
    assert xxh3.fastest_build() in xxh3.BUILDS


def test_without_the_kernel_the_package_is_used(without_kernels):
    pages = some_pages(3)
    assert np.array_equal(xxh3.page_digests(pages), xxh3.page_digests_in_python(pages))
    assert isinstance(xxh3.xxh3_128(), type(xxhash.xxh3_128()))
