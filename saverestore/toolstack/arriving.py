"""Paused domains that a person must not unpause: one that is being filled, or whose restore was killed, and one that
another host may run."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from pyxc import XenStore
from saverestore.errors import Advice, Remedy
from saverestore.toolstack import lock, moving
from saverestore.toolstack.userdata import userdata_path


@dataclass(frozen=True)
class Arriving:
    """Why it must not. `what`: to follow its name in a sentence; `remedies`: what helps instead."""

    what: str
    remedies: tuple[Advice, ...] = ()


def look(store: XenStore, domid: int, domain_uuid: uuid.UUID) -> Arriving | None:
    """What is arriving here of a domain that was found paused; None when it is here for good. XenError.

    A restore of ours holds the lock of its UUID until it is complete. What a migration brings, by xl or by us, is
    called `NAME--incoming` until this host may run it. Of one that libxl or the bare toolstack has begun to make,
    there is a record when it is complete.
    """
    if (process := lock.restored_by(domain_uuid)) is not None:
        return Arriving(f"is being restored by process {process}")
    name = store.read(f"/local/domain/{domid}/name") or ""
    if not name.endswith(moving.INCOMING):
        if store.read(f"/libxl/{domid}/type") is not None and not userdata_path(domid, domain_uuid).exists():
            return Arriving(
                "is incomplete: a program still creates or restores it, or was killed while it did",
                (Advice(Remedy.DESTROY_IF_ABANDONED, domid),),
            )
        return None
    own_name = name.removesuffix(moving.INCOMING)
    # Of one that xl has brought there is no journal here.
    is_ours = moving.brought_by(store, domid) is not None
    remedy = Remedy.RECOVER_MIGRATION if is_ours else Remedy.LOOK_FOR_OUTGOING
    return Arriving("comes from another host, which may still run it", (Advice(remedy, own_name),))
