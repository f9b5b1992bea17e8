"""Notes in xenstore on domains that move between hosts.

At the source: that a domain moves. Until it is settled, nothing else may resume it. At the destination: which
migration has brought a domain, for as long as there is that domain. So a migration that is settled late does not take
one of the same name and UUID, which has come by another way, for its own.
"""

from __future__ import annotations

from pyxc import XenStore
from saverestore.guest.common.transactions import write_below

INCOMING = "--incoming"
"""What follows a domain's name at the destination until it is committed: as `xl migrate` calls it."""


MOVING, BROUGHT_BY = "pysave/moving", "pysave/brought-by"
"""Below a domain's node: they go with it."""


def note(store: XenStore, domid: int, migration: str) -> None:
    """It moves, by this migration. Nothing when it is gone."""
    write_below(store, domid, MOVING, migration)


def noted(store: XenStore, domid: int) -> str | None:
    """The migration by which it moves, or None."""
    return store.read(f"/local/domain/{domid}/{MOVING}") or None


def forget(store: XenStore, domid: int) -> None:
    """It does not move any more. Twice is fine."""
    store.remove(f"/local/domain/{domid}/{MOVING}")


def note_brought(store: XenStore, domid: int, migration: str) -> None:
    """This migration has brought it here. Nothing when it is gone."""
    write_below(store, domid, BROUGHT_BY, migration)


def brought_by(store: XenStore, domid: int) -> str | None:
    """The migration that has brought it here, or None."""
    return store.read(f"/local/domain/{domid}/{BROUGHT_BY}") or None
