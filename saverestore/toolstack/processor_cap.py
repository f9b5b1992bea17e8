"""Slowing a domain down by its scheduler's cap, and putting the cap back: also after `kill -9`.

What the cap was stands in xenstore, where only the control domain may write, for as long as it is another:

    /local/domain/N/pysave/cap = "0"        then the cap is lowered; put back; then the node is removed

The node goes with the domain. Whoever next saves the domain, or recovers it, finds it and puts the cap back.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from dataclasses import replace

from pyxc import Xen, XenError, XenStore, sched
from pyxc.sched import Scheduler, Share
from saverestore.errors import Advice, DomainError, ErrorName, Remedy
from saverestore.guest.common.handles import Handles
from saverestore.guest.common.transactions import write_below
from saverestore.toolstack.domains import Domain

LOG = logging.getLogger(__name__)

GETTERS: dict[int, Callable[[Xen, int], Share]] = {
    Scheduler.CREDIT2: sched.credit2_share,
    Scheduler.CREDIT: sched.credit_share,
}
SETTERS: dict[int, Callable[[Xen, int, Share], None]] = {
    Scheduler.CREDIT2: sched.set_credit2_share,
    Scheduler.CREDIT: sched.set_credit_share,
}

ONE_CPU = 100
"""A cap counts percent of one physical CPU."""


NODE = "pysave/cap"


def _home(domid: int) -> str:
    return f"/local/domain/{domid}/pysave"


def _node(domid: int) -> str:
    return f"/local/domain/{domid}/{NODE}"


class ProcessorCap:
    """See Throttle. The domain must be locked (`lock.locked`) for as long as this is used."""

    def __init__(self, handles: Handles, domain: Domain) -> None:
        """Look at how the domain is scheduled; nothing is changed. DomainError where there is no cap to lower."""
        self._xen = handles.xen
        self._store = handles.store
        self._domid = domain.domid
        pool = sched.cpu_pool(handles.xen, domain.info.cpupool)
        if pool.scheduler not in GETTERS:
            found = pool.scheduler
            name = found.name.lower() if isinstance(found, Scheduler) else f"number {found}"
            raise DomainError(
                f"{domain} cannot be slowed down: the scheduler of its CPU pool {domain.info.cpupool} is {name}, "
                "and only credit2 and credit have a cap; no changes were made",
                name=ErrorName.THROTTLE_UNAVAILABLE,
                remedies=[Advice(Remedy.STALL_WITHOUT_THROTTLE)],
            )
        self._scheduler = int(pool.scheduler)
        self._usable_cpus = max(1, min(domain.info.nr_online_vcpus, pool.nr_cpus))
        self._before: Share | None = None

    def limit(self, cpu_percent: int) -> None:
        """See Throttle. Percent of the cap that there was, or of all the CPUs that its vCPUs can run on."""
        if self._before is None:
            self._before = self._written_down()
        whole = self._before.cap or ONE_CPU * self._usable_cpus
        lowered = replace(self._before, cap=max(1, whole * cpu_percent // 100))
        SETTERS[self._scheduler](self._xen, self._domid, lowered)
        LOG.info(
            "domain %d: its cap is %d now (was %s)", self._domid, lowered.cap, self._before.cap or "none"
        )

    def _written_down(self) -> Share:
        """What its share was, once that is written down. What a killed save has written stays: it lowered the cap."""
        share = GETTERS[self._scheduler](self._xen, self._domid)
        known = self._store.read(_node(self._domid))
        if known is not None and known.isdecimal():
            return replace(share, cap=int(known))
        write_below(self._store, self._domid, NODE, str(share.cap))
        return share

    def lift(self) -> None:
        """See Throttle."""
        if self._before is None:
            return
        try:
            SETTERS[self._scheduler](self._xen, self._domid, self._before)
        except XenError as error:
            if error.errno != errno.ESRCH:  # somebody destroyed it meanwhile: there is nothing to give back
                raise
        _forget(self._store, self._domid)
        self._before = None


def put_back(handles: Handles, domain: Domain) -> str:
    """Undo what a killed save has left of a cap: what was done, for people; nothing when nothing was to be done."""
    text = handles.store.read(_node(domain.domid))
    if text is None:
        return ""
    done = ""
    scheduler = int(sched.cpu_pool(handles.xen, domain.info.cpupool).scheduler)
    if text.isdecimal() and scheduler in GETTERS:
        share = GETTERS[scheduler](handles.xen, domain.domid)
        if share.cap != int(text):
            SETTERS[scheduler](handles.xen, domain.domid, replace(share, cap=int(text)))
            was = f"{text}%" if int(text) else "none"
            done = f"it had been slowed down: its processor cap was put back ({was} instead of {share.cap}%)"
    _forget(handles.store, domain.domid)
    return done


def speed_up(handles: Handles, domain: Domain) -> None:
    """See `put_back`, for who saves the domain: what was done, or could not be, is a warning."""
    try:
        if done := put_back(handles, domain):
            LOG.warning("%s: %s", domain, done)
    except XenError as error:
        LOG.warning("%s was slowed down by a save that was killed, and still is: %s", domain, error)


def _forget(store: XenStore, domid: int) -> None:
    """What was written down is done with. A domain that is gone has taken its nodes along."""
    store.remove(_node(domid))
    if not store.list(_home(domid)):
        store.remove(_home(domid))
