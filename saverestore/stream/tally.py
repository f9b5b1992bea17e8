"""Counting the pages of an image, a batch at a time, in memory that does not grow with its length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from saverestore.kernels.zero_pages import zero_pages
from saverestore.stream.layout import NR_PAGE_TYPES, PageType, U8Array, U64Array

CHUNK_SHIFT = 15
CHUNK_PFNS = 1 << CHUNK_SHIFT
CHUNK_BYTES = CHUNK_PFNS // 8

CHUNKS_MAX = 16384
"""Bounds the memory of `PfnSet` to 64 MiB: enough for 2 TiB of guest memory."""

WordPages = NDArray[np.uint64]


class PfnSet:
    """A set of pfns: a bitmap in chunks of 128 MiB of guest memory, made when first touched.

    A damaged image can name pfns anywhere in 2^52. Once `chunks_max` chunks exist, pfns outside
    them are not kept, and `exact` becomes false.
    """

    def __init__(self, *, chunks_max: int = CHUNKS_MAX) -> None:
        """Start empty."""
        self._chunks_max = chunks_max
        self._chunks: dict[int, NDArray[np.uint8]] = {}
        self.exact = True
        self.size = 0

    def add(self, pfns: U64Array) -> int:
        """Add pfns, none of them twice in one call; return how many were in the set already."""
        ranked = np.sort(pfns)
        chunk_numbers = ranked >> np.uint64(CHUNK_SHIFT)
        starts = np.flatnonzero(np.diff(chunk_numbers, prepend=~chunk_numbers[:1]))
        present = 0
        for part in np.split(ranked, starts[1:]):
            present += self._add_to_chunk(int(part[0]) >> CHUNK_SHIFT, part)
        return present

    def _add_to_chunk(self, number: int, pfns: U64Array) -> int:
        chunk = self._chunks.get(number)
        if chunk is None:
            if len(self._chunks) >= self._chunks_max:
                self.exact = False
                return 0
            chunk = self._chunks[number] = np.zeros(CHUNK_BYTES, dtype=np.uint8)
        flags = np.zeros(CHUNK_PFNS, dtype=np.bool_)
        flags[pfns & np.uint64(CHUNK_PFNS - 1)] = True
        bits = np.packbits(flags)
        present = int(np.count_nonzero(np.unpackbits(chunk & bits)))
        chunk |= bits
        self.size += len(pfns) - present
        return present


DIGESTS_MAX = 1 << 21
"""Bounds the memory of `SameContent` to some 32 MiB: enough for 8 GiB of pages that all differ."""

PageDigests = Callable[[NDArray[np.uint8]], U64Array]
"""A digest for each page: of shape (n, 4096), shape (n, 2)."""


class SameContent:
    """Counts pages whose content an earlier page had, by 64 bits of their digests.

    When more than `digests_max` contents differ, later pages are not looked at, and `exact` becomes false.
    """

    def __init__(self, *, digests_max: int = DIGESTS_MAX) -> None:
        """Start with none."""
        self._digests_max = digests_max
        self._distinct: U64Array = np.empty(0, dtype=np.uint64)
        self._waiting: list[U64Array] = []
        self._nr_waiting = 0
        self._nr_same = 0
        self.exact = True

    def add(self, digests: U64Array) -> None:
        """Add pages by their digests, shape (n, 2)."""
        if not self.exact:
            return
        self._waiting.append(digests[:, 0].copy())
        self._nr_waiting += len(digests)
        # Seldom, so that it is sorted a few times in all, not with each batch.
        if self._nr_waiting > max(self._digests_max // 8, len(self._distinct) // 2):
            self._merge()
            self.exact = len(self._distinct) <= self._digests_max

    @property
    def nr_same(self) -> int:
        """How many pages repeat an earlier one."""
        self._merge()
        return self._nr_same

    def _merge(self) -> None:
        together = np.concatenate([self._distinct, *self._waiting])
        self._distinct = np.unique(together)
        self._nr_same += len(together) - len(self._distinct)
        self._waiting, self._nr_waiting = [], 0


@dataclass
class PageStatistics:
    """What PAGE_DATA records hold. Pages sent after VERIFY count in `nr_verify_entries` only.

    `by_type`: entries by page type. `nr_data`, `nr_zero`: pages with bytes in the image, and those of
    them that are all zero. `nr_sent_again`: entries whose pfn an earlier record had.
    `distinct_is_exact`: false when the pfns are so scattered that not all could be told apart.
    `page_digests`: where given, `nr_duplicate` counts pages, not all zero, whose content an earlier one had.
    `contents`: where these are counted.
    """

    page_digests: PageDigests | None = field(default=None, repr=False)
    contents: SameContent = field(default_factory=SameContent, repr=False)

    nr_entries: int = 0
    nr_data: int = 0
    nr_zero: int = 0
    nr_sent_again: int = 0
    nr_verify_entries: int = 0
    lowest_pfn: int | None = None
    highest_pfn: int | None = None
    by_type: dict[PageType, int] = field(default_factory=dict)
    _seen: PfnSet = field(default_factory=PfnSet, repr=False)

    @property
    def nr_distinct(self) -> int:
        """Number of different pfns."""
        return self._seen.size

    @property
    def distinct_is_exact(self) -> bool:
        """Whether all pfns could be told apart."""
        return self._seen.exact

    @property
    def nr_duplicate(self) -> int | None:
        """Pages with the content of an earlier one, zero pages not counted; None where nobody looked."""
        return None if self.page_digests is None else self.contents.nr_same

    @property
    def duplicate_is_exact(self) -> bool:
        """Whether all pages could be compared."""
        return self.contents.exact

    def add_entries(self, pfns: U64Array, types: U8Array) -> None:
        """Count the entries of one record: at least one, and no pfn twice."""
        self.nr_entries += len(pfns)
        counts = np.bincount(types, minlength=NR_PAGE_TYPES)
        for kind in PageType:
            if counts[kind]:
                self.by_type[kind] = self.by_type.get(kind, 0) + int(counts[kind])
        lowest, highest = int(pfns.min()), int(pfns.max())
        self.lowest_pfn = lowest if self.lowest_pfn is None else min(lowest, self.lowest_pfn)
        self.highest_pfn = highest if self.highest_pfn is None else max(highest, self.highest_pfn)
        self.nr_sent_again += self._seen.add(pfns)

    def add_pages(self, pages: WordPages) -> None:
        """Count pages that have come, an array of u64 of shape (n, 512)."""
        self.nr_data += len(pages)
        zero = zero_pages(pages)
        self.nr_zero += int(np.count_nonzero(zero))
        if self.page_digests is not None and self.contents.exact and not zero.all():
            others = pages if not zero.any() else pages[~zero]
            self.contents.add(self.page_digests(others.view(np.uint8)))

    def add_deltas(self, nr_pages: int, nr_zero: int) -> None:
        """Count pages that came as deltas, whose content cannot be told here, and those told to be zero."""
        self.nr_data += nr_pages
        self.nr_zero += nr_zero
