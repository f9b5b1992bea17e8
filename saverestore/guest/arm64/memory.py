"""An arm64 domain's memory, mapped a bank at a time and kept so: a pass over it then costs a twentieth."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock

import numpy as np
import numpy.typing as npt

from pyxc import Mapping
from saverestore.guest.arm64.layout import PAGE_SIZE, Layout
from saverestore.guest.common.handles import Handles
from saverestore.guest.ports import U8, U64, Bool, PageBatch, runs_of
from saverestore.kernels.xxh3 import page_digests
from saverestore.stream.layout import PageType

CHUNK_PAGES = 1024


def gfns_of(layout: Layout) -> U64:
    """All gfns that may have memory, ascending."""
    return np.concatenate([np.arange(first, first + n, dtype=np.uint64) for first, n in layout.banks])


class KeptMemory:
    """Mappings of a domain's memory, made when first asked for. Any thread.

    A frame that the guest gives back and takes again has another page behind it; a mapping goes on showing the old
    one. So while the guest runs what is read here is a guess, and once it has stopped all has to be mapped anew:
    `drop`, after which everything read is true.
    """

    def __init__(self, handles: Handles, domid: int, layout: Layout) -> None:
        self._handles = handles
        self._domid = domid
        self._layout = layout
        self._lock = Lock()
        self._chunks: dict[int, Mapping] = {}

    def chunks(self) -> Iterator[tuple[int, Mapping]]:
        """All of memory: (first gfn, mapping), ascending."""
        for first, pages in self._layout.banks:
            for at in range(first, first + pages, CHUNK_PAGES):
                yield at, self._chunk(at, min(CHUNK_PAGES, first + pages - at))

    def gfns(self) -> U64:
        """All gfns that may have memory, ascending."""
        return gfns_of(self._layout)

    def read(self, gfns: U64) -> PageBatch:
        """Pages of these gfns, sorted; holes are XTAB. The buffers stay mapped when the batch is closed."""
        types = np.full(len(gfns), PageType.XTAB, dtype=np.uint8)
        buffers: list[memoryview] = []
        for first, pages in self._layout.banks:
            start, stop = np.searchsorted(gfns, [first, first + pages])
            if stop > start:
                types[start:stop] = self._read_bank(gfns[start:stop], first, pages, buffers)
        return PageBatch(gfns, types, buffers)

    def _read_bank(self, gfns: U64, first: int, pages: int, buffers: list[memoryview]) -> U8:
        types = np.full(len(gfns), PageType.XTAB, dtype=np.uint8)
        of_chunk = (gfns - np.uint64(first)) // np.uint64(CHUNK_PAGES)
        for start, stop in runs_of(of_chunk.astype(np.int64)):
            base = first + int(of_chunk[start]) * CHUNK_PAGES
            mapping = self._chunk(base, min(CHUNK_PAGES, first + pages - base))
            inside = (gfns[start:stop] - np.uint64(base)).astype(np.intp)
            there: Bool = mapping.errors[inside] == 0
            types[start:stop][there] = PageType.NOTAB
            wanted = inside[there]
            whole = mapping.buffer
            for low, high in consecutive(wanted):
                buffers.append(whole[low * PAGE_SIZE : high * PAGE_SIZE])
        return types

    def _chunk(self, base: int, pages: int) -> Mapping:
        with self._lock:
            mapping = self._chunks.get(base)
            if mapping is None:
                gfns = np.arange(base, base + pages, dtype=np.uint64)
                mapping = self._handles.memory.map(self._domid, gfns, partial=True)
                self._chunks[base] = mapping
            return mapping

    def drop(self) -> None:
        """Unmap everything; what is asked for next is mapped anew. No batch may be in use."""
        with self._lock:
            while self._chunks:
                self._chunks.popitem()[1].close()


def consecutive(indices: npt.NDArray[np.integer]) -> list[tuple[int, int]]:
    """Start and stop of each run of consecutive numbers, ascending."""
    if not len(indices):
        return []
    cuts = np.flatnonzero(np.diff(indices) != 1) + 1
    starts = indices[np.concatenate([[0], cuts])]
    ends = indices[np.concatenate([cuts - 1, [len(indices) - 1]])] + 1
    return [(int(start), int(end)) for start, end in zip(starts, ends, strict=True)]


def digests_of(memory: KeptMemory) -> U64:
    """XXH3-128 of each page of memory, shape (n, 2), in order of gfns; zero for holes."""
    found = []
    for _, mapping in memory.chunks():
        there = mapping.errors == 0
        digests = np.zeros((mapping.nr_pages, 2), dtype=np.uint64)
        if there.all():
            digests[:] = page_digests(np.ascontiguousarray(mapping.pages))
        elif there.any():
            digests[there] = page_digests(np.ascontiguousarray(mapping.pages[there]))
        found.append(digests)
    return np.concatenate(found)
