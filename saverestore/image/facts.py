"""What each page is and how well it compresses: one pass over an image, some bytes a page kept."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import zstandard
from numpy.typing import NDArray

from saverestore.image.index import ImageIndex, Progress, types_of_places, with_data
from saverestore.image.pages import Pages, batches_of
from saverestore.kernels.zero_pages import zero_pages
from saverestore.stream.layout import PAGE_SIZE, PageType, U64Array
from saverestore.transport.random_access import RandomAccess

U8 = NDArray[np.uint8]

BLOCK_PAGES = 16
"""Pages that are compressed together. Page by page the ratio is worse, and says less of an image, which is written
in batches; with larger blocks the picture would be coarser than its cells."""

LEVEL = 1
PACKED_MAX = 255


class Kind(IntEnum):
    """What a page is, as a picture tells it; ordinary pages are ZERO, DUPLICATE or DATA."""

    NOT_THERE = 0
    ALLOCATE_ONLY = 1
    BROKEN = 2
    ZERO = 3
    DUPLICATE = 4
    DATA = 5
    L1 = 6
    L2 = 7
    L3 = 8
    L4 = 9
    L1_PINNED = 10
    L2_PINNED = 11
    L3_PINNED = 12
    L4_PINNED = 13


KIND_OF_TYPE: U8 = np.full(16, Kind.DATA, dtype=np.uint8)
for _type, _kind in {
    PageType.L1TAB: Kind.L1,
    PageType.L2TAB: Kind.L2,
    PageType.L3TAB: Kind.L3,
    PageType.L4TAB: Kind.L4,
    PageType.L1TAB_PINNED: Kind.L1_PINNED,
    PageType.L2TAB_PINNED: Kind.L2_PINNED,
    PageType.L3TAB_PINNED: Kind.L3_PINNED,
    PageType.L4TAB_PINNED: Kind.L4_PINNED,
    PageType.BROKEN: Kind.BROKEN,
    PageType.XALLOC: Kind.ALLOCATE_ONLY,
    PageType.XTAB: Kind.NOT_THERE,
}.items():
    KIND_OF_TYPE[_type] = _kind


@dataclass(frozen=True)
class Facts:
    """By page, in the order of `pfns`, which rise: `kinds`, and `packed`, the size when compressed (255: 4096 bytes).

    `packed_bytes`: what all pages with data take when compressed so; pages of zeroes take nothing.
    """

    pfns: U64Array
    kinds: U8
    packed: U8
    packed_bytes: int


def gather(access: RandomAccess, index: ImageIndex, on_progress: Progress | None = None) -> Facts:
    """Read all pages once. Kept: some 20 bytes a page."""
    chunks = list(index.pages.chunks())
    pfns = np.concatenate([np.empty(0, dtype=np.uint64), *(pfns for pfns, _ in chunks)])
    places = np.concatenate([np.empty(0, dtype=np.uint64), *(places for _, places in chunks)])
    kinds = KIND_OF_TYPE[types_of_places(places).astype(np.uint8)]
    there = with_data(places)
    del chunks, places
    packed = np.zeros(len(pfns), dtype=np.uint8)
    digests = np.zeros(len(pfns), dtype=np.uint64)
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    packed_bytes = 0
    for batch in batches_of(access, index.pages, on_progress):
        at = np.searchsorted(pfns, batch.pfns)
        has_content = ~zero_pages(batch.pages.view(np.uint64))
        zero = at[~has_content]
        kinds[zero[kinds[zero] == Kind.DATA]] = Kind.ZERO
        sizes, total = _compressed(compressor, batch.pages[has_content])
        packed[at[has_content]] = sizes
        packed_bytes += total
        digests[at] = page_hashes(batch.pages)
    _mark_duplicates(kinds, digests, there)
    return Facts(pfns, kinds, packed, packed_bytes)


def _compressed(compressor: zstandard.ZstdCompressor, pages: Pages) -> tuple[U8, int]:
    """For each page the share of its block that is left, 0 to 255; and the bytes of all blocks."""
    sizes = np.empty(len(pages), dtype=np.uint8)
    total = 0
    for begin in range(0, len(pages), BLOCK_PAGES):
        block = pages[begin : begin + BLOCK_PAGES]
        length = min(len(compressor.compress(block.data)), block.nbytes)
        sizes[begin : begin + BLOCK_PAGES] = -(-length * PACKED_MAX // block.nbytes)
        total += length
    return sizes, total


_RANDOM = np.random.default_rng(0x5EED)
_FACTORS: U64Array = _RANDOM.integers(1, 1 << 63, (2, PAGE_SIZE // 8), dtype=np.uint64) | np.uint64(1)


def page_hashes(pages: Pages) -> U64Array:
    """A number for each page, the same for the same content: two sums of its words with random factors.

    For telling which pages are alike in a picture; a chance of 2^-33 that two others seem so is good enough. The
    second sum is of the words with their halves swapped, as a product loses what differs in high bits only.
    """
    words = np.ascontiguousarray(pages).view(np.uint64)
    swapped = (words << np.uint64(32)) | (words >> np.uint64(32))
    hashes: U64Array = (words @ _FACTORS[0]) ^ ((swapped @ _FACTORS[1]) * np.uint64(0x9E3779B97F4A7C15))
    return hashes


def _mark_duplicates(kinds: U8, digests: U64Array, there: NDArray[np.bool_]) -> None:
    """Ordinary pages with the content of another page, of whatever kind."""
    at = np.flatnonzero(there)
    order = at[np.argsort(digests[at], kind="stable")]
    same = digests[order[1:]] == digests[order[:-1]]
    twice = order[np.append(same, False) | np.append(False, same)] if len(order) else order
    kinds[twice[kinds[twice] == Kind.DATA]] = Kind.DUPLICATE
