"""The two grants that a domain has from birth: its console and xenstore rings, for their backends."""

from __future__ import annotations

from pyxc import ForeignMemory
from pyxc.foreign import GrantTable
from saverestore.guest.ports import Channels, RestoredPages

# xen/public/grant_table.h, GNTTAB_RESERVED_*
CONSOLE_ENTRY = 0
STORE_ENTRY = 1


def seed_grant_table(memory: ForeignMemory, domid: int, pages: RestoredPages, channels: Channels) -> None:
    """Let the console and store daemons map the domain's rings by grant."""
    with memory.map_grant_table(domid) as table:
        entries = table.entries
        entries[CONSOLE_ENTRY] = (GrantTable.PERMIT_ACCESS, channels.console_domid, pages.console_gfn)
        entries[STORE_ENTRY] = (GrantTable.PERMIT_ACCESS, channels.store_domid, pages.store_gfn)
