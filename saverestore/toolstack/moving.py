"""A note in xenstore that a domain moves to another host: until it is settled, nothing else may resume it."""

from __future__ import annotations

from pyxc import XenStore


def _path(domid: int) -> str:
    return f"/local/domain/{domid}/pysave/moving"


def note(store: XenStore, domid: int, migration: str) -> None:
    """It moves, by this migration."""
    store.write(_path(domid), migration)


def noted(store: XenStore, domid: int) -> str | None:
    """The migration by which it moves, or None."""
    return store.read(_path(domid)) or None


def forget(store: XenStore, domid: int) -> None:
    """It does not move any more. Twice is fine."""
    store.remove(_path(domid))
