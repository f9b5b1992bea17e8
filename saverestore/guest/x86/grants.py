"""The two grants that a domain has from birth: its console and xenstore rings, for their backends."""

from __future__ import annotations

from pyxc import ForeignMemory
from pyxc.foreign import GrantTable
from saverestore.guest.ports import RestoredPages

# xen/public/grant_table.h, GNTTAB_RESERVED_*
CONSOLE_ENTRY = 0
STORE_ENTRY = 1

BACKEND_DOMID = 0


def seed_grant_table(memory: ForeignMemory, domid: int, pages: RestoredPages) -> None:
    """Let dom0's console and store daemons map the domain's rings by grant."""
    with memory.map_grant_table(domid) as table:
        entries = table.entries
        for index, gfn in ((CONSOLE_ENTRY, pages.console_gfn), (STORE_ENTRY, pages.store_gfn)):
            entries[index] = (GrantTable.PERMIT_ACCESS, BACKEND_DOMID, gfn)
