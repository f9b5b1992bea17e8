"""Putting a domain right: what is done follows from what the domain looks like, wherever its saver died."""

from __future__ import annotations

import dataclasses
import uuid
from types import SimpleNamespace

import pytest

try:
    import pyxc  # noqa: F401
except ImportError as error:
    pytest.skip(f"needs the compiled binding: {error}", allow_module_level=True)

from saverestore.guest.arm64 import journal as journals
from saverestore.guest.arm64 import resuming, vcpu
from saverestore.guest.arm64.journal import Journal
from saverestore.testing.store import MemoryStore

UUID = uuid.UUID("d29bd8ec-a490-455e-ae19-9949c59b62a1")


def context(number: int) -> vcpu.Context:
    names = [f.name for f in dataclasses.fields(vcpu.Context) if f.name not in ("x", "online")]
    values = dict.fromkeys(names, 1073741825 + number)
    return vcpu.Context(x=tuple(range(31)), **values, online=True)


GUESTS_OWN = (context(0), context(1))


def in_stub(number: int, verdict: int) -> vcpu.Context:
    begun = vcpu.into_stub(GUESTS_OWN[number], number, 3, 0, run=True)
    return dataclasses.replace(begun, x=(*begun.x[:30], verdict))


class FakeDomain:
    """A domain's state as Xen has it, and what was done to it, in order. A stub ends when it is waited for."""

    def __init__(self, contexts, *, paused=False, suspended=False) -> None:
        self.contexts = list(contexts)
        self.paused = paused
        self.suspended = suspended
        self.done: list[str] = []
        self.journals = list
        self.names_when_it_ran: list[list[str]] = []

    def domain(self, _domid: int) -> SimpleNamespace:
        return SimpleNamespace(paused=self.paused, suspended=self.suspended)

    def _runs(self, what: str) -> None:
        self.done.append(what)
        self.names_when_it_ran.append(self.journals())
        if self.paused or self.suspended:
            return
        ended = [one for one in self.contexts if one.has_ended]
        assert not ended, "what has run to its end must not run on: its page may be gone"

    def wait(self) -> None:
        assert not self.paused and not self.suspended, "waited for what cannot run"
        self.done.append("wait")
        for number, one in enumerate(self.contexts):
            if one.in_stub and one.online:
                self.contexts[number] = in_stub(number, vcpu.DONE)

    def pause(self, _domid: int) -> None:
        self.done.append("pause")
        self.paused = True

    def unpause(self, _domid: int) -> None:
        self.paused = False
        self._runs("unpause")

    def resume(self, _domid: int) -> None:
        self.suspended = False
        self._runs("resume")


@pytest.fixture
def recover_by_journal(monkeypatch, tmp_path):
    journal = Journal(1, UUID, GUESTS_OWN, 0x41234, bytes(4096))

    def run(domain: FakeDomain) -> list[str]:
        journals.write(journal, tmp_path)
        domain.journals = lambda: [path.suffix for path in tmp_path.iterdir()]
        store = MemoryStore()
        store.moments.on("resume", 0, lambda: domain.done.append("store"))
        handles = SimpleNamespace(xen=domain, store=store)
        monkeypatch.setattr(resuming, "get_context", lambda h, d, number: domain.contexts[number])

        def set_context(_handles, _domid, number, new):
            assert domain.paused or domain.suspended, "contexts are set while the domain runs"
            domain.contexts[number] = new

        monkeypatch.setattr(resuming, "set_context", set_context)
        monkeypatch.setattr(resuming, "release_scratch", lambda h, d, gfns: domain.done.append("release"))
        monkeypatch.setattr(resuming, "undo_channel", lambda h, journal: domain.done.append("channel"))
        monkeypatch.setattr(resuming, "wait_for_stub", lambda h, d, on: domain.wait())
        said = resuming.recover_by_journal(handles, journal, tmp_path)
        assert list(tmp_path.iterdir()) == []
        return said

    return run


def goes_on(domain: FakeDomain) -> bool:
    cancelled = (GUESTS_OWN[0].with_x0(resuming.CANCELLED), GUESTS_OWN[1])
    return tuple(domain.contexts) == cancelled and not domain.paused and not domain.suspended


def test_vcpus_that_ended_a_stub_get_their_own_registers_before_anything_runs(recover_by_journal):
    domain = FakeDomain([in_stub(0, vcpu.DONE), in_stub(1, vcpu.FAULTED)], paused=True)
    recover_by_journal(domain)
    assert goes_on(domain)
    assert domain.done == ["channel", "release", "store", "unpause"]
    assert domain.names_when_it_ran == [[".settled"]]


def test_a_stub_under_way_comes_to_its_end_first(recover_by_journal):
    domain = FakeDomain([in_stub(0, 0), in_stub(1, 0)])
    recover_by_journal(domain)
    assert goes_on(domain)
    assert domain.done[:4] == ["wait", "pause", "channel", "release"]


def test_a_stub_that_was_paused_midway_comes_to_its_end_first(recover_by_journal):
    domain = FakeDomain([in_stub(0, 0), dataclasses.replace(in_stub(1, 0), online=False)], paused=True)
    recover_by_journal(domain)
    assert goes_on(domain)
    assert domain.done[0] == "unpause"


def test_a_saver_that_died_before_the_stub_was_started(recover_by_journal):
    domain = FakeDomain([in_stub(0, 0), GUESTS_OWN[1]], suspended=True)
    recover_by_journal(domain)
    assert goes_on(domain)
    assert domain.done == ["channel", "release", "resume", "store"]


def test_a_saver_that_died_right_after_its_journal(recover_by_journal):
    domain = FakeDomain(GUESTS_OWN, suspended=True)
    assert recover_by_journal(domain) == ["it was suspended and has been resumed"]
    assert goes_on(domain)


def test_a_saver_that_died_when_all_was_right_but_the_pause(recover_by_journal):
    domain = FakeDomain([GUESTS_OWN[0].with_x0(1), GUESTS_OWN[1]], paused=True)
    assert recover_by_journal(domain) == ["it was paused and has been unpaused"]
    assert goes_on(domain)


def test_a_domain_that_has_gone_on_already_keeps_the_registers_that_it_has(recover_by_journal):
    elsewhere = [dataclasses.replace(one, pc=0x7777_0001) for one in GUESTS_OWN]
    domain = FakeDomain(elsewhere)
    assert recover_by_journal(domain) == []
    assert domain.contexts == elsewhere


def test_a_second_attempt_after_the_journal_was_settled_touches_nothing_of_the_guests(monkeypatch, tmp_path):
    """xenstored did not answer: the domain may have run by the second attempt."""
    journal = Journal(1, UUID, GUESTS_OWN, 0x41234, bytes(4096))
    journals.write(journal, tmp_path)
    journals.settle(1, UUID, tmp_path)
    domain = FakeDomain(GUESTS_OWN, paused=True)
    monkeypatch.setattr(resuming, "get_context", lambda h, d, number: domain.contexts[number])
    monkeypatch.setattr(resuming, "undo_channel", lambda *_: domain.done.append("channel"))
    monkeypatch.setattr(resuming, "release_scratch", lambda *_: domain.done.append("release"))
    handles = SimpleNamespace(xen=domain, store=MemoryStore())
    assert resuming.recover_by_journal(handles, journal, tmp_path) == ["it was paused and has been unpaused"]
    assert domain.done == ["unpause"]


def test_one_whose_journal_is_settled_is_let_go_on_and_nothing_of_it_is_touched(tmp_path):
    journals.write(Journal(1, UUID, GUESTS_OWN, 0x41234, bytes(4096)), tmp_path)
    journals.settle(1, UUID, tmp_path)
    journals.settle(1, UUID, tmp_path)
    domain = FakeDomain(GUESTS_OWN, paused=True)
    handles = SimpleNamespace(xen=domain, store=MemoryStore())
    info = SimpleNamespace(domid=1, uuid=UUID, suspended=False)
    assert resuming.recover(handles, info, tmp_path) == ["it was paused and has been unpaused"]
    assert domain.done == ["unpause"]
    assert list(tmp_path.iterdir()) == []
