"""How much memory a domain may have while it is filled: as much as its image holds.

A guest that did not give memory back when it was asked to has more than its target, and whoever creates a domain
bounds it by that. So the bound is raised as pages come, and put back when all are there: Xen takes no memory away
from a domain that has more, and the guest is asked again by its target.
"""

from __future__ import annotations

from pyxc import DomainInfo, Xen

STEP_PAGES = 1 << 14
"""By how much more than is needed it is raised: a call for each batch would be one too many."""

KIB_A_PAGE = 4


class MemoryLimit:
    """Of one domain that is being filled by this process alone."""

    def __init__(self, xen: Xen, info: DomainInfo) -> None:
        self._xen = xen
        self._domid = info.domid
        self._allowed = self._limit = info.max_pages
        self._held = info.tot_pages

    def make_room(self, nr_pages: int) -> None:
        """It is about to be given so many more."""
        self._held += nr_pages
        if self._held > self._limit:
            self._limit = self._held + STEP_PAGES
            self._xen.set_max_memory(self._domid, self._limit * KIB_A_PAGE)

    def taken_away(self, nr_pages: int) -> None:
        """It has so many fewer now."""
        self._held -= nr_pages

    def put_back(self) -> None:
        """All are there: it may have what it could at first. Twice is fine."""
        if self._limit != self._allowed:
            self._limit = self._allowed
            self._xen.set_max_memory(self._domid, self._allowed * KIB_A_PAGE)
