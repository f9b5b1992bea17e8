"""A save that lets its domain run, and a restore of an older image of it, at once: never two domains of one.

With the locks and checks of a real host; what Xen knows is a table here. The restore runs in a thread of its own at
each step of the save, and the other way round.
"""

from __future__ import annotations

import threading
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_host import FakeHost, FakeToolstack, RestoringHost, image_in

from saverestore.engine.progress import SaveReport, Silence
from saverestore.errors import DomainError, ErrorName
from saverestore.operations.requests import FinalState, RestoreRequest, SaveRequest
from saverestore.operations.restore import restore_domain
from saverestore.operations.save import save_domain
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemoryRestore, MemorySave, empty_like
from saverestore.toolstack import domains, lock

UUID = uuid.UUID("00000000-0000-4000-8000-000000000001")
"""Of the image, too."""
SAVED, RESTORED = 7, RestoringHost.DOMID
STEPS = ["static_records", "read_pages", "suspend", "suspended", "end_records", "resume"]


class Machine:
    """What Xen and xenstore know: the domains, each with a name and one UUID. All of them can be looked at."""

    def __init__(self) -> None:
        self.states: dict[int, str] = {}
        self.most = 0

    def add(self, domid: int, state: str) -> None:
        self.states[domid] = state
        self.most = max(self.most, len(self.states))

    def infos(self) -> list[Any]:
        return [
            SimpleNamespace(
                domid=domid,
                uuid=UUID,
                dying=False,
                paused=state == "paused",
                suspended=state == "suspended",
                shutdown=state == "suspended",
            )
            for domid, state in self.states.items()
        ]

    def domain(self, domid: int) -> domains.Domain:
        (info,) = [info for info in self.infos() if info.domid == domid]
        return domains.Domain(info, "web1")


class OfMachine:
    """A host's part that is as on a real one."""

    machine: Machine
    handles: Any
    store: Any

    def use(self, machine: Machine) -> None:
        self.machine = machine
        self.handles.xen.domains = machine.infos
        for domid in (SAVED, RESTORED):
            self.store[f"/local/domain/{domid}/name"] = "web1"

    def locked(self, domain: domains.Domain) -> Any:
        return lock.locked(domain)

    def restoring(self, of: uuid.UUID, name: str | None) -> Any:
        return lock.restoring(of, name)

    def check_free(self, config: Any) -> None:
        domains.check_free(self.handles, config.name, config.uuid)

    def check_can_be_saved(self, domain: domains.Domain) -> None:
        domains.check_can_be_saved(self.store, domain)


class Saving(OfMachine, FakeHost):
    def find(self, text: str) -> domains.Domain:
        return domains.find(self.handles, text)

    def again(self, domain: domains.Domain) -> domains.Domain:
        return self.machine.domain(domain.domid)


class Filling(OfMachine, RestoringHost):
    def create(self, config: Any) -> Any:
        self.machine.add(RESTORED, "paused")
        return super().create(config)

    def unpause(self, domid: int) -> None:
        super().unpause(domid)
        self.machine.states[domid] = "running"


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LOCK_DIR", tmp_path / "locks")


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def memory() -> MemoryDomain:
    return MemoryDomain.pvh(64)


def restore(machine: Machine, memory: MemoryDomain, image: Path) -> BaseException | None:
    """In a thread of its own: what it failed with."""
    host = Filling(MemoryRestore(empty_like(memory)))
    host.use(machine)
    found: list[BaseException | None] = []

    def work() -> None:
        try:
            restore_domain(RestoreRequest(str(image)), Silence(), host=host)
            found.append(None)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    return found[0]


def saving(machine: Machine, memory: MemoryDomain) -> tuple[Saving, FakeToolstack]:
    guest, toolstack = MemorySave(memory), FakeToolstack()
    toolstack.on_destroy = lambda: machine.states.pop(SAVED)
    for step, state in (("suspended", "suspended"), ("resume", "running")):
        guest.moments.on(step, 0, lambda state=state: machine.add(SAVED, state))
    host = Saving(guest, toolstack)
    host.use(machine)
    return host, toolstack


@pytest.mark.parametrize("live", [False, True], ids=["", "live"])
@pytest.mark.parametrize("final_state", [FinalState.RUN, FinalState.DESTROY])
@pytest.mark.parametrize("step", STEPS)
def test_while_a_domain_is_saved_no_older_image_of_it_becomes_a_second_one(
    tmp_path, machine, memory, step, final_state, live
):
    old = image_in(tmp_path, memory)
    machine.add(SAVED, "running")
    host, toolstack = saving(machine, memory)
    refused: list[BaseException | None] = []
    assert host.guest is not None
    host.guest.moments.on(step, 0, lambda: refused.append(restore(machine, memory, old)))
    report = SaveReport()
    save_domain(
        SaveRequest("web1", str(tmp_path / "new.img"), final_state, live=live), Silence(), report, host=host
    )
    if (step, final_state) != ("resume", FinalState.DESTROY):
        (error,) = refused
        assert isinstance(error, DomainError)
        assert error.name in (ErrorName.DOMAIN_NAME_TAKEN, ErrorName.DOMAIN_EXISTS)
    assert machine.most == 1
    assert (tmp_path / "new.img").exists()
    assert machine.states == ({SAVED: "running"} if final_state is FinalState.RUN else {})
    assert toolstack.destroyed == (final_state is FinalState.DESTROY)


def test_once_a_saved_domain_is_destroyed_an_image_of_it_becomes_it_again(tmp_path, machine, memory):
    old = image_in(tmp_path, memory)
    machine.add(SAVED, "running")
    host, toolstack = saving(machine, memory)
    outcomes: list[BaseException | None] = []

    def destroyed() -> None:
        machine.states.pop(SAVED)
        outcomes.append(restore(machine, memory, old))

    toolstack.on_destroy = destroyed
    save_domain(SaveRequest("web1", str(tmp_path / "new.img"), FinalState.DESTROY), Silence(), host=host)
    assert outcomes == [None]
    assert (machine.states, machine.most) == ({RESTORED: "running"}, 1)


def test_a_domain_that_is_being_restored_is_not_saved_before_it_runs(tmp_path, machine, memory):
    """Not even one that is filled, and paused: its restore holds the lock of its UUID."""
    image = image_in(tmp_path, memory)
    filling = Filling(MemoryRestore(empty_like(memory)))
    filling.use(machine)
    refused: list[DomainError] = []

    def second() -> None:
        host, _ = saving(machine, memory)
        with pytest.raises(DomainError, match="is being restored by process") as caught:
            save_domain(SaveRequest("web1", str(tmp_path / "b.img"), FinalState.RUN), Silence(), host=host)
        refused.append(caught.value)

    filling.on_create = lambda: [thread := threading.Thread(target=second), thread.start(), thread.join(30)]
    restore_domain(RestoreRequest(str(image)), Silence(), host=filling)
    assert [one.name for one in refused] == [ErrorName.DOMAIN_BUSY]
    assert not (tmp_path / "b.img").exists()
    assert machine.states == {RESTORED: "running"}
