"""Saves by the helper, driven by a fake libxl, of in-memory domains: every callback, and signals in each phase."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from uuid import UUID

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_libxl import SAVE_CALLBACKS, FakeLibxl
from memory_guests import MAKERS, assert_same, restored_from

from pyxc.control import ShutdownReason, XenVersion
from pyxc.sched import CpuPool, Scheduler, Share
from saverestore.errors import Advice, DomainError, ExitCode, Remedy
from saverestore.guest.common.handles import XenError
from saverestore.guest.ports import LogDirty
from saverestore.guest.x86.hvm import log_dirty_with
from saverestore.helper import saving, session
from saverestore.helper.arguments import SaveArguments, SaveFlag
from saverestore.helper.channel import LibxlGone
from saverestore.helper.messages import Level, MessageType
from saverestore.stream.layout import DomainType
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemorySave
from saverestore.testing.store import MemoryStore
from saverestore.toolstack import processor_cap

DOMID = 7
SIGNALS = [signal.SIGTERM, signal.SIGINT]


class AskingSave(MemorySave):
    """An in-memory domain that libxl suspends, and whose device model libxl has."""

    def __init__(self, domain: MemoryDomain, channel, suspender) -> None:
        super().__init__(domain)
        self._channel = channel
        self._suspender = suspender

    def open_log_dirty(self) -> LogDirty:
        if self.domain_type == DomainType.X86_PV:
            return super().open_log_dirty()
        return log_dirty_with(saving.LibxlEmulator(self._channel, DOMID), DOMID, super().open_log_dirty)

    def suspend(self) -> None:
        self._suspender.suspend()
        self.moments.reached("suspended")

    def resume(self) -> None:
        self._suspender.resume()


class Saved:
    """A domain, the helper saving it, and the libxl that asked for it."""

    def __init__(self, monkeypatch, tmp_path, kind: str, *, live: bool, dripping: bool = False) -> None:
        self.domain = MAKERS[kind]()
        self.hvm = kind == "pvh"
        self.image = tmp_path / "image"
        self.fd = os.open(self.image, os.O_RDWR | os.O_CREAT)
        self.libxl = FakeLibxl(SAVE_CALLBACKS, dripping=dripping)
        self.libxl.answers[MessageType.SUSPEND] = self._suspend
        self.flags = SaveFlag.LIVE if live else 0
        self.stream_type = 0
        self.guests: list[AskingSave] = []
        self.unmapped = 0
        self.resume = self.domain.resume
        self.on_guest = lambda guest: None
        monkeypatch.setattr(saving, "open_handles", self._handles)
        monkeypatch.setattr(saving, "_guest_of", self._guest_of)
        monkeypatch.setattr(saving, "name_of", lambda *_: "web1")
        monkeypatch.setattr(saving, "locked", lambda _: nullcontext())
        monkeypatch.setattr(saving, "Suspender", self._suspender_after_libxl)
        self.environment: dict[str, str] = {}
        self.became: dict[str, bool] = {}
        self.version = XenVersion(4, 17, ".3", "")
        self.store = MemoryStore()

    def _suspend(self) -> int:
        self.domain.suspend()
        return 1

    def _suspender_after_libxl(self, *_: object, requested: bool) -> SimpleNamespace:
        assert requested
        return SimpleNamespace(resume=self.resume, is_late=False)

    @contextmanager
    def _handles(self, **_: bool) -> Iterator[SimpleNamespace]:
        xen = SimpleNamespace(domain=self._info, domains=list, version=lambda: self.version)
        yield SimpleNamespace(xen=xen, store=self.store, memory=SimpleNamespace(unmap_lingering=self._unmap))

    def _info(self, domid: int) -> SimpleNamespace:
        if self.became.get("gone"):
            raise XenError("xc_domain_getinfolist", errno.ESRCH)
        suspended, crashed = self.domain.suspended, self.became.get("crashed", False)
        return SimpleNamespace(
            domid=domid,
            hvm=self.hvm,
            uuid=UUID(int=7),
            suspended=suspended,
            shutdown=suspended or crashed,
            shutdown_reason=ShutdownReason.CRASH if crashed else ShutdownReason.SUSPEND,
            dying=False,
            paused=False,
            cpupool=0,
        )

    def _unmap(self) -> None:
        self.unmapped += 1

    def _guest_of(self, channel, _handles, _domid, suspender) -> AskingSave:
        guest = AskingSave(self.domain, channel, suspender)
        self.guests.append(guest)
        self.on_guest(guest)
        return guest

    def run(self) -> int:
        """The helper's exit code; it has let go of everything by then."""
        arguments = SaveArguments(self.fd, -1, DOMID, self.flags, self.libxl.callbacks, self.stream_type)
        try:
            return session.serve(arguments, self.libxl.channel(), self.environment)
        finally:
            self.libxl.close()
            assert all(guest.buffers.nr_open == 0 for guest in self.guests)

    def errors(self) -> str:
        """What was logged as an error."""
        return "\n".join(text for level, text in self.libxl.logged if level >= Level.ERROR)


@pytest.fixture
def saved(monkeypatch, tmp_path):
    return lambda kind, **how: Saved(monkeypatch, tmp_path, kind, **how)


@pytest.mark.parametrize("dripping", [False, True])
@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_a_save_asks_in_order_and_writes_the_whole_domain(saved, kind, live, dripping):
    save = saved(kind, live=live, dripping=dripping)
    assert save.run() == 0
    qemu = [(MessageType.SWITCH_QEMU_LOGDIRTY, (DOMID, 1))] if live and kind == "pvh" else []
    off = [(MessageType.SWITCH_QEMU_LOGDIRTY, (DOMID, 0))] if live and kind == "pvh" else []
    assert save.libxl.messages == [
        *qemu,
        (MessageType.SUSPEND, ()),
        *off,
        (MessageType.COMPLETE, (0, 0)),
    ]
    assert save.domain.suspended
    assert save.errors() == ""
    assert_same(save.domain, restored_from(save.image.read_bytes(), save.domain))


@pytest.mark.parametrize("live", [False, True])
def test_libxl_waits_for_the_helpers_memory_unless_nothing_of_the_domain_is_in_it(saved, followed, live):
    """Of a save that is not live all of it is mapped at the end, and libxl may destroy the domain next."""
    save = saved("pvh", live=live)
    assert save.run() == 0
    assert (save.unmapped, followed) == ((1, [True]) if live else (0, []))


def test_libxl_waits_for_the_helpers_memory_after_a_save_that_failed(saved, followed):
    save = saved("pvh", live=True)
    save.libxl.answers[MessageType.SUSPEND] = 0
    assert save.run() == 0
    assert followed == []


@pytest.mark.parametrize("answer", [0, -1, 2])
def test_a_domain_that_libxl_could_not_suspend_is_a_failure_that_is_told(saved, answer):
    save = saved("pvh", live=True)
    save.libxl.answers[MessageType.SUSPEND] = answer
    assert save.run() == 0
    assert save.libxl.said(MessageType.COMPLETE)[0][0] == -1
    assert f"answered {answer}" in save.errors()
    assert not save.domain.suspended
    assert save.libxl.said(MessageType.SWITCH_QEMU_LOGDIRTY) == [(DOMID, 1), (DOMID, 0)]


def test_success_without_a_suspended_domain_is_not_believed(saved):
    save = saved("pv", live=False)
    save.libxl.answers[MessageType.SUSPEND] = 1
    assert save.run() == 0
    assert save.libxl.said(MessageType.COMPLETE)[0][0] == -1
    assert "answered 1; the domain is running" in save.errors()


def test_a_device_model_that_does_not_log_ends_the_save_before_anything_is_sent(saved):
    save = saved("pvh", live=True)
    save.libxl.answers[MessageType.SWITCH_QEMU_LOGDIRTY] = -1
    assert save.run() == 0
    assert save.libxl.types() == [MessageType.SWITCH_QEMU_LOGDIRTY, MessageType.COMPLETE]
    assert "device model" in save.errors()
    assert save.image.read_bytes() == b""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "moment",
    ["open_log_dirty", "static_records", "read_pages", "log_dirty.take", "suspended", "end_records"],
)
def test_a_signal_in_any_phase_is_told_as_eintr_with_log_dirty_off(saved, moment, number):
    save = saved("pvh", live=True)

    def send() -> None:
        os.kill(os.getpid(), number)

    save.on_guest = lambda guest: guest.moments.on(moment, 0, send)
    assert save.run() == 0
    (complete,) = save.libxl.said(MessageType.COMPLETE)
    assert complete == (-1, 4)
    assert "interrupted by" in save.errors()
    switched = save.libxl.said(MessageType.SWITCH_QEMU_LOGDIRTY)
    assert switched in ([], [(DOMID, 1), (DOMID, 0)])
    assert save.domain.dirty is None


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_libxl_suspends_waits_for_its_answer(saved, number):
    save = saved("pvh", live=True)

    def suspend() -> int:
        os.kill(os.getpid(), number)
        save.domain.suspend()
        return 1

    save.libxl.answers[MessageType.SUSPEND] = suspend
    assert save.run() == 0
    assert save.libxl.said(MessageType.COMPLETE) == [(-1, 4)]
    assert save.domain.suspended  # libxl's to resume: it is there


@pytest.mark.parametrize("when", [MessageType.SUSPEND, MessageType.COMPLETE])
def test_a_domain_whose_xl_is_killed_is_resumed(saved, when):
    save = saved("pvh", live=True)
    save.libxl.before[MessageType.SUSPEND] = save.domain.suspend
    save.libxl.answers[MessageType.SUSPEND] = 1
    save.libxl.dies_at = when
    with pytest.raises(LibxlGone) as gone:
        save.run()
    assert gone.value.exit_code == ExitCode.IO
    assert gone.value.__notes__[-1] == "domain 7 is running"
    assert not save.domain.suspended
    assert save.domain.dirty is None


@pytest.mark.parametrize("answers", [True, False])
def test_the_device_model_of_a_domain_whose_xl_is_killed_runs_again_or_is_said_not_to(
    saved, monkeypatch, answers
):
    """libxl stops it with the domain: without it the guest's disks do not answer."""
    recovered = []

    class Model:
        def __init__(self, _store, domid: int) -> None:
            self.domid = domid

        def recover(self) -> bool:
            assert save.domain.suspended  # in libxl's order
            recovered.append(self.domid)
            if not answers:
                raise DomainError("its device model does not answer")
            return True

    monkeypatch.setattr(saving, "DeviceModel", Model)
    save = saved("pvh", live=True)
    save.store.write("/libxl/7/type", "hvm")
    save.libxl.before[MessageType.SUSPEND] = save.domain.suspend
    save.libxl.dies_at = MessageType.SUSPEND
    with pytest.raises(LibxlGone) as gone:
        save.run()
    assert recovered == [DOMID]
    assert not save.domain.suspended
    assert gone.value.__notes__[-1] == "domain 7 is running" + (
        "" if answers else "; its device model may have stopped: its device model does not answer"
    )


def test_a_domain_that_cannot_be_resumed_once_xl_is_killed_is_named(saved):
    def refused() -> None:
        raise OSError(errno.EPERM, "not permitted")

    save = saved("pvh", live=True)
    save.libxl.before[MessageType.SUSPEND] = save.domain.suspend
    save.libxl.dies_at = MessageType.SUSPEND
    save.resume = refused
    with pytest.raises(
        session.NotResumed, match=r"libxl .*; domain 7 could not be resumed: .*not perm"
    ) as gone:
        save.run()
    assert gone.value.remedies == (Advice(Remedy.RECOVER, DOMID),)
    assert save.domain.suspended


@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGHUP])
def test_a_signal_while_a_domain_is_resumed_whose_xl_is_killed_does_not_keep_it_suspended(saved, number):
    """The terminal goes, and with it xl: SIGHUP is for the helper, too."""

    def resume() -> None:
        os.kill(os.getpid(), number)
        save.domain.resume()

    save = saved("pvh", live=True)
    save.libxl.before[MessageType.SUSPEND] = save.domain.suspend
    save.libxl.dies_at = MessageType.SUSPEND
    save.resume = resume
    before = signal.signal(number, lambda *_: pytest.fail("the signal is not heeded by us"))
    try:
        with pytest.raises(LibxlGone) as gone:
            save.run()
    finally:
        signal.signal(number, before)
    assert gone.value.__notes__[-1] == "domain 7 is running"
    assert not save.domain.suspended


def test_a_domain_that_libxl_was_not_asked_to_suspend_is_left_alone_when_xl_is_killed(saved):
    save = saved("pvh", live=True)
    save.libxl.dies_at = MessageType.SWITCH_QEMU_LOGDIRTY
    with pytest.raises(LibxlGone) as gone:
        save.run()
    assert not hasattr(gone.value, "__notes__")


def test_a_full_disk_is_told_with_its_errno(saved):
    save = saved("pv", live=False)
    os.dup2(os.open("/dev/full", os.O_WRONLY), save.fd)
    assert save.run() == 0
    assert save.libxl.said(MessageType.COMPLETE) == [(-1, 28)]
    assert "No space left" in save.errors()


@pytest.mark.parametrize(
    ("change", "what"), [({"stream_type": 1}, "checkpointed"), ({"callbacks": 0}, "no callback to suspend")]
)
def test_what_it_cannot_do_is_refused_before_the_domain_is_touched(saved, change, what):
    save = saved("pv", live=False)
    save.stream_type = change.get("stream_type", 0)
    save.libxl.callbacks = change.get("callbacks", SAVE_CALLBACKS)
    assert save.run() == 0
    assert save.libxl.types() == [MessageType.COMPLETE]
    assert what in save.errors()


def test_settings_that_make_no_sense_are_told_to_libxl(saved):
    save = saved("pv", live=False)
    save.environment["PYSAVE_DIRTY"] = "perhaps"
    assert save.run() == 0
    assert save.libxl.said(MessageType.COMPLETE)[0][0] == -1
    assert "$PYSAVE_DIRTY: dirty is 'perhaps'" in save.errors()


def test_without_a_log_of_written_pages_live_is_by_digests(saved):
    save = saved("pvh", live=True)
    save.on_guest = lambda guest: setattr(guest, "_has_log_dirty", False)
    assert save.run() == 0
    assert save.libxl.types() == [MessageType.SUSPEND, MessageType.COMPLETE]
    assert any("content digests" in text for _, text in save.libxl.logged)


def test_threads_are_gone_when_it_is_done(saved):
    save = saved("pv", live=True)
    save.run()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("pages")] == []


def test_on_a_hypervisor_that_loses_registers_a_pv_domain_is_refused_before_it_is_asked_to_suspend(saved):
    save = saved("pv", live=True)
    save.version = XenVersion(4, 21, ".0", "")
    assert save.run() == 0
    assert "loses r8 to r15" in save.errors()
    assert [type for type, _ in save.libxl.messages] == [MessageType.COMPLETE]
    assert not save.domain.suspended


def test_on_such_a_hypervisor_a_pvh_domain_is_saved_with_a_warning(saved):
    save = saved("pvh", live=False)
    save.version = XenVersion(4, 21, ".0", "")
    assert save.run() == 0
    assert any("loses r8 to r15" in text for level, text in save.libxl.logged if level == Level.WARN)
    assert save.domain.suspended


@pytest.mark.parametrize(
    ("state", "what"),
    [({"crashed": True}, "has crashed"), ({"gone": True}, "is gone")],
    ids=["crashed", "gone"],
)
def test_what_became_of_a_domain_instead_of_suspending_is_looked_up(saved, state, what):
    save = saved("pvh", live=False)

    def instead() -> int:
        save.became |= state
        return 0

    save.libxl.answers[MessageType.SUSPEND] = instead
    assert save.run() == 0
    assert f"the domain {what}" in save.errors()


def test_a_domain_that_is_gone_when_libxl_is_gone_needs_no_recovery(saved):
    save = saved("pvh", live=False)
    gone = LibxlGone("libxl has ended")
    save.became["gone"] = True
    session._resume(DOMID, gone)
    assert gone.__notes__ == [f"domain {DOMID} is gone"]


def test_a_cap_that_a_killed_save_has_left_is_put_back(saved, monkeypatch):
    caps = [10]
    monkeypatch.setattr(processor_cap.sched, "cpu_pool", lambda *_: CpuPool(Scheduler.CREDIT2, 4))
    monkeypatch.setitem(processor_cap.GETTERS, Scheduler.CREDIT2, lambda *_: Share(256, caps[-1]))
    monkeypatch.setitem(
        processor_cap.SETTERS, Scheduler.CREDIT2, lambda _xen, _domid, share: caps.append(share.cap)
    )
    save = saved("pvh", live=False)
    save.store.write(f"/local/domain/{DOMID}/pysave/cap", "0")
    assert save.run() == 0
    assert caps == [10, 0]
    assert save.store.read(f"/local/domain/{DOMID}/pysave/cap") is None
    assert any("was put back" in text for level, text in save.libxl.logged if level == Level.WARN)
