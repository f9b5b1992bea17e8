"""The pages that an index names, in batches; those that lie together are read together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from saverestore.errors import ErrorName, UsageError
from saverestore.image.index import ImageIndex, Progress, offsets_of_places, types_of_places, with_data
from saverestore.image.pagemap import PageMap
from saverestore.stream.layout import PAGE_SIZE, BoolArray, PageType, U64Array
from saverestore.transport.random_access import RandomAccess

BATCH_PAGES = 1024
"""Pages that are in memory at a time: 4 MiB, as many as a PAGE_DATA record of Xen has."""

Pages = NDArray[np.uint8]


@dataclass(frozen=True)
class Batch:
    """Pages, shape (n, 4096), with their pfns and types. Where `there` is false, the image has no data: zeroes."""

    pfns: U64Array
    types: U64Array
    there: BoolArray
    pages: Pages


def read_pages(access: RandomAccess, offsets: U64Array) -> Pages:
    """The pages at these offsets (not 0), in their order: shape (n, 4096), perhaps read-only. The caller bounds n."""
    order = np.argsort(offsets, kind="stable")
    ranked = offsets[order]
    spans = spans_of(ranked, PAGE_SIZE)
    if len(spans) == 1 and (offsets[1:] > offsets[:-1]).all():  # the usual case: nothing to be moved
        return _as_pages(access.read_at(int(offsets[0]), len(offsets) * PAGE_SIZE))
    pages: Pages = np.empty((len(offsets), PAGE_SIZE), dtype=np.uint8)
    for begin, end in spans:
        pages[order[begin:end]] = _as_pages(access.read_at(int(ranked[begin]), (end - begin) * PAGE_SIZE))
    return pages


def _as_pages(data: bytes) -> Pages:
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, PAGE_SIZE)


def batches_of(access: RandomAccess, pages: PageMap, on_progress: Progress | None = None) -> Iterator[Batch]:
    """All pages that have data, each once, in batches of at most 1024.

    Order: rising through memory in steps of 128 MiB, in each of them as they lie in the image, which is how they are
    read fastest. `on_progress(done_bytes)` counts the pages.
    """
    done = 0
    for pfns, places in pages.chunks():
        there = with_data(places)
        pfns, places = pfns[there], places[there]
        order = np.argsort(offsets_of_places(places), kind="stable")
        for begin in range(0, len(order), BATCH_PAGES):
            part = order[begin : begin + BATCH_PAGES]
            yield _batch(access, pfns[part], places[part])
            done += len(part)
            if on_progress is not None:
                on_progress(done * PAGE_SIZE)


def check_range(index: ImageIndex, first: int, last: int) -> None:
    """UsageError when the image has none of the pages `first` to `last`, or `last` is above all that it has."""
    pfns = pfns_with_data(index.pages)
    highest = int(pfns[-1]) if len(pfns) else -1
    if highest < 0:
        raise UsageError(f"{index.name} has no pages", name=ErrorName.PAGE_NOT_IN_IMAGE)
    if last > highest:
        raise UsageError(
            f"{index.name}: no pfn {last:#x}: the last page is that of pfn {highest:#x}",
            name=ErrorName.PAGE_NOT_IN_IMAGE,
        )
    if np.searchsorted(pfns, first) == np.searchsorted(pfns, last, side="right"):
        kind = int(types_of_places(index.pages.get(np.array([first], dtype=np.uint64)))[0])
        what = f": it is {PageType(kind).name}" if first == last and kind else ""
        raise UsageError(
            f"{index.name}: no page of pfn {first:#x} to {last:#x} is in the image{what}",
            name=ErrorName.PAGE_NOT_IN_IMAGE,
        )


def pages_from(access: RandomAccess, pages: PageMap, first: int, last: int) -> Iterator[Batch]:
    """The pages `first` to `last`, there or not, in order of their pfns and in batches of at most 1024."""
    for begin in range(first, last + 1, BATCH_PAGES):
        pfns = np.arange(begin, min(begin + BATCH_PAGES, last + 1), dtype=np.uint64)
        yield _batch(access, pfns, pages.get(pfns))


def _batch(access: RandomAccess, pfns: U64Array, places: U64Array) -> Batch:
    there = with_data(places)
    types = np.where(places == 0, np.uint64(PageType.XTAB), types_of_places(places))
    if there.all():
        return Batch(pfns, types, there, read_pages(access, offsets_of_places(places)))
    pages = np.zeros((len(pfns), PAGE_SIZE), dtype=np.uint8)
    pages[there] = read_pages(access, offsets_of_places(places[there]))
    return Batch(pfns, types, there, pages)


def count_with_data(pages: PageMap) -> int:
    """How many pages have data."""
    return sum(int(np.count_nonzero(with_data(places))) for _, places in pages.chunks())


def pfns_with_data(pages: PageMap) -> U64Array:
    """Their pfns, rising."""
    parts = [pfns[with_data(places)] for pfns, places in pages.chunks()]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)


def spans_of(ranked: U64Array, step: int) -> list[tuple[int, int]]:
    """Spans of rising numbers in which each is `step` above the one before: first index, and that behind the last."""
    breaks = np.flatnonzero(np.diff(ranked) != step) + 1
    return list(pairwise([0, *breaks.tolist(), len(ranked)])) if len(ranked) else []


def runs_of(pfns: U64Array) -> U64Array:
    """Rising pfns as runs without a gap: shape (n, 2), the first and the last pfn of each."""
    breaks = np.flatnonzero(np.diff(pfns) != 1)
    firsts, lasts = np.append(pfns[:1], pfns[breaks + 1]), np.append(pfns[breaks], pfns[-1:])
    return np.stack([firsts, lasts], axis=1)
