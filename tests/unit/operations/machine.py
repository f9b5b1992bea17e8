"""A machine without Xen whose one domain can be crashed, destroyed or paused by others at any step of a save.

What the domain is then is looked up as on a real host, and it is asked to suspend in the same way: by the product's
own code, on the little of Xen and xenstore that is here.
"""

from __future__ import annotations

import errno
import uuid
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from fake_host import FakeHost

from pyxc import XenError
from saverestore.guest.common.suspend import REQUEST, Suspender, check_not_asked
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemorySave
from saverestore.testing.store import MemoryStore
from saverestore.toolstack import condition, domains
from saverestore.toolstack.condition import Condition, Found
from saverestore.toolstack.device_model import SuspenderWithDeviceModel
from saverestore.toolstack.domains import Domain

DOMID = 7
CONTROL = f"/local/domain/{DOMID}/control/shutdown"
TIMEOUT_S = 0.03
PFNS, BATCH_PFNS = 96, 32

POWEROFF, REBOOT, SUSPEND, CRASH = range(4)
"""Reasons of a shutdown (xen/public/sched.h)."""

LATER = ("resume", "close", "log_dirty.close", "throttle.lift")
"""What is done with a domain when it has failed: not of its memory."""


class Machine:
    """See above. It is the little of Xen that is asked, and what others do to the domain."""

    def __init__(self) -> None:
        self.uuid = uuid.UUID(int=7)
        self.store = MemoryStore({CONTROL: "", f"/local/domain/{DOMID}/name": "web1"})
        self.shutdown_reason: int | None = None
        self.dying = self.gone = False
        self.pauses = 0

    # ---- Xen ---------------------------------------------------------------------------------------

    def domain(self, domid: int) -> SimpleNamespace:
        self.check_there(domid)
        self._run_kernel()
        suspended = self.shutdown_reason == SUSPEND
        return SimpleNamespace(
            domid=domid,
            uuid=self.uuid,
            dying=self.dying,
            paused=self.pauses > 0,
            shutdown=self.shutdown_reason is not None,
            shutdown_reason=self.shutdown_reason,
            suspended=suspended,
        )

    def domains(self) -> Iterator[SimpleNamespace]:
        if not self.gone:
            yield self.domain(DOMID)

    def pause(self, domid: int) -> None:
        self.check_there(domid)
        self.pauses += 1

    def unpause(self, domid: int) -> None:
        self.check_there(domid)
        self.pauses -= 1

    def check_there(self, domid: int = DOMID) -> None:
        if self.gone:
            raise XenError("xc_domctl", errno.ESRCH, domid=domid)

    def _run_kernel(self) -> None:
        """The guest's answer to a request, where it runs."""
        runs = self.shutdown_reason is None and not self.pauses and not self.dying
        if runs and self.store.read(CONTROL) == REQUEST:
            self.store._do("write", CONTROL, "")  # on the guest's own connection
            self.shutdown_reason = SUSPEND

    # ---- what others do ----------------------------------------------------------------------------

    def shuts_down(self, reason: int) -> None:
        """By the guest: one that does not run does nothing."""
        if self.shutdown_reason is None and not self.pauses:
            self.shutdown_reason = reason

    def is_destroyed(self, *, at_once: bool) -> None:
        """`at_once`: or a process holds a page of it."""
        self.dying, self.gone = True, at_once

    def is_resumed(self) -> None:
        """`xl resume`, or a tool that takes a suspended domain for its own."""
        if self.shutdown_reason == SUSPEND:
            self.shutdown_reason = None

    def truth(self) -> Found:
        """What the domain is."""
        return condition.look_up(SimpleNamespace(xen=self, store=self.store), DOMID, self.uuid)


class MachineGuest(MemorySave):
    """The machine's domain as the engine sees it."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(MemoryDomain.pvh(PFNS))
        self._machine = machine
        self.suspending: Any = Suspender(
            machine,  # type: ignore[arg-type]
            machine.store,  # type: ignore[arg-type]
            DOMID,
            timeout_s=TIMEOUT_S,
            resume_domain=self._resumes,
        )

    def act_at(self, step: int, do: Callable[[], None]) -> None:
        """At the step of this number, which is a call of the engine's."""

        def at(name: str, number: int) -> None:
            if number == step:
                do()
            if name not in LATER and (self._machine.gone or self._machine.dying):
                raise XenError("xenforeignmemory_map", errno.ESRCH if self._machine.gone else errno.EINVAL)

        self.moments.on_every(at)

    def suspend(self) -> None:
        self.moments.reached("suspend")
        self.suspending.suspend()
        self.domain.suspend()
        self.moments.reached("suspended")

    def resume(self) -> None:
        self.moments.reached("resume")
        self.suspending.resume()

    def _resumes(self) -> None:
        if self._machine.dying:
            raise XenError("xc_domain_resume", errno.EINVAL, domid=DOMID)
        self._machine.shutdown_reason = None
        self.domain.resume()


class MachineHost(FakeHost):
    """The host of one machine. `destroyed` is how often we destroyed the domain."""

    def __init__(self, device_model: Any = None) -> None:
        self.machine = Machine()
        self.on_machine = MachineGuest(self.machine)
        super().__init__(self.on_machine, batch_pfns=BATCH_PFNS)
        self.handles = SimpleNamespace(xen=self.machine, memory=self.memory, store=self.machine.store)
        self.domain = Domain(self.machine.domain(DOMID), "web1")
        self.toolstack.on_destroy = self._destroy
        if device_model is not None:
            self.toolstack.device_model = device_model
            self.on_machine.suspending = SuspenderWithDeviceModel(self.on_machine.suspending, device_model)
        self.destroyed = 0

    def _destroy(self) -> None:
        self.machine.check_there()
        self.machine.is_destroyed(at_once=True)
        self.destroyed += 1

    def again(self, domain: Domain) -> Domain:
        return Domain(self.machine.domain(domain.domid), domain.name)  # type: ignore[arg-type]

    def check_can_be_saved(self, domain: Domain) -> None:
        domains.check_can_be_saved(self.machine.store, domain)
        check_not_asked(self.machine.store, domain.domid, str(domain))

    def suspending(self, *_: object) -> Any:
        return self.on_machine.suspending

    def look_up(self, _domain: object) -> Found:
        return self.machine.truth()

    def close(self) -> None:
        self.machine.store.close()
        self.on_machine.domain.close()


__all__ = ["CRASH", "POWEROFF", "REBOOT", "Condition", "Machine", "MachineHost"]
