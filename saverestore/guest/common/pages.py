"""Batches of a real domain's pages, mapped: out of it and into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pyxc import Mapping, XenError
from saverestore.errors import DomainError, ErrorName
from saverestore.guest.common.handles import Handles
from saverestore.guest.ports import U8, U64, Bool, PageBatch, gather_runs

SLACK_KIB = 1024
"""More than its target that a domain may have, as libxl allows (LIBXL_MAXMEM_CONSTANT)."""

NO_PFNS: U64 = np.empty(0, dtype=np.uint64)
NO_PFNS.setflags(write=False)


class MappedBatch(PageBatch):
    """Pages in a domain's own memory; those with a private copy (`staged`) are taken from there.

    Of what is mapped, pages that are `lost` are left out. Both not told: none.
    """

    def __init__(
        self,
        pfns: U64,
        types: U8,
        mapping: Mapping,
        *,
        staged: U8 | None = None,
        is_staged: Bool | None = None,
        lost: Bool | None = None,
        deferred: U64 = NO_PFNS,
    ) -> None:
        self._mapping: Mapping | None = mapping
        if is_staged is None and lost is None:
            pages = [mapping.buffer]
        else:
            none = np.zeros(mapping.nr_pages, dtype=bool)
            pages = gather_runs(
                mapping.buffer,
                memoryview(b"") if staged is None else staged.reshape(-1).data,
                none if is_staged is None else is_staged,
                none if lost is None else lost,
            )
        super().__init__(pfns, types, pages, deferred)

    @staticmethod
    def without_data(pfns: U64, types: U8, deferred: U64 = NO_PFNS) -> PageBatch:
        """A batch in which no pfn has data."""
        return PageBatch(pfns, types, [], deferred)

    def close(self) -> None:
        """Unmap."""
        self.pages = []
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None


def map_for_save(
    handles: Handles, domid: int, frames: U64, pfns: U64, *, final: bool
) -> tuple[Mapping | None, Bool]:
    """Map frames read-only, in order: (mapping or None when there are none, which could not be mapped).

    A page may be ballooned out between the question for its type and now. The domain being suspended
    (`final`), that cannot be: DomainError with the pfn.
    """
    if not len(frames):
        return None, np.zeros(0, dtype=bool)
    # While it runs, a PV guest may want to exchange a frame, which Xen refuses when it is mapped elsewhere.
    mapping = handles.memory.map(domid, frames, partial=True, may_linger=final)
    lost = mapping.errors != 0
    if final and lost.any():
        first = int(np.flatnonzero(lost)[0])
        error = XenError("xenforeignmemory_map", abs(int(mapping.errors[first])), domid=domid)
        mapping.close()
        raise DomainError(
            f"domain {domid}: pfn {int(pfns[first]):#x} cannot be mapped: {error}",
            name=ErrorName.DOMAIN_UNREADABLE,
        )
    return mapping, lost


class Populated:
    """Which pfns of a domain being restored have been given memory."""

    def __init__(self) -> None:
        self._has_memory = np.zeros(0, dtype=bool)

    def take_new(self, pfns: U64) -> U64:
        """Those of `pfns` (each once) that have no memory yet, in order; from now on they count as having."""
        if not len(pfns):
            return pfns
        lowest, highest = int(pfns.min()), int(pfns.max())
        if highest >= len(self._has_memory):
            # Twice as much each time, so that a growing domain costs no quadratic copying.
            grown = np.zeros(max(highest + 1, 2 * len(self._has_memory)), dtype=bool)
            grown[: len(self._has_memory)] = self._has_memory
            self._has_memory = grown
        if highest - lowest + 1 == len(pfns):  # all that lie between these two, as in most batches
            between = self._has_memory[lowest : highest + 1]
            if not between.any():
                between[:] = True
                return pfns
        new = pfns[~self._has_memory[pfns]]
        self._has_memory[new] = True
        return new

    def take_gone(self, pfns: U64) -> U64:
        """Those of `pfns` that have memory; from now on they count as having none."""
        if not len(pfns):
            return pfns
        known = pfns[pfns < len(self._has_memory)]
        gone = known[self._has_memory[known]]
        self._has_memory[gone] = False
        return gone

    def pfns(self) -> U64:
        """All that have memory, ascending."""
        return np.flatnonzero(self._has_memory).astype(np.uint64)


class MappedWindow:
    """Pages of a domain, mapped writable, to be read into. See PageWindow.

    `staged` pages are read into a private copy instead; `finish` gets the whole mapping once all is there.
    """

    def __init__(
        self,
        mapping: Mapping | None,
        *,
        staged: U8 | None = None,
        is_staged: Bool | None = None,
        finish: Callable[[Mapping], None] | None = None,
    ) -> None:
        self._mapping = mapping
        self._finish = finish
        self.buffers: Sequence[memoryview] = []
        if mapping is None:
            return
        if staged is None or is_staged is None:
            self.buffers = [mapping.buffer]
        else:
            none_lost = np.zeros(len(is_staged), dtype=bool)
            copies = staged.reshape(-1).data
            self.buffers = gather_runs(mapping.buffer, copies, is_staged, none_lost)

    def commit(self) -> None:
        """Bring staged pages into the domain's form and copy them in."""
        if self._mapping is not None and self._finish is not None:
            self._finish(self._mapping)

    def close(self) -> None:
        """Unmap. Twice is fine."""
        self.buffers = []
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None
