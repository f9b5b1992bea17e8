"""Notes in xenstore on domains that move between hosts.

At the source: that a domain moves. Until it is settled, nothing else may resume it. At the destination: which
migration has brought a domain, for as long as there is that domain. So a migration that is settled late does not take
one of the same name and UUID, which has come by another way, for its own.
"""

from __future__ import annotations

from pyxc import XenStore

INCOMING = "--incoming"
"""What follows a domain's name at the destination until it is committed: as `xl migrate` calls it."""


def _path(domid: int) -> str:
    return f"/local/domain/{domid}/pysave/moving"


def _brought_path(domid: int) -> str:
    return f"/local/domain/{domid}/pysave/brought-by"


def note(store: XenStore, domid: int, migration: str) -> None:
    """It moves, by this migration."""
    store.write(_path(domid), migration)


def noted(store: XenStore, domid: int) -> str | None:
    """The migration by which it moves, or None."""
    return store.read(_path(domid)) or None


def forget(store: XenStore, domid: int) -> None:
    """It does not move any more. Twice is fine."""
    store.remove(_path(domid))


def note_brought(store: XenStore, domid: int, migration: str) -> None:
    """This migration has brought it here."""
    store.write(_brought_path(domid), migration)


def brought_by(store: XenStore, domid: int) -> str | None:
    """The migration that has brought it here, or None."""
    return store.read(_brought_path(domid)) or None
