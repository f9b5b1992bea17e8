"""A guest that suspends after its saver has given up is resumed, unless somebody else has asked it."""

from __future__ import annotations

import errno
import uuid
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from pyxc import XenError
from saverestore.errors import DomainError, ErrorName
from saverestore.operations import late
from saverestore.testing.store import MemoryStore
from saverestore.toolstack import moving

UUID = uuid.UUID(int=7)
CONTROL = "/local/domain/7/control/shutdown"


class Guest:
    """A domain that has taken a request to suspend; each look at it is an `on`."""

    def __init__(self, monkeypatch) -> None:
        self.store = MemoryStore({CONTROL: "", "/local/domain/7/name": "web1"})
        self.handles = SimpleNamespace(xen=SimpleNamespace(domain=self._domain), store=self.store)
        self.at: dict[int, object] = {}
        self.looks = 0
        self.suspended = self.gone = self.crashed = False
        self.busy = 0
        self.recovered = 0
        monkeypatch.setattr(late, "POLL_S", 0.001)
        monkeypatch.setattr(late, "locked", self._locked)
        monkeypatch.setattr(late, "recover_locked", self._recover)

    def _domain(self, domid: int) -> SimpleNamespace:
        self.looks += 1
        if (do := self.at.get(self.looks)) is not None:
            do()
        if self.gone:
            raise XenError("xc_domain_getinfolist", errno.ESRCH, domid=domid)
        return SimpleNamespace(
            domid=domid,
            uuid=UUID,
            dying=False,
            shutdown=self.suspended or self.crashed,
            suspended=self.suspended,
        )

    @contextmanager
    def _locked(self, _domain: object):
        if self.busy:
            self.busy -= 1
            raise DomainError("busy", name=ErrorName.DOMAIN_BUSY)
        yield

    def _recover(self, *_: object) -> list[str]:
        self.recovered += 1
        self.suspended = False
        return ["it was suspended and resumes"]

    def watch(self, seconds: float = 10.0) -> str:
        return late.watch_for_late(self.handles, 7, UUID, seconds=seconds)

    def set(self, **state: bool):
        return lambda: vars(self).update(state)


@pytest.fixture
def guest(monkeypatch):
    made = Guest(monkeypatch)
    with made.store:
        yield made


def test_a_guest_that_suspends_late_is_resumed(guest):
    guest.at[3] = guest.set(suspended=True)
    assert guest.watch() == "it was suspended and resumes"
    assert guest.recovered == 1


def test_one_that_never_suspends_is_left_alone_after_a_while(guest):
    assert guest.watch(0.05) == "it did not suspend within 0 s"
    assert guest.recovered == 0


@pytest.mark.parametrize("values", [["suspend"], ["suspend", ""]], ids=["asked", "asked and answered"])
@pytest.mark.parametrize("between", [1, 0], ids=["before", "at once"])
def test_one_that_somebody_else_asks_is_theirs(guest, values, between):
    def ask() -> None:
        for value in values:
            guest.store.write(CONTROL, value)

    def suspend() -> None:
        if not between:
            ask()
        guest.suspended = True

    if between:
        guest.at[2] = ask
    guest.at[2 + between] = suspend
    assert guest.watch() == "somebody else has asked it to suspend"
    assert guest.recovered == 0


@pytest.mark.parametrize("value", ["poweroff", "", "s3"])
def test_a_write_that_asks_for_something_else_leaves_its_suspension_to_us(guest, value):
    """A guest may answer twice; and one that is to power off must run for that."""
    guest.at[2] = lambda: guest.store.write(CONTROL, value)
    guest.at[4] = guest.set(suspended=True)
    assert guest.watch() == "it was suspended and resumes"


def test_a_request_written_while_the_node_is_read_is_seen(guest):
    """Between the answer to the read and a look at the watch."""
    guest.store.moments.on("read", 2, lambda: guest.store.write(CONTROL, ""))
    guest.store.moments.on("read", 3, lambda: guest.store.write(CONTROL, "suspend"))
    guest.at[3] = guest.set(suspended=True)
    assert guest.watch() == "somebody else has asked it to suspend"


def test_somebody_who_writes_there_without_end_cannot_keep_it_from_ending(guest, monkeypatch):
    """Each event that is taken is followed by another."""
    take = guest.store.take_watch_event

    def taking() -> tuple[str, str] | None:
        guest.store.write(CONTROL, "")
        return take()

    monkeypatch.setattr(guest.store, "take_watch_event", taking)
    assert guest.watch() == "somebody else has asked it to suspend"


def test_one_that_somebody_else_had_asked_before_is_theirs_too(guest):
    guest.store.write(CONTROL, "suspend")
    assert guest.watch() == "somebody else has asked it to suspend"


@pytest.mark.parametrize(("state", "said"), [("gone", "it is gone"), ("crashed", "it has stopped")])
def test_one_that_has_gone_or_stopped_is_not_waited_for(guest, state, said):
    guest.at[2] = guest.set(**{state: True})
    assert guest.watch() == said


def test_while_its_saver_still_holds_the_lock_it_is_waited_for(guest):
    guest.at[1] = guest.set(suspended=True)
    guest.busy = 2
    assert guest.watch() == "it was suspended and resumes"
    assert guest.recovered == 1


def test_a_domain_that_moves_to_another_host_is_left_alone(guest):
    """A migration that was killed after it granted the domain: the other host may run it."""
    moving.note(guest.store, 7, "m")
    guest.at[2] = guest.set(suspended=True)
    assert guest.watch() == "it moves to another host, which may run it"
    assert (guest.recovered, guest.suspended) == (0, True)


def test_what_resumes_a_domain_is_loaded_before_it_is_waited_for(monkeypatch):
    """This package may be replaced or removed in those minutes."""
    did = []

    @contextmanager
    def open_handles():
        did.append("opened")
        yield

    monkeypatch.setattr(late, "this_host", lambda: SimpleNamespace(of_config=lambda _: did.append("loaded")))
    monkeypatch.setattr(late, "open_handles", open_handles)
    monkeypatch.setattr(late, "watch_for_late", lambda *_, seconds: "it is gone")
    assert late.resume_if_late(7, UUID) == "it is gone"
    assert did == ["loaded", "opened"]
