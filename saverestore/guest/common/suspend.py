"""Asking a guest to suspend itself, waiting for it, and resuming it (xen-notes: libxl_dom_suspend.c).

running ──request──▶ asked ──guest's ack──▶ acknowledged ──shutdown(suspend)──▶ suspended ──resume──▶ running
                       │ no ack: the request is taken back  │ not in time           (only what we suspended)
                       ▼                                    ▼
                    running                              running, and may still suspend: `is_late`

One deadline holds from the request to the suspension.
"""

from __future__ import annotations

import errno
import logging
import re
import select
import time
from collections.abc import Callable
from typing import Protocol

from pyxc import EventChannels, Xen, XenError, XenStore, cpu
from pyxc.control import ShutdownReason
from pyxc.store import Transaction
from saverestore.errors import Advice, DomainError, ErrorName, Remedy
from saverestore.guest.common.hvm_params import HVM_PARAM_ACPI_S_STATE, HVM_PARAM_CALLBACK_IRQ
from saverestore.guest.common.transactions import in_transaction, is_known
from saverestore.interrupts import shield

LOG = logging.getLogger(__name__)

PORT = re.compile("[0-9]{1,10}")
PORT_MAX = (1 << 31) - 1
"""Ports go through an int (xenevtchn.h)."""

SUSPEND_TIMEOUT_S = 60.0
POLL_S = 0.1
GRACE_S = 2.0
"""How long `resume` waits for a guest that has taken the request: signals are held back meanwhile."""

MOST_EVENTS = 1000
"""Taken at one time: who writes to a node without end must not keep us from looking at the clock."""

LONGEST_REASON = 200
"""Characters of what a guest says that are printed."""

REQUEST = "suspend"
REQUESTS = {REQUEST: "suspend", "poweroff": "power off", "halt": "power off", "reboot": "reboot"}
"""What a guest is asked for in control/shutdown, for people. Linux leaves what it does not know there for ever."""

STOPPED = {
    0: "has powered off",
    1: "is rebooting",
    3: "has crashed",
    4: "was stopped by its watchdog",
}
"""Shutdown reasons of domains that will not run again (xen/public/sched.h); 2 is suspend."""


def how_it_stopped(reason: int) -> str:
    """What a stopped domain did, to follow its name in a sentence."""
    return STOPPED.get(reason, f"has stopped (shutdown reason {reason})")


class Suspending(Protocol):
    """What a guest kind needs of whoever suspends its domain."""

    @property
    def is_late(self) -> bool:
        """Whether the guest has taken a request to suspend that nobody waits for any more: it may suspend later."""

    @property
    def has_ended(self) -> bool:
        """Whether `resume` found that it has crashed, powered off or been destroyed: there is nothing to resume."""

    def suspend(self) -> None:
        """Return once the domain is suspended; DomainError when it does not."""

    def resume(self) -> None:
        """Make it run as before `suspend`; nothing when it was not suspended by this."""


class Suspender:
    """Suspends one domain and resumes it. Waits can be interrupted; `resume` then puts things right.

    `requested`: somebody else has asked it to suspend and can no longer take that back. `emulated`: it is an HVM
    domain with a device model, whose guest may know nothing of Xen. `resume_domain`: resumes a suspended domain, and
    does what is missing when it is called again after a failure; None for x86's way, `Resumption`.
    """

    def __init__(
        self,
        xen: Xen,
        store: XenStore,
        domid: int,
        *,
        timeout_s: float | None = None,
        requested: bool = False,
        emulated: bool = False,
        resume_domain: Callable[[], None] | None = None,
    ) -> None:
        self._xen = xen
        self._store = store
        self._domid = domid
        self._path = f"/local/domain/{domid}"
        self._timeout_s = timeout_s or SUSPEND_TIMEOUT_S
        self._deadline = 0.0
        self._requested = requested
        self._is_taken = False
        self._is_late = self._has_ended = False
        self._has_suspended = False
        self._has_begun_to_resume = False
        self._emulated = emulated
        self._resume_domain = resume_domain or Resumption(xen, store, domid).resume

    @property
    def is_late(self) -> bool:
        """See Suspending. Known once `resume` has returned."""
        return self._is_late

    @property
    def has_ended(self) -> bool:
        """See Suspending. Known once `resume` has returned."""
        return self._has_ended

    def suspend(self) -> None:
        """Return once the domain is shut down with reason "suspend".

        DomainError when it does not in time, or stops for another reason. A request that it has not answered is
        taken back; one that it has taken is seen to by `resume`.
        """
        self._deadline = time.monotonic() + self._timeout_s
        self._is_late = self._has_ended = self._is_taken = False
        port = _port_of(self._store.read(f"{self._path}/device/suspend/event-channel"))
        token = f"pysave-suspend-{self._domid}"
        self._store.watch("@releaseDomain", token)
        try:
            if self._emulated and not self._guest_listens():
                self._suspend_unasked()
            elif port is not None:
                self._suspend_by_event(port)
            else:
                self._suspend_by_store()
            self._has_suspended = True
        finally:
            self._store.unwatch("@releaseDomain", token)

    def resume(self) -> None:
        """Make the domain run as before `suspend` was called; nothing when it never was, or when it has stopped.

        It takes seconds at most. A guest that has taken the request and not suspended by then runs, and `is_late`.
        When this raises, call it again: it then does what is missing.
        """
        if not self._requested:
            return
        try:
            self._resume()
        except XenError as error:
            if error.errno != errno.ESRCH:  # somebody destroyed it meanwhile: there is nothing to resume
                raise
            self._has_ended = True
        self._requested = self._has_suspended = self._has_begun_to_resume = False

    def _resume(self) -> None:
        # Once that has begun, a domain that is no longer shut down may still lack something, or stand paused.
        if not self._has_begun_to_resume:
            shutdown = self._xen.domain(self._domid).shutdown
            if not shutdown and self._has_suspended:
                return  # its kind has resumed it in a way of its own, and would have raised if not wholly
            # What the guest has taken can no longer be taken back: as a rule it suspends in moments.
            if not shutdown and not self._withdraw() and not self._has_stopped_within(GRACE_S):
                self._is_late = True
                return
            info = self._xen.domain(self._domid)
            self._has_ended = info.dying or (info.shutdown and not info.suspended)
            if self._has_ended or not info.suspended:
                return
            self._has_begun_to_resume = True
        self._resume_domain()

    # ---- the two ways of asking, and one that does not ask ---------------------------------------

    def _guest_listens(self) -> bool:
        """Whether an HVM guest has PV drivers, and is awake (xen-notes: libxl_dom_suspend.c does the same)."""
        has_drivers = cpu.hvm_param(self._xen, self._domid, HVM_PARAM_CALLBACK_IRQ) != 0
        return has_drivers and cpu.hvm_param(self._xen, self._domid, HVM_PARAM_ACPI_S_STATE) == 0

    def _suspend_unasked(self) -> None:
        """Stop a guest that has no PV drivers: it notices as little of it as of any pause."""
        with shield():
            self._xen.shutdown(self._domid, ShutdownReason.SUSPEND)
            self._requested = True
        self._wait_for_shutdown("did not stop")

    def _suspend_by_event(self, remote_port: int) -> None:
        with EventChannels() as events:
            port = events.bind_interdomain(self._domid, remote_port)
            self._xen.subscribe_for_suspend(self._domid, port)
            with shield():  # from the moment that it is asked, `resume` must know of it
                events.notify(port)
                self._requested = self._is_taken = True
            self._wait_for_shutdown("was sent an event on its suspend channel and did not suspend")

    def _suspend_by_store(self) -> None:
        control = f"{self._path}/control/shutdown"
        check_can_suspend(self._store, self._domid, f"domain {self._domid}")
        with shield():
            self._ask()
            self._requested = True
        # The guest answers by emptying the node before it suspends.
        while (value := self._store.read(control)) == REQUEST:
            if self._stopped():
                return
            if time.monotonic() > self._deadline:
                if self._withdraw():
                    raise DomainError(
                        f"domain {self._domid} did not answer the request to suspend within {self._timeout_s:g} s; "
                        "the request was withdrawn",
                        name=ErrorName.DOMAIN_UNRESPONSIVE,
                        remedies=[Advice(Remedy.WAIT_LONGER)],
                    )
                value = self._store.read(control)
                break
            self._wait_for_event(POLL_S)
        self._is_taken = True
        if value and value != REQUEST and not self._stopped():
            # It may have taken ours before; then `resume` sees to that.
            raise DomainError(
                f"another program has asked domain {self._domid} to {REQUESTS.get(value, 'do something else')} "
                "while it was asked to suspend",
                name=ErrorName.DOMAIN_BUSY,
            )
        self._wait_for_shutdown("took the request to suspend, but did not suspend")

    def _ask(self) -> None:
        """Write the request, unless somebody else's is there. In a transaction, as it is looked at first."""

        def ask(transaction: Transaction) -> None:
            if not is_known(transaction, self._domid):
                raise self._instead("was destroyed")
            check_not_asked(transaction, self._domid, f"domain {self._domid}")
            transaction.write(f"{self._path}/control/shutdown", REQUEST)

        in_transaction(self._store, ask)

    def _withdraw(self) -> bool:
        """Take the request back unless the guest has it already; whether that came in time."""
        if self._is_taken:  # what is there now is another program's
            return False
        taken_back = withdraw_request(self._store, self._domid)
        self._requested = not taken_back
        self._is_taken = not taken_back
        return taken_back

    # ---- waiting ---------------------------------------------------------------------------------

    def _stopped(self) -> bool:
        try:
            info = self._xen.domain(self._domid)
        except XenError as error:
            if error.errno != errno.ESRCH:
                raise
            raise self._instead("was destroyed") from error
        if info.dying:
            raise self._instead("is being destroyed")
        if info.shutdown and not info.suspended:
            stopped = self._instead(how_it_stopped(info.shutdown_reason))
            stopped.add_note("its console may say why")
            raise stopped
        return info.suspended

    def _instead(self, what: str) -> DomainError:
        return DomainError(
            f"domain {self._domid} {what} instead of suspending", name=ErrorName.DOMAIN_STOPPED
        )

    def _wait_for_shutdown(self, in_vain: str) -> None:
        """Until it has suspended. DomainError, with `in_vain` of the domain, when it has not by the deadline."""
        while not self._stopped():
            if time.monotonic() > self._deadline:
                raise DomainError(
                    f"domain {self._domid} {in_vain} within {self._timeout_s:g} s; "
                    "its console may say why it is late",
                    name=ErrorName.DOMAIN_UNRESPONSIVE,
                    remedies=[Advice(Remedy.WAIT_LONGER)],
                )
            self._wait_for_event(POLL_S)

    def _has_stopped_within(self, seconds: float) -> bool:
        """Whether it stops, for whatever reason, or is being destroyed, in so many seconds."""
        end = time.monotonic() + seconds
        while True:
            info = self._xen.domain(self._domid)
            if info.shutdown or info.dying:
                return True
            if time.monotonic() > end:
                return False
            time.sleep(POLL_S / 4)

    def _wait_for_event(self, timeout_s: float) -> None:
        """Until a watch fires, at most `timeout_s`. The watch only shortens the wait; polling decides."""
        wait_for_event(self._store, timeout_s)
        take_events(self._store)


class Resumption:
    """Resumes an x86 domain that is suspended: its suspend hypercall returns "cancelled".

    suspended ──pause, read registers, resume──▶ paused ──put registers back──▶ ──tell xenstored, unpause──▶ running

    libxc tells the guest so by setting all of vCPU 0's context, and that context has no room for what lies
    beyond the SSE registers: Xen then marks the AVX registers as unused (XSTATE_BV), which Linux may still hold
    for a program that it believes to be loaded. So that state is read before and put back before anything runs.
    (Seen on Xen 4.17, PV: XSTATE_BV goes from 7 to 3.)
    """

    def __init__(self, xen: Xen, store: XenStore, domid: int) -> None:
        self._xen = xen
        self._store = store
        self._domid = domid
        self._is_paused = False
        self._is_resumed = False
        self._extended: bytes | None = None
        """What is still to be put back: b"" is nothing, None is not read yet."""

    def resume(self) -> None:
        """Do what is missing; may be called again after a failure, and for the next suspension.

        On an error the domain is suspended, or runs, or is paused if its registers have not been put back: a note of
        the error says that.
        """
        with shield():
            if not self._is_paused:
                self._xen.pause(self._domid)
                self._is_paused = True
            try:
                self._do_what_is_missing()
            except BaseException as error:
                if not self._is_resumed or not self._extended:
                    self._unpause()
                else:
                    error.add_note("it is left paused: its AVX registers could not be put back")
                raise
            self._unpause()
            self._is_resumed, self._extended = False, None

    def _do_what_is_missing(self) -> None:
        if self._extended is None:
            self._extended = cpu.vcpu_xsave(self._xen, self._domid, 0)
        if not self._is_resumed:
            self._xen.resume(self._domid)
            self._is_resumed = True
        if self._extended:
            cpu.set_vcpu_xsave(self._xen, self._domid, 0, self._extended)
            self._extended = b""
        self._store.resume_domain(self._domid)

    def _unpause(self) -> None:
        self._xen.unpause(self._domid)
        self._is_paused = False


def _port_of(text: str | None) -> int | None:
    """An event channel's port. The guest has written it, or anything else: None for what is none."""
    if text is None or PORT.fullmatch(text.strip()) is None or (port := int(text)) > PORT_MAX:
        return None
    return port


def wait_for_event(store: XenStore, timeout_s: float) -> None:
    """Until a watch has fired, at most so long. What has fired stays to be taken."""
    poll = select.poll()
    poll.register(store.fileno(), select.POLLIN)
    poll.poll(timeout_s * 1000)


def take_events(store: XenStore) -> int:
    """How many watches have fired, MOST_EVENTS at most, which are taken. Does not wait."""
    number = 0
    while number < MOST_EVENTS and store.take_watch_event() is not None:
        number += 1
    return number


def check_can_suspend(store: Transaction, domid: int, who: str) -> None:
    """DomainError when the guest reports that it cannot suspend now. `who`: the domain, for people.

    Drivers of Windows say why, in data/cant_suspend_reason (xenopsd), and such a guest crashes if it is asked all
    the same.
    """
    path = f"/local/domain/{domid}"
    reason = store.read(f"{path}/data/cant_suspend_reason") or ""
    if store.read(f"{path}/control/feature-suspend") == "0":
        reason = "control/feature-suspend is 0 in xenstore"
    if reason:
        raise DomainError(
            f"{who} reports that it cannot suspend ({_shown(reason)})", name=ErrorName.DOMAIN_CANNOT_SUSPEND
        )


def _shown(text: str) -> str:
    """What a guest wrote, fit to be printed."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:LONGEST_REASON])


def check_not_asked(store: Transaction, domid: int, who: str) -> None:
    """DomainError when the guest has still to answer another program's request to suspend, power off or reboot.

    `who`: the domain, for people. Two programs that suspend a domain both take it for theirs, to resume or destroy.
    """
    value = store.read(f"/local/domain/{domid}/control/shutdown")
    if value in REQUESTS:
        raise DomainError(
            f"another program has asked {who} to {REQUESTS[value]}, and it has not answered",
            name=ErrorName.DOMAIN_BUSY,
            remedies=[Advice(Remedy.TRY_AGAIN), Advice(Remedy.RECOVER, domid)] if value == REQUEST else [],
        )


def withdraw_request(store: XenStore, domid: int) -> bool:
    """Take back a request to suspend that the guest has not answered yet; whether there was one."""
    control = f"/local/domain/{domid}/control/shutdown"

    def withdraw(transaction: Transaction) -> bool:
        asked = transaction.read(control) == REQUEST
        if asked:
            transaction.write(control, "")
        return asked

    return in_transaction(store, withdraw)
