"""A guest that has taken a request to suspend, and was given up waiting for: who resumes it should it suspend."""

from __future__ import annotations

import errno
import logging
import select
import time
import uuid

from saverestore.errors import DomainError, ErrorName
from saverestore.guest.common.handles import Handles, XenError, open_handles
from saverestore.guest.common.suspend import REQUEST
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
    with open_handles() as handles:
        return watch_for_late(handles, domid, domain_uuid, seconds=seconds)


def watch_for_late(handles: Handles, domid: int, domain_uuid: uuid.UUID, *, seconds: float) -> str:
    """See `resume_if_late`."""
    store, control = handles.store, f"/local/domain/{domid}/control/shutdown"
    end = time.monotonic() + seconds
    store.watch(control, control)
    try:
        _events(handles, 0)  # a watch fires once at first
        asked = store.read(control) == REQUEST
        while time.monotonic() < end:
            try:
                info = handles.xen.domain(domid)
            except XenError as error:
                if error.errno != errno.ESRCH:
                    raise
                return "it is gone"
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
            # Whoever asks writes there, and so does the guest when it answers.
            asked = _events(handles, POLL_S) > 0
    finally:
        store.unwatch(control, control)
    return f"it did not suspend within {seconds:.0f} s"


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


def _events(handles: Handles, timeout_s: float) -> int:
    """How many watches have fired, after at most so long."""
    poll, number = select.poll(), 0
    poll.register(handles.store.fileno(), select.POLLIN)
    if poll.poll(timeout_s * 1000):
        while handles.store.take_watch_event() is not None:
            number += 1
    return number
