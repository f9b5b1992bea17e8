"""Finding the pages that are all zero."""

from __future__ import annotations

import numpy as np

from saverestore.stream.layout import PAGE_SIZE, BoolArray, U64Array

PAGE_WORDS = PAGE_SIZE // 8


def zero_pages(pages: U64Array) -> BoolArray:
    """Which pages of an array of u64 of shape (n, 512) are all zero, shape (n,)."""
    # Most pages that are not zero show it in a few places; only the others are read to the end.
    probes = pages[:, 0] | pages[:, PAGE_WORDS // 2] | pages[:, PAGE_WORDS - 1]
    zero: BoolArray = np.equal(probes, 0)
    if zero.all():  # spares a copy
        np.logical_not(pages.any(axis=1), out=zero)
    else:
        zero[zero] = ~pages[zero].any(axis=1)
    return zero
