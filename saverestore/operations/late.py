"""A guest that has taken a request to suspend, and was given up waiting for: who resumes it should it suspend."""

from __future__ import annotations

import errno
import logging
import time
import uuid

from saverestore.errors import DomainError, ErrorName
from saverestore.guest.common.handles import Handles, XenError, open_handles
from saverestore.guest.common.suspend import MOST_EVENTS, REQUEST, take_events, wait_for_event
from saverestore.guest.kinds import this_host
from saverestore.operations.recover import recover_locked
from saverestore.toolstack import moving
from saverestore.toolstack.domains import Domain, name_of
from saverestore.toolstack.lock import locked

LOG = logging.getLogger(__name__)

LATE_S = 600.0
POLL_S = 0.5


def resume_if_late(domid: int, domain_uuid: uuid.UUID, *, seconds: float = LATE_S) -> str:
    """Wait for the domain to suspend, and resume it; or for a reason to leave it alone: what came of it, for people.

    Left alone is a domain that somebody else asks to suspend meanwhile: it is theirs to resume; and one that moves to
    another host, which may run it.
    """
    this_host().of_config("pv")  # all kinds are loaded by that: this package may be gone when one is needed
    with open_handles() as handles:
        return watch_for_late(handles, domid, domain_uuid, seconds=seconds)


def watch_for_late(handles: Handles, domid: int, domain_uuid: uuid.UUID, *, seconds: float) -> str:
    """See `resume_if_late`."""
    store, control = handles.store, f"/local/domain/{domid}/control/shutdown"
    end = time.monotonic() + seconds
    store.watch(control, control)
    try:
        asked = _is_asked(handles, control, expected=1)  # a watch fires once at first
        while time.monotonic() < end:
            try:
                info = handles.xen.domain(domid)
            except XenError as error:
                if error.errno != errno.ESRCH:
                    raise
                return "it is gone"
            # After that look: who made it suspend has asked before.
            asked = asked or _is_asked(handles, control)
            if info.uuid != domain_uuid or info.dying:
                return "it is gone"
            if asked:
                return "somebody else has asked it to suspend"
            if info.suspended:
                done = _resume(handles, Domain(info, name_of(store, domid)))
                if done is not None:
                    return done
            elif info.shutdown:
                return "it has stopped"
            wait_for_event(store, POLL_S)
    finally:
        store.unwatch(control, control)
    return f"it did not suspend within {seconds:.0f} s"


def _is_asked(handles: Handles, control: str, *, expected: int = 0) -> bool:
    """Whether somebody has asked the guest to suspend since the last look, or may have. It has taken our request.

    The node has what was written last, and its watch fires at each write: at one, that is all there was, such as a
    request to power off, or the guest's answer to one that was seen before. Of more, one may have been a request to
    suspend that the guest has answered already. `expected`: how often it fires without a write.
    """
    fired = -expected
    while fired < MOST_EVENTS:
        if handles.store.read(control) == REQUEST:
            return True
        # What was written before the answer to that read has fired by now; what has fired later is read anew.
        more = take_events(handles.store)
        if not more:
            return fired > 1
        fired += more
    return True


def _resume(handles: Handles, domain: Domain) -> str | None:
    """None while another process of ours works on the domain, which may have asked it by another way."""
    try:
        with locked(domain):
            if moving.noted(handles.store, domain.domid) is not None:
                return "it moves to another host, which may run it"
            if not handles.xen.domain(domain.domid).suspended:
                return "it was resumed by somebody else"
            return "; ".join(recover_locked(handles, domain, this_host()))
    except DomainError as error:
        if error.name is not ErrorName.DOMAIN_BUSY:
            raise
        return None
