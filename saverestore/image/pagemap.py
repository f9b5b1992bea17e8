"""A number for each pfn, in memory that follows the domain's: an array for each 128 MiB of it that occur."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from saverestore.errors import ImageError
from saverestore.stream.layout import U64Array

CHUNK_SHIFT = 15
CHUNK_PFNS = 1 << CHUNK_SHIFT
"""Pfns in one array of 256 KiB: 128 MiB of guest memory."""

FREE_CHUNKS = 256
PFNS_FOR_A_CHUNK = 1 << 13
"""A damaged image may name pfns anywhere in 2^52. 64 MiB of arrays are always granted, and then one more for every
8192 pfns that were named, so that memory stays below 4 times what the image itself takes for its entries."""


class PageMap:
    """Pfn to u64; 0 is for pfns that were never put. `len()` tells how many were.

    8 bytes a pfn: 16 MiB for a domain of 8 GiB.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._chunks: dict[int, U64Array] = {}
        self._nr_named = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, pfns: U64Array, values: U64Array) -> None:
        """Set the values, none of them 0, of pfns, none of them twice. ImageError when they are too scattered."""
        self._nr_named += len(pfns)
        for number, part in _by_chunk(pfns):
            chunk = self._chunks.get(number)
            if chunk is None:
                if len(self._chunks) >= FREE_CHUNKS + self._nr_named // PFNS_FOR_A_CHUNK:
                    raise ImageError(
                        f"the image names pfns so far apart (now {int(pfns[part][0]):#x}) as no domain has them"
                    )
                chunk = self._chunks[number] = np.zeros(CHUNK_PFNS, dtype=np.uint64)
            at = (pfns[part] & np.uint64(CHUNK_PFNS - 1)).astype(np.intp)
            self._size += int(np.count_nonzero(chunk[at] == 0))
            chunk[at] = values[part]

    def get(self, pfns: U64Array) -> U64Array:
        """The values of these pfns, in their order."""
        values = np.zeros(len(pfns), dtype=np.uint64)
        for number, part in _by_chunk(pfns):
            chunk = self._chunks.get(number)
            if chunk is not None:
                values[part] = chunk[(pfns[part] & np.uint64(CHUNK_PFNS - 1)).astype(np.intp)]
        return values

    def chunks(self) -> Iterator[tuple[U64Array, U64Array]]:
        """Pfns that were put, rising, with their values; at most 32768 at a time."""
        for number in sorted(self._chunks):
            chunk = self._chunks[number]
            at = np.flatnonzero(chunk)
            yield at.astype(np.uint64) + np.uint64(number << CHUNK_SHIFT), chunk[at]


def chunks_of_both(a: PageMap, b: PageMap) -> Iterator[tuple[U64Array, U64Array, U64Array]]:
    """Pfns that are in either map, rising, with their values in both; at most 32768 at a time."""
    empty = np.zeros(CHUNK_PFNS, dtype=np.uint64)
    for number in sorted(a._chunks.keys() | b._chunks.keys()):
        in_a, in_b = a._chunks.get(number, empty), b._chunks.get(number, empty)
        at = np.flatnonzero(in_a | in_b)
        yield at.astype(np.uint64) + np.uint64(number << CHUNK_SHIFT), in_a[at], in_b[at]


def _by_chunk(pfns: U64Array) -> Iterator[tuple[int, slice | NDArray[np.intp]]]:
    """The chunks that these pfns are in, and which of them are in each: a slice, or indices."""
    if not len(pfns):
        return
    numbers = pfns >> np.uint64(CHUNK_SHIFT)
    if (numbers[1:] >= numbers[:-1]).all():  # the usual case: records go through memory from its begin
        starts = np.flatnonzero(np.diff(numbers, prepend=~numbers[:1]))
        for begin, end in pairwise([*starts.tolist(), len(pfns)]):
            yield int(numbers[begin]), slice(begin, end)
        return
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order], prepend=~numbers[order[:1]]))
    for indices in np.split(order, starts[1:]):
        yield int(numbers[indices[0]]), indices
