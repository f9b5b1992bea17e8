"""Copying batches of pages, many megabytes at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from saverestore.kernels import compiled
from saverestore.kernels.page import PAGE_SIZE, PAGE_WORDS
from saverestore.kernels.zero_pages import zero_pages_in_numpy

U8 = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]


def copy_in_numpy(to: U8, source: U8 | memoryview) -> None:
    """As `copy_to`, for where the compiled kernel is missing."""
    np.copyto(to, np.frombuffer(source, dtype=np.uint8))


def copy_to(to: U8, source: U8 | memoryview) -> None:
    """Copy `source` into `to`, shape (n,), contiguous; both have the same number of bytes. The GIL is given back.

    The copy is in the processor's cache afterwards, as far as it fits.
    """
    kernels = compiled()
    if kernels is None:
        copy_in_numpy(to, source)
        return
    if to.nbytes != source.nbytes:
        raise ValueError(f"{source.nbytes} bytes into {to.nbytes}")
    ffi = kernels.ffi
    kernels.lib.copy_in_chunks(
        ffi.from_buffer("uint8_t[]", to, require_writable=True),
        ffi.from_buffer("uint8_t[]", source),
        to.nbytes,
    )


def copy_pages_in_numpy(to: U8, source: U8 | memoryview, zero: Flags) -> None:
    """As `copy_pages`, for where the compiled kernel is missing."""
    np.copyto(to, np.frombuffer(source, dtype=np.uint8).reshape(to.shape))
    zero[:] = zero_pages_in_numpy(to.view(np.uint64))


def copy_pages(to: U8, source: U8 | memoryview, zero: Flags) -> None:
    """Copy whole pages into `to`, shape (n, 4096), contiguous, from so many bytes. The GIL is given back.

    `zero`, shape (n,): which pages of `to` are all zero, before and afterwards. Those that stay so are not written;
    so memory that is mostly zero is read once, and that is all. The source may change meanwhile: what is told holds
    for the copy, but for a page that became zero while it was copied.
    """
    kernels = compiled()
    if kernels is None:
        copy_pages_in_numpy(to, source, zero)
        return
    if not to.nbytes == source.nbytes == len(zero) * PAGE_SIZE:
        raise ValueError(f"{source.nbytes} bytes into {to.nbytes}, with {len(zero)} flags")
    ffi = kernels.ffi
    kernels.lib.copy_pages(
        ffi.from_buffer("uint64_t[]", to, require_writable=True),
        ffi.from_buffer("uint64_t[]", source),
        PAGE_WORDS,
        len(zero),
        ffi.from_buffer("uint8_t[]", zero, require_writable=True),
    )
