"""Finding the pages that are all zero."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from saverestore.kernels import compiled
from saverestore.kernels.page import PAGE_WORDS

Words = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]


def zero_pages_in_numpy(pages: Words) -> Flags:
    """As `zero_pages`, for where the compiled kernel is missing. It reads all pages to their end."""
    zero: Flags = np.bitwise_or.reduce(pages, axis=1) == 0
    return zero


def zero_pages(pages: Words) -> Flags:
    """Which pages of a contiguous array of shape (n, 512) are all zero, shape (n,).

    Most that are not are told by their first words: it takes the time of reading those that are.
    """
    kernels = compiled()
    if kernels is None:
        return zero_pages_in_numpy(pages)
    zero = np.empty(len(pages), dtype=np.bool_)
    ffi, lib = kernels.ffi, kernels.lib
    lib.find_zero_pages(
        ffi.from_buffer("uint64_t[]", pages), PAGE_WORDS, len(pages), ffi.from_buffer("uint8_t[]", zero)
    )
    return zero
