"""Views of a `MemoryDomain`'s memory, as the ports hand them out: counted, so that a leak is seen."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from saverestore.guest.ports import U8, U64, Bool
from saverestore.kernels.copying import copy_pages, gather_pages
from saverestore.stream.layout import PAGE_SIZE
from saverestore.testing.domain import MemoryDomain


class Buffers:
    """Views that are handed out and taken back; how many are out is known to the guest."""

    def __init__(self) -> None:
        self.nr_open = 0
        self._lock = threading.Lock()

    def opened(self) -> None:
        """Some were handed out."""
        with self._lock:
            self.nr_open += 1

    def closed(self, views: Sequence[memoryview]) -> None:
        """These came back: whoever still uses one fails."""
        for view in views:
            view.release()
        with self._lock:
            self.nr_open -= 1


def runs(memory: memoryview, frames: U64, staged: memoryview, is_staged: Bool) -> list[memoryview]:
    """A view for each run of pages that follow one another, in `memory` by frame or in `staged` by rank."""
    if not len(frames):
        return []
    rank = (np.cumsum(is_staged) - 1).astype(np.int64)
    # Below any frame, and so that the last of them does not seem to precede frame 0.
    where = np.where(is_staged, rank - 2 * len(frames), frames.astype(np.int64))
    starts = np.flatnonzero(np.diff(where, prepend=where[0] - 2) != 1)
    stops = np.append(starts[1:], len(where))
    views = []
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        source = staged if is_staged[start] else memory
        at = int(rank[start] if is_staged[start] else frames[start]) * PAGE_SIZE
        views.append(source[at : at + (stop - start) * PAGE_SIZE])
    return views


def copy_frames(domain: MemoryDomain, frames: U64, out: U8, zero: Bool) -> None:
    """Copy these frames into `out`: at once where they follow one another. `zero`: see `copy_pages`."""
    if len(frames) and int(frames[-1]) - int(frames[0]) == len(frames) - 1 and (np.diff(frames) == 1).all():
        copy_pages(out, domain.frames[int(frames[0]) : int(frames[-1]) + 1], zero)
    else:
        gather_pages(out, domain.frames, frames, zero)
