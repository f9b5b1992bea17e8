"""Saves, and restores, in which somebody else does something at each step: what is said of the domain is what it is.

The same list is tried on real Xen, at random moments: `tests/xen/test_stress_accounts.py`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_host import RestoringHost, image_in
from machine import CRASH, POWEROFF, REBOOT, Condition, Machine, MachineHost
from memory_guests import MAKERS

from pyxc import XenError
from saverestore.engine.progress import DomainState, RestoreReport, SaveReport, Silence
from saverestore.errors import ExitCode, Remedy, fact_of, remedies_of
from saverestore.guest.common import suspend
from saverestore.operations import prepare_save, save
from saverestore.operations.requests import FinalState, RestoreRequest, SaveRequest
from saverestore.operations.restore import restore_domain
from saverestore.operations.save import save_domain
from saverestore.stream.survey import survey
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemoryRestore, empty_like
from saverestore.testing.qmp import FakeQemu
from saverestore.toolstack.device_model import DeviceModel
from saverestore.transport.opening import open_image

FINAL = pytest.mark.parametrize("final", [FinalState.DESTROY, FinalState.RUN], ids=lambda one: one.value)

HELPS = {
    Condition.SUSPENDED: Remedy.RECOVER,
    Condition.PAUSED: Remedy.UNPAUSE_NOW,
    Condition.UNKNOWN: Remedy.LIST_DOMAINS,
}
"""What may be advised of a domain that is found so, and of no other."""


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(suspend, "GRACE_S", 0.01)
    monkeypatch.setattr(suspend, "POLL_S", 0.002)


class Run:
    """One save: what was raised, or None, and what the report says."""

    def __init__(self, host: MachineHost, folder: Path, final: FinalState) -> None:
        self.host, self.folder = host, folder
        self.report = SaveReport()
        self.error: BaseException | None = None
        self.image = folder / "a.img"
        request = SaveRequest("web1", str(self.image), final_state=final, live=True)
        try:
            save_domain(request, Silence(), self.report, host=host)
        except Exception as error:
            self.error = error

    def account_is_true(self) -> None:
        """Of the domain; and there is a whole image or none."""
        truth, state = self.host.machine.truth(), self.report.domain_state
        names = {path.name for path in self.folder.iterdir()}
        if self.error is None:
            assert names == {"a.img"}
            with open_image(str(self.image)) as source:
                assert survey(source).error is None
            states = {truth.condition.name, *(["DESTROYED"] if self.host.destroyed else [])}
            assert state.name in states
            return
        told = fact_of(self.error)
        advised = {advice.remedy for advice in remedies_of(self.error)} & set(HELPS.values())
        assert names <= ({"a.img"} if "is complete" in told else set()), told
        if "no changes were made" not in told and not told.startswith("cannot write"):
            assert told.count(truth.what) == 1, told
            helps = {HELPS[truth.condition]} if truth.condition in HELPS else set()
            assert advised - {Remedy.LIST_DOMAINS} == helps - {Remedy.LIST_DOMAINS}, (told, advised)
        if truth.condition is Condition.RUNNING:
            assert state in (DomainState.RUNNING, DomainState.UNTOUCHED)
        elif truth.condition is Condition.SUSPENDED:
            assert state is DomainState.STUCK
        else:
            assert state.name == truth.condition.name
        assert self.host.destroyed == 0


def number_of_steps(folder: Path, final: FinalState) -> list[str]:
    host = MachineHost()
    run = Run(host, folder, final)
    assert run.error is None
    run.account_is_true()
    run.image.unlink()
    host.close()
    *steps, last = host.on_machine.moments.calls
    assert last == "close"  # when all has been said
    return steps


@contextmanager
def each_noted(what: object) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        error.add_note(f"at {what}")
        raise


# ---- the domain ----------------------------------------------------------------------------------

STATES: dict[str, Callable[[Machine], None]] = {
    "crashed": lambda machine: machine.shuts_down(CRASH),
    "powered off": lambda machine: machine.shuts_down(POWEROFF),
    "rebooting": lambda machine: machine.shuts_down(REBOOT),
    "destroyed": lambda machine: machine.is_destroyed(at_once=True),
    "dying": lambda machine: machine.is_destroyed(at_once=False),
    "paused by somebody else": lambda machine: machine.pause(7),
    "resumed by somebody else": lambda machine: machine.is_resumed(),
}


@FINAL
@pytest.mark.parametrize("state", STATES)
def test_whatever_becomes_of_the_domain_at_any_step_is_what_is_said_of_it(tmp_path, state, final):
    steps = number_of_steps(tmp_path, final)
    failures = 0
    for number, name in enumerate(steps):
        with each_noted(f"step {number}, {name}"):
            host = MachineHost()
            host.on_machine.act_at(number, lambda host=host: STATES[state](host.machine))
            run = Run(host, tmp_path, final)
            run.account_is_true()
            failures += run.error is not None
            paused = state == "paused by somebody else"
            assert host.machine.gone or host.machine.pauses == paused, "who paused it unpauses it"
            run.image.unlink(missing_ok=True)
            host.close()
    assert failures


@FINAL
@pytest.mark.parametrize("state", ["crashed", "powered off", "rebooting", "destroyed", "dying"])
@pytest.mark.parametrize("call", ["again", "config_of", "save_guest", "check_room"])
def test_one_that_ends_while_it_is_only_looked_at_is_said_to_have_ended_whatever_call_failed(
    tmp_path, monkeypatch, state, final, call
):
    host = MachineHost()

    def fails(*_: object) -> None:
        STATES[state](host.machine)
        raise XenError("xenforeignmemory_map", errno.EBUSY, domid=7)

    owner = {"config_of": host.toolstack, "check_room": save}.get(call, host)
    monkeypatch.setattr(owner, call, fails)
    run = Run(host, tmp_path, final)
    assert run.error is not None
    truth = host.machine.truth()
    assert fact_of(run.error) == f"web1 (domain 7) {truth.what}; no changes were made"
    assert run.report.domain_state.name == truth.condition.name
    assert list(tmp_path.iterdir()) == []
    host.close()


@pytest.mark.parametrize("state", ["crashed", "powered off", "rebooting", "destroyed", "dying"])
@pytest.mark.parametrize("call", ["again", "config_of", "save_guest", "estimate", "check_room"])
def test_a_dry_run_says_of_one_that_ends_meanwhile_that_it_has_ended_whatever_call_failed(
    tmp_path, monkeypatch, state, call
):
    host = MachineHost()

    def fails(*_: object) -> None:
        STATES[state](host.machine)
        raise XenError("xenforeignmemory_map", errno.EBUSY, domid=7)

    of_module = {"estimate": prepare_save, "check_room": prepare_save}
    owner = {"config_of": host.toolstack, **of_module}.get(call, host)
    monkeypatch.setattr(owner, call, fails)
    findings = prepare_save.dry_run(SaveRequest("web1", str(tmp_path / "a.img")), host=host)
    told = [fact_of(error) for error in findings.errors]
    assert told == [f"web1 (domain 7) {host.machine.truth().what}; no changes were made"]
    assert findings.exit_code is ExitCode.DOMAIN
    host.close()


def test_a_domain_that_somebody_resumed_while_it_was_saved_is_not_destroyed(tmp_path):
    """Its image is of several moments, and it has run on."""
    host = MachineHost()
    host.on_machine.moments.on("end_records", 0, host.machine.is_resumed)
    run = Run(host, tmp_path, FinalState.DESTROY)
    assert "another program has resumed it" in fact_of(run.error)
    assert (host.destroyed, list(tmp_path.iterdir())) == (0, [])
    host.close()


# ---- its device model ----------------------------------------------------------------------------


@FINAL
def test_another_program_that_takes_the_device_model_at_any_step_stops_nothing_for_good(tmp_path, final):
    taken_in_time = 0
    for number, name in enumerate(number_of_steps(tmp_path, final)):
        with each_noted(f"step {number}, {name}"), FakeQemu() as qemu:
            store = object()
            device_model = DeviceModel(store, 7, connect=qemu.connect, timeout_s=0.05)  # type: ignore[arg-type]
            device_model._physmap = bytes  # type: ignore[method-assign]
            host = MachineHost(device_model)
            others: list[object] = []
            host.on_machine.act_at(number, lambda others=others, qemu=qemu: others.append(qemu.connect()))
            run = Run(host, tmp_path, final)
            run.account_is_true()
            if run.error is not None:
                taken_in_time += 1
                assert "another program is connected to it" in fact_of(run.error)
                assert host.machine.truth().condition is Condition.RUNNING
            assert qemu.running == (run.error is not None or final is FinalState.RUN)
            for other in others:
                other.close()  # type: ignore[attr-defined]
            run.image.unlink(missing_ok=True)
            host.close()
    assert taken_in_time


# ---- xenstore ------------------------------------------------------------------------------------

FULL = [errno.ENOSPC, errno.E2BIG, errno.EDQUOT]
"""What xenstored answers to a client beyond its quota."""


@FINAL
@pytest.mark.parametrize("number", FULL, ids=errno.errorcode.get)
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
def test_a_xenstore_that_is_full_at_any_call_is_told_with_what_the_domain_is(
    tmp_path, final, number, lasting
):
    """Of a quota that stays full each write fails, and so does taking a request back."""
    calls = MachineHost()
    assert Run(calls, tmp_path, final).error is None
    (tmp_path / "a.img").unlink()
    names = list(calls.machine.store.moments.calls)
    calls.close()
    failures = 0
    for at, name in enumerate(names):
        if name not in ("write", "transaction_start", "transaction_end", "watch"):
            continue
        with each_noted(f"call {at}, {name}"):
            host = MachineHost()

            def full(call: str, total: int, at: int = at, name: str = name) -> None:
                if total == at or (lasting and total > at and call == name):
                    raise XenError(f"xs_{call}", number)

            host.machine.store.moments.on_every(full)
            run = Run(host, tmp_path, final)
            host.machine.store.moments._always.clear()
            run.account_is_true()
            failures += run.error is not None
            run.image.unlink(missing_ok=True)
            host.close()
    assert failures


# ---- the file system -----------------------------------------------------------------------------

ANSWERS = [
    (os, "link"),
    (os, "fstatvfs"),
    (os, "fsync"),
    (os, "fstat"),
    (os, "pathconf"),
    (os, "scandir"),
    (Path, "lstat"),
    (Path, "rename"),
    (Path, "unlink"),
]
ERRORS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EIO, errno.ENOSPC, errno.EROFS, errno.ESTALE)


@FINAL
@pytest.mark.parametrize(("where", "call"), ANSWERS, ids=[call for _, call in ANSWERS])
def test_whatever_a_file_system_answers_the_domain_is_what_is_said_of_it(tmp_path, final, where, call):
    real = getattr(where, call)
    for number in ERRORS:
        for first in (0, 1):
            with each_noted(f"{errno.errorcode[number]} from call {first} on"):
                folder = tmp_path / f"{number}-{first}"
                folder.mkdir()
                count = [0]

                def answer(*given, number=number, first=first, count=count, folder=folder, **how):
                    about = given[0] if given else None
                    if isinstance(about, str | Path) and folder not in [Path(about), *Path(about).parents]:
                        return real(*given, **how)
                    count[0] += 1
                    if count[0] > first:
                        raise OSError(number, os.strerror(number))
                    return real(*given, **how)

                host = MachineHost()
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(where, call, answer)
                    run = Run(host, folder, final)
                if "could not be removed" not in fact_of(run.error or ValueError()) and call != "unlink":
                    run.account_is_true()
                assert host.machine.truth().condition is (
                    Condition.GONE if run.error is None and final is FinalState.DESTROY else Condition.RUNNING
                )
                host.close()


# ---- memory --------------------------------------------------------------------------------------


class Destroying(RestoringHost):
    """A host on which a domain may be impossible to destroy; `destroys`: how often it can be tried in vain."""

    cannot = False

    def destroy(self, domid: int, _uuid: object) -> None:
        if self.cannot:
            raise XenError("xc_domain_destroy", errno.EBUSY, domid=domid)
        super().destroy(domid, _uuid)


@pytest.mark.parametrize("cannot", [False, True], ids=["destroyed", "not destroyed"])
@pytest.mark.parametrize("number", [errno.ENOMEM, errno.E2BIG, errno.EBUSY], ids=errno.errorcode.get)
@pytest.mark.parametrize("kind", MAKERS)
def test_a_domain_that_gets_no_more_memory_at_any_step_is_left_or_not_as_is_said(
    tmp_path, monkeypatch, kind, number, cannot
):
    saved = (MemoryDomain.pvh if kind == "pvh" else MemoryDomain.pv)(300)
    path = image_in(tmp_path, saved)
    populate, count = MemoryDomain.populate, 0

    def counting(self: MemoryDomain, pfns: object) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise XenError("xc_domain_populate_physmap_exact", number, domid=5)
        populate(self, pfns)  # type: ignore[arg-type]

    monkeypatch.setattr(MemoryDomain, "populate", counting)
    most = 1 << 30
    restored = RestoringHost(MemoryRestore(empty_like(saved)))
    restore_domain(RestoreRequest(str(path), watch=False), Silence(), host=restored)
    for most in range(count):
        count = 0
        with each_noted(f"call {most}"):
            host = Destroying(MemoryRestore(empty_like(saved)))
            host.cannot = cannot
            report = RestoreReport()
            with pytest.raises(XenError) as caught:
                restore_domain(RestoreRequest(str(path), watch=False), Silence(), report, host=host)
            told, advised = fact_of(caught.value), {one.remedy for one in remedies_of(caught.value)}
            assert ("no domain was left" in told) == (not host.alive) == (not cannot)
            assert ("domain 5 is incomplete" in told) == (Remedy.DESTROY_LEFT in advised) == cannot
            assert host.running == set()
            with suppress(BufferError):
                host.restored.domain.close()
