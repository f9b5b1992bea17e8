"""Finding the pages that are all zero."""

from __future__ import annotations

import numpy as np

from saverestore.stream.layout import PAGE_SIZE, BoolArray, U64Array

PAGE_WORDS = PAGE_SIZE // 8


def zero_pages(pages: U64Array) -> BoolArray:
    """Which pages of an array of u64 of shape (n, 512) are all zero, shape (n,)."""
    # All is read: looking at a few words first, and then at the candidates, copies these and takes twice as long.
    zero: BoolArray = np.bitwise_or.reduce(pages, axis=1) == 0
    return zero
