"""The last version sent of as many pages as a bound allows: what XOR codes against.

The one who restores needs nothing of the kind: it has every page's last version in the domain itself. So what is
kept here, and what is thrown out, is the sender's affair alone.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from saverestore.stream.layout import PAGE_SIZE, BoolArray, U64Array

NO_SLOT = -1
NEVER_USED = 0


class VersionCache:
    """Pages by pfn; those that were not touched for longest make room. May be used from any thread.

    In memory: `limit_bytes`, and for each pfn up to the highest one seen 4 bytes.
    """

    def __init__(self, limit_bytes: int) -> None:
        nr_slots = limit_bytes // PAGE_SIZE
        self._pages = np.empty((nr_slots, PAGE_SIZE), dtype=np.uint8)
        self._pfns = np.zeros(nr_slots, dtype=np.uint64)
        self._used_at: NDArray[np.int64] = np.full(nr_slots, NEVER_USED, dtype=np.int64)
        self._slots: NDArray[np.int32] = np.empty(0, dtype=np.int32)
        self._now = NEVER_USED
        self._lock = threading.Lock()

    def replace(self, pfns: U64Array, pages: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], BoolArray]:
        """Keep `pages`, shape (n, 4096), as the last versions of `pfns`, each of which occurs once.

        Returns the versions before, shape (k, 4096), in order, and which k of the pfns have one, shape (n,).
        """
        with self._lock:
            self._reach(pfns)
            self._now += 1
            slots = self._slots[pfns]
            known = slots != NO_SLOT
            bases = self._pages[slots[known]]
            self._used_at[slots[known]] = self._now
            fresh = self._make_room(len(pfns) - len(bases))
            newcomers = np.flatnonzero(~known)[: len(fresh)]
            slots[newcomers] = fresh
            self._slots[pfns[newcomers]] = fresh
            self._pfns[fresh] = pfns[newcomers]
            self._used_at[fresh] = self._now
            kept = slots != NO_SLOT
            self._pages[slots[kept]] = pages[kept]
            return bases, known

    def forget(self, pfns: U64Array) -> None:
        """Of these the one who restores has no version, or another one than was sent."""
        with self._lock:
            pfns = pfns[pfns < len(self._slots)]
            slots = self._slots[pfns]
            self._used_at[slots[slots != NO_SLOT]] = NEVER_USED
            self._slots[pfns] = NO_SLOT

    def nr_known(self, pfns: U64Array) -> int:
        """Of how many of these pfns there is a version."""
        with self._lock:
            return int(np.count_nonzero(self._slots[pfns[pfns < len(self._slots)]] != NO_SLOT))

    def _make_room(self, nr_wanted: int) -> NDArray[np.int64]:
        """So many slots, or as many as are not in use by this very call: those unused for longest."""
        free = int(np.count_nonzero(self._used_at < self._now))
        nr_wanted = min(nr_wanted, free)
        if nr_wanted == 0:
            return np.empty(0, dtype=np.int64)
        oldest = np.argpartition(self._used_at, nr_wanted - 1)[:nr_wanted]
        occupied = oldest[self._used_at[oldest] != NEVER_USED]
        self._slots[self._pfns[occupied]] = NO_SLOT
        return oldest

    def _reach(self, pfns: U64Array) -> None:
        highest = int(pfns.max(initial=0))
        if highest >= len(self._slots):
            # Twice as much each time, so that a growing domain costs no quadratic copying.
            grown = np.full(max(highest + 1, 2 * len(self._slots)), NO_SLOT, dtype=np.int32)
            grown[: len(self._slots)] = self._slots
            self._slots = grown
