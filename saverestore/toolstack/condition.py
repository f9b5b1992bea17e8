"""What a domain is now: looked up, never assumed. What errors, reports and remedies say of it comes from here."""

from __future__ import annotations

import contextlib
import errno
import uuid
from dataclasses import dataclass
from enum import Enum, auto

from pyxc.control import ShutdownReason
from saverestore.errors import Advice, Remedy
from saverestore.guest.common.handles import Handles, XenError
from saverestore.guest.common.suspend import how_it_stopped
from saverestore.toolstack import arriving


class Condition(Enum):
    """What a domain can be found as."""

    RUNNING = auto()
    PAUSED = auto()
    SUSPENDED = auto()
    CRASHED = auto()
    STOPPED = auto()
    DYING = auto()
    GONE = auto()
    UNKNOWN = auto()


@dataclass(frozen=True)
class Found:
    """One domain now. `what`: to follow its name in a sentence; `remedies`: those that help it as it is."""

    condition: Condition
    what: str
    remedies: tuple[Advice, ...] = ()


def look_up(handles: Handles, domid: int, domain_uuid: uuid.UUID) -> Found:
    """What this domain is. Never raises XenError: what cannot be looked up is unknown."""
    try:
        info = handles.xen.domain(domid)
        if info.uuid != domain_uuid:  # the number has been given to another
            return _gone(handles, domid, domain_uuid)
    except XenError as error:
        if error.errno == errno.ESRCH:
            return _gone(handles, domid, domain_uuid)
        return Found(Condition.UNKNOWN, f"cannot be looked up ({error})", (Advice(Remedy.LIST_DOMAINS),))
    if info.dying:
        return Found(Condition.DYING, "is being destroyed")
    if info.suspended:
        return Found(Condition.SUSPENDED, "is suspended", (Advice(Remedy.RECOVER, domid),))
    if info.shutdown:
        crashed = info.shutdown_reason == ShutdownReason.CRASH
        return Found(
            Condition.CRASHED if crashed else Condition.STOPPED, how_it_stopped(info.shutdown_reason)
        )
    if info.paused:
        with contextlib.suppress(XenError):
            if (found := arriving.look(handles.store, domid, domain_uuid)) is not None:
                return Found(Condition.PAUSED, found.what, found.remedies)
        return Found(Condition.PAUSED, "is paused", (Advice(Remedy.UNPAUSE_NOW, domid),))
    return Found(Condition.RUNNING, "is running")


def _gone(handles: Handles, domid: int, domain_uuid: uuid.UUID) -> Found:
    """Destroyed by another program; a guest that rebooted is there again under another number."""
    try:
        others = [info for info in handles.xen.domains() if info.uuid == domain_uuid and not info.dying]
    except XenError:
        others = []
    again = next(
        (f" (its UUID is now that of domain {one.domid})" for one in others if one.domid != domid), ""
    )
    return Found(Condition.GONE, f"is gone{again}")
