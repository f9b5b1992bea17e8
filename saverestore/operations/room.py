"""How much room an image will take: told beforehand from a sample of the domain's memory.

    populated pfns   ├──■──────────■──────────■──────────■──────────■──┤   pieces, evenly spread
    each piece       read at once; zero pages, and what the compressor makes of the others

Of each piece: bytes stored for a page. Their mean tells how large the image will be, and how far they differ tells
how sure that is. The domain runs meanwhile.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from saverestore.engine.policy import ROOM_TO_SPARE
from saverestore.guest.ports import U8, U64, Bool, SaveGuest, runs_of
from saverestore.kernels.zeros import SMALLEST_RUN
from saverestore.stream.codecs import Coding, compress
from saverestore.stream.layout import ENTRY_BYTES, PAGE_SIZE, has_memory

PIECES = 128
PIECE_PFNS = 128
SAMPLE_S = 1.0
"""No more pieces are taken after this time, if they tell enough: high levels of compression are slow."""
UNSURE_SAMPLE_S = 5.0
"""Nor after this, whatever they tell."""
ENOUGH = 0.2
"""They tell enough when the image turns out larger or smaller by no more than this part."""
LEAST_PIECES = 8

ASKED_PFNS = 1 << 16
SURE = 2.0
"""Standard errors: the image turns out beyond that once in twenty times."""

SMALLEST_HOLE_PAGES = SMALLEST_RUN // PAGE_SIZE + 1
"""Of a run of zero pages that becomes a hole; one page of it lies in blocks that are written."""


@dataclass(frozen=True)
class Estimate:
    """Bytes that an image takes where it is stored, if each page is in it once; `most` if nothing became smaller."""

    least: int
    likely: int
    most: int


@dataclass(frozen=True)
class Storing:
    """What becomes of pages on their way. `holes`: zero pages take no room in a plain image.

    `compress`: a level of zstd for all of it, or None; `coding`: of an image of draft-b, or None.
    """

    holes: bool
    compress: int | None = None
    coding: Coding | None = None

    @property
    def shrinks(self) -> bool:
        """Whether an image may be smaller than the domain's memory."""
        return self.holes or self.compress is not None or self.coding is not None

    def sizer(self) -> Callable[[U8, Bool], int]:
        """What tells how many bytes these pages take, of which some are all zero."""
        squeeze = None
        if self.compress is not None:
            from saverestore.transport.zstd_sink import compressor

            squeeze = compressor(self.compress).compress

        def size_of(pages: U8, zero: Bool) -> int:
            if self.coding is not None:
                data = np.ascontiguousarray(pages[~zero]).reshape(-1).data
                coded: bytes | memoryview = data
                if self.coding.compresses and len(data):
                    coded = compress(self.coding, data)
                return min(len(data), len(coded) if squeeze is None else len(squeeze(coded)))
            if squeeze is not None:
                return len(squeeze(pages.reshape(-1).data))
            return pages.nbytes - (_hole_pages(zero) * PAGE_SIZE if self.holes else 0)

        return size_of


def full_size(guest: SaveGuest) -> int:
    """Bytes of an image in which each page is once, as it is, with what else there is in one."""
    return guest.populated_pages * (PAGE_SIZE + ENTRY_BYTES) + ROOM_TO_SPARE


def estimate(guest: SaveGuest, storing: Storing, *, clock: Callable[[], float] = time.monotonic) -> Estimate:
    """Look at some of the domain's memory. It is read, and runs on. Errors are those of reading it."""
    most = full_size(guest)
    if not storing.shrinks:
        return Estimate(most, most, most)
    size_of, begun = storing.sizer(), clock()
    stored, pages = list[int](), list[int]()
    for pfns in _spread(_populated(guest)):
        if len(pages) >= LEAST_PIECES and (taken := clock() - begun) > SAMPLE_S:
            of_page, error = _mean(stored, pages)
            if taken > UNSURE_SAMPLE_S or SURE * error <= ENOUGH * of_page:
                break
        with guest.read_pages(pfns, final=False) as batch:
            if not batch.nr_data:
                continue
            copy = np.empty((batch.nr_data, PAGE_SIZE), dtype=np.uint8)
            zero = np.zeros(batch.nr_data, dtype=bool)
            batch.copy_data(copy, zero)
        stored.append(size_of(copy, zero))
        pages.append(len(copy))
    if not pages:
        return Estimate(most, most, most)
    fixed = guest.populated_pages * ENTRY_BYTES + ROOM_TO_SPARE
    of_page, error = _mean(stored, pages)
    error *= math.sqrt(max(0.0, 1 - sum(pages) / guest.populated_pages))  # what was looked at is known
    likely, margin = of_page * guest.populated_pages, SURE * error * guest.populated_pages
    return Estimate(
        min(most, int(max(0.0, likely - margin)) + fixed),
        min(most, int(likely) + fixed),
        min(most, int(likely + margin) + fixed),
    )


def _mean(stored: Sequence[int], pages: Sequence[int]) -> tuple[float, float]:
    """Bytes for a page, and the standard error of that: of a ratio, as pieces have different numbers of pages."""
    ratio = sum(stored) / sum(pages)
    if len(pages) < 2:
        return ratio, ratio
    squares = sum((one - ratio * number) ** 2 for one, number in zip(stored, pages, strict=True))
    number = len(pages)
    return ratio, math.sqrt(squares / (number * (number - 1))) / (sum(pages) / number)


def _populated(guest: SaveGuest) -> U64:
    """The pfns that have memory, where that can be told without reading; else all."""
    found = []
    for start in range(0, guest.nr_pfns, ASKED_PFNS):
        pfns = np.arange(start, min(start + ASKED_PFNS, guest.nr_pfns), dtype=np.uint64)
        types = guest.types_of(pfns)
        found.append(pfns if types is None else pfns[has_memory(types)])
    return np.concatenate(found) if found else np.empty(0, dtype=np.uint64)


def _spread(pfns: U64) -> Iterator[U64]:
    """Pieces of them, evenly spread, in an order in which the first few are spread as well."""
    number = min(PIECES, -(-len(pfns) // PIECE_PFNS))
    for at in sorted(range(number), key=_reversed):
        start = at * len(pfns) // number
        yield pfns[start : start + min(PIECE_PFNS, -(-len(pfns) // number))]


def _reversed(number: int) -> int:
    """Its bits from the other end: 0, 4, 2, 6, 1 … for 0, 1, 2, 3, 4 …"""
    return int(f"{number:0{PIECES.bit_length() - 1}b}"[::-1], 2)


def _hole_pages(zero: Bool) -> int:
    """How many pages of these leave room in a file: of each long run of zero pages all but one."""
    runs = [stop - start for start, stop in runs_of(zero.astype(np.int8)) if zero[start]]
    return sum(length - 1 for length in runs if length >= SMALLEST_HOLE_PAGES)
