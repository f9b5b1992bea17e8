"""A guest is asked to suspend through xenstore, and the request is taken back where it does not answer."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

try:
    from pyxc import XenError
except ImportError as error:
    pytest.skip(f"needs the compiled binding: {error}", allow_module_level=True)

from saverestore.errors import DomainError, ErrorName, Interrupted, Remedy
from saverestore.guest.common import suspend
from saverestore.guest.common.suspend import REQUEST, Suspender, withdraw_request
from saverestore.interrupts import handled
from saverestore.testing.store import MemoryStore

DOMID = 7
CONTROL = f"/local/domain/{DOMID}/control/shutdown"
TIMEOUT_S = 0.05
ANSWER = 5
"""The number of the first read that looks for the guest's answer: before it, what kind of request, whether it can
suspend, whether the domain is still there, and whether a request is there already."""


class Guest:
    """A domain that runs; `suspends` is what its kernel does with a request. Also the little of Xen that is asked."""

    def __init__(self) -> None:
        self.store = MemoryStore({CONTROL: "", f"/local/domain/{DOMID}/name": "web1"})
        self.info = SimpleNamespace(dying=False, shutdown=False, suspended=False, shutdown_reason=0)
        self.resumed = 0

    def domain(self, _domid: int) -> SimpleNamespace:
        return self.info

    def answers(self, moment: str, number: int, how: Callable[[], None]) -> None:
        """Do this at a call on xenstore, as if the guest did it at the same time."""
        self.store.moments.on(moment, number, how)

    def suspends(self) -> None:
        self.store.write(CONTROL, "")
        self.info.shutdown = self.info.suspended = True

    def resumes(self) -> None:
        self.info.shutdown = self.info.suspended = False
        self.resumed += 1

    def suspender(self) -> Suspender:
        return Suspender(self, self.store, DOMID, timeout_s=TIMEOUT_S, resume_domain=self.resumes)


@pytest.fixture
def guest():
    found = Guest()
    with found.store:
        yield found


def nothing_is_left_of_the_request(guest: Guest) -> bool:
    while guest.store.take_watch_event() is not None:
        pass
    guest.store.release_domain(99)  # a watch that was left behind would fire
    return guest.store.read(CONTROL) == "" and guest.store.take_watch_event() is None


def test_a_guest_that_answers_is_suspended_and_resumes_once(guest):
    guest.answers("read", ANSWER, guest.suspends)
    suspender = guest.suspender()
    suspender.suspend()
    assert guest.info.suspended
    assert nothing_is_left_of_the_request(guest)
    suspender.resume()
    suspender.resume()
    assert guest.resumed == 1


@pytest.mark.parametrize(
    "port", ["²", "٣", "99999999999999", str(1 << 31), "-1", "0x5", "1_0", "9" * 3000, " "]
)
def test_a_guest_whose_suspend_channel_is_no_port_is_asked_through_xenstore(guest, port):
    """The node is the guest's own to write."""
    guest.store.write(f"/local/domain/{DOMID}/device/suspend/event-channel", port)
    guest.answers("read", ANSWER, guest.suspends)
    guest.suspender().suspend()
    assert guest.info.suspended


@pytest.mark.parametrize(("text", "port"), [("5", 5), (" 12\n", 12), (str((1 << 31) - 1), (1 << 31) - 1)])
def test_a_guest_with_a_suspend_channel_is_sent_an_event(guest, monkeypatch, text, port):
    asked: list[int] = []
    monkeypatch.setattr(Suspender, "_suspend_by_event", lambda _self, number: asked.append(number))
    guest.store.write(f"/local/domain/{DOMID}/device/suspend/event-channel", text)
    guest.suspender().suspend()
    assert asked == [port]


def test_a_guest_that_says_it_cannot_is_not_asked(guest):
    guest.store.write(f"/local/domain/{DOMID}/control/feature-suspend", "0")
    suspender = guest.suspender()
    with pytest.raises(DomainError, match="reports that it cannot suspend"):
        suspender.suspend()
    assert nothing_is_left_of_the_request(guest)
    suspender.resume()
    assert guest.resumed == 0


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("PV drivers of a disk are too old", "PV drivers of a disk are too old"),
        ("a\x1b[2Jb\n" + 500 * "x", "a [2Jb " + 193 * "x"),
    ],
)
def test_a_guest_that_says_why_it_cannot_is_not_asked(guest, reason, shown):
    """Windows with a device whose driver cannot suspend: asked all the same, it crashes."""
    guest.store.write(f"/local/domain/{DOMID}/data/cant_suspend_reason", reason)
    suspender = guest.suspender()
    with pytest.raises(DomainError) as caught:
        suspender.suspend()
    assert str(caught.value) == f"domain 7 reports that it cannot suspend ({shown})"
    assert caught.value.name is ErrorName.DOMAIN_CANNOT_SUSPEND
    assert guest.store.read(CONTROL) == ""


def test_from_a_guest_that_does_not_answer_the_request_is_taken_back(guest):
    suspender = guest.suspender()
    with pytest.raises(DomainError, match="the request was withdrawn"):
        suspender.suspend()
    assert nothing_is_left_of_the_request(guest)
    suspender.resume()
    assert guest.resumed == 0


def test_a_guest_that_answers_while_the_request_is_taken_back_is_suspended(guest):
    guest.answers("transaction_end", 1, guest.suspends)
    guest.suspender().suspend()
    assert guest.info.suspended
    assert guest.store.moments.calls.count("transaction_start") == 3
    assert nothing_is_left_of_the_request(guest)


def test_a_guest_that_takes_the_request_and_stays_awake_may_still_suspend_later(guest):
    guest.answers("read", ANSWER, lambda: guest.store.write(CONTROL, ""))
    with pytest.raises(DomainError, match="took the request to suspend, but did not"):
        guest.suspender().suspend()
    assert nothing_is_left_of_the_request(guest)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"dying": True}, "is being destroyed instead of suspending"),
        ({"shutdown": True, "shutdown_reason": 3}, "crashed instead of suspending"),
    ],
)
def test_a_guest_that_stops_otherwise_is_reported_as_such(guest, state, reason):
    guest.answers("read", ANSWER, lambda: vars(guest.info).update(state))
    with pytest.raises(DomainError, match=reason):
        guest.suspender().suspend()


# ---- one limit, and a signal at any moment ---------------------------------------------------------


def test_one_limit_holds_for_answering_and_suspending(guest, monkeypatch):
    """A guest that answers just in time has used its time up."""
    now = [0.0]
    monkeypatch.setattr(suspend.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(suspend.Suspender, "_wait_for_event", lambda *_: now.__setitem__(0, now[0] + 1))

    def answer() -> None:
        guest.store.write(CONTROL, "")

    guest.answers("read", ANSWER + 3, answer)
    suspender = Suspender(guest, guest.store, DOMID, timeout_s=5)
    with pytest.raises(DomainError, match="took the request to suspend, but did not suspend within 5 s"):
        suspender.suspend()
    assert now[0] <= 6


def test_a_guest_that_has_taken_the_request_is_not_waited_for_long_in_a_shield(guest, monkeypatch):
    monkeypatch.setattr(suspend, "GRACE_S", 0.05)
    guest.answers("read", ANSWER, lambda: guest.store.write(CONTROL, ""))
    suspender = Suspender(guest, guest.store, DOMID, timeout_s=0.05, resume_domain=guest.resumes)
    with pytest.raises(DomainError):
        suspender.suspend()
    assert not suspender.is_late
    before = time.monotonic()
    suspender.resume()
    assert time.monotonic() - before < 5
    assert suspender.is_late
    assert guest.resumed == 0


def test_a_signal_while_a_guest_makes_up_its_mind_is_heeded_at_once(guest, monkeypatch):
    monkeypatch.setattr(suspend, "GRACE_S", 0.05)

    def acknowledge() -> None:
        guest.store.write(CONTROL, "")
        os.kill(os.getpid(), signal.SIGINT)

    guest.answers("read", ANSWER, acknowledge)
    suspender = Suspender(guest, guest.store, DOMID, timeout_s=60, resume_domain=guest.resumes)
    before = time.monotonic()
    with handled(), pytest.raises(Interrupted):
        suspender.suspend()
    suspender.resume()
    assert time.monotonic() - before < 5
    assert suspender.is_late


def test_a_guest_that_is_destroyed_just_before_it_is_asked_leaves_no_request_in_xenstore(guest):
    guest.answers("transaction_start", 0, lambda: guest.store.remove(f"/local/domain/{DOMID}"))
    suspender = guest.suspender()
    with pytest.raises(DomainError, match="was destroyed instead of suspending"):
        suspender.suspend()
    suspender.resume()
    assert guest.store.list("/local/domain") == []


def test_a_guest_that_suspends_in_moments_is_resumed_at_once(guest):
    guest.answers("read", ANSWER, lambda: guest.store.write(CONTROL, ""))
    suspender = guest.suspender()
    with pytest.raises(DomainError):
        suspender.suspend()
    guest.info.shutdown = guest.info.suspended = True
    suspender.resume()
    assert not suspender.is_late
    assert guest.resumed == 1


@pytest.mark.parametrize("state", [{"dying": True}, {"shutdown": True, "shutdown_reason": 3}])
def test_a_guest_that_has_stopped_is_nothing_to_resume_and_no_failure(guest, state):
    guest.answers("read", ANSWER, lambda: vars(guest.info).update(state))
    suspender = guest.suspender()
    with pytest.raises(DomainError):
        suspender.suspend()
    suspender.resume()
    assert not suspender.is_late
    assert suspender.has_ended
    assert guest.resumed == 0


def test_a_guest_that_is_being_destroyed_when_it_had_suspended_is_nothing_to_resume(guest):
    """Its pages may be held for long: calls on it fail."""
    guest.answers("read", ANSWER, guest.suspends)
    suspender = guest.suspender()
    suspender.suspend()
    guest.info.dying = True
    suspender.resume()
    assert (guest.resumed, suspender.has_ended) == (0, True)


def test_a_guest_that_runs_again_has_not_ended(guest):
    guest.answers("read", ANSWER, guest.suspends)
    suspender = guest.suspender()
    suspender.suspend()
    suspender.resume()
    assert not suspender.has_ended
    guest.answers("read", ANSWER + 3, lambda: None)
    with pytest.raises(DomainError, match="did not answer"):
        suspender.suspend()
    suspender.resume()
    assert not suspender.has_ended


def test_a_guest_that_is_destroyed_while_it_is_asked_is_told_as_that(guest, monkeypatch):
    def gone(_domid: int) -> None:
        raise XenError("xc_domain_getinfolist", errno.ESRCH, domid=DOMID)

    suspender = guest.suspender()
    monkeypatch.setattr(guest, "domain", gone)
    with pytest.raises(DomainError, match="was destroyed instead of suspending") as caught:
        suspender.suspend()
    assert caught.value.name is ErrorName.DOMAIN_STOPPED
    suspender.resume()
    assert guest.resumed == 0
    assert suspender.has_ended


# ---- other programs ask, too ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "what", "remedies"),
    [
        ("suspend", "suspend", [Remedy.TRY_AGAIN, Remedy.RECOVER]),
        ("poweroff", "power off", []),
        ("reboot", "reboot", []),
    ],
)
def test_a_guest_that_has_still_to_answer_another_program_is_not_asked(guest, value, what, remedies):
    """Two programs that suspend a domain would both save it, and both take it for theirs."""
    guest.store.write(CONTROL, value)
    suspender = guest.suspender()
    with pytest.raises(DomainError, match=f"has asked domain 7 to {what}, and it has not answered") as caught:
        suspender.suspend()
    assert caught.value.name is ErrorName.DOMAIN_BUSY
    assert [advice.remedy for advice in caught.value.remedies] == remedies
    suspender.resume()
    assert guest.store.read(CONTROL) == value, "the other program's request is as it was"
    assert guest.resumed == 0


def test_what_a_guest_has_left_unread_because_it_does_not_know_it_is_no_request(guest):
    guest.store.write(CONTROL, "s3")
    guest.answers("read", ANSWER, guest.suspends)
    guest.suspender().suspend()
    assert guest.info.suspended


def test_a_request_that_is_written_while_it_is_looked_for_another_is_not_overwritten(guest):
    guest.answers("transaction_end", 0, lambda: guest.store.write(CONTROL, "poweroff"))
    with pytest.raises(DomainError, match="to power off, and it has not answered"):
        guest.suspender().suspend()
    assert guest.store.read(CONTROL) == "poweroff"


def test_a_request_that_another_program_overwrites_is_not_waited_for(guest, monkeypatch):
    monkeypatch.setattr(suspend, "GRACE_S", 0.05)
    guest.answers("read", ANSWER + 1, lambda: guest.store.write(CONTROL, "poweroff"))
    suspender = Suspender(guest, guest.store, DOMID, timeout_s=60, resume_domain=guest.resumes)
    with pytest.raises(DomainError, match="has asked domain 7 to power off while it was asked to suspend"):
        suspender.suspend()
    suspender.resume()
    assert guest.store.read(CONTROL) == "poweroff"
    # It may have taken ours just before.
    assert suspender.is_late
    assert guest.resumed == 0


def test_another_programs_request_is_not_withdrawn_when_the_guest_had_taken_ours(guest, monkeypatch):
    """It would be taken for ours, and a guest that suspends late would have nobody to resume it."""
    monkeypatch.setattr(suspend, "GRACE_S", 0.05)
    guest.answers("read", ANSWER, lambda: guest.store.write(CONTROL, ""))
    suspender = guest.suspender()
    with pytest.raises(DomainError, match="took the request to suspend, but did not"):
        suspender.suspend()
    guest.store.write(CONTROL, REQUEST)
    suspender.resume()
    assert guest.store.read(CONTROL) == REQUEST
    assert suspender.is_late


def test_a_guest_that_answers_while_the_request_is_taken_back_had_taken_it(guest, monkeypatch):
    monkeypatch.setattr(suspend, "GRACE_S", 0.05)
    guest.answers("transaction_end", 1, lambda: guest.store.write(CONTROL, ""))
    suspender = guest.suspender()
    with pytest.raises(DomainError, match="took the request to suspend, but did not"):
        suspender.suspend()
    guest.store.write(CONTROL, REQUEST)
    suspender.resume()
    assert (guest.store.read(CONTROL), suspender.is_late) == (REQUEST, True)


def test_a_guest_that_suspends_and_is_then_asked_to_power_off_has_suspended(guest):
    def both() -> None:
        guest.suspends()
        guest.store.write(CONTROL, "poweroff")

    guest.answers("read", ANSWER + 1, both)
    suspender = guest.suspender()
    suspender.suspend()
    suspender.resume()
    assert guest.resumed == 1


def test_events_without_end_keep_nobody_from_looking_at_the_clock(guest, monkeypatch):
    monkeypatch.setattr(guest.store, "take_watch_event", lambda: ("@releaseDomain", "x"))
    assert suspend.take_events(guest.store) == suspend.MOST_EVENTS
    with pytest.raises(DomainError, match="did not answer the request"):
        guest.suspender().suspend()


def test_a_request_is_withdrawn_only_where_there_is_one(guest):
    assert not withdraw_request(guest.store, DOMID)
    guest.store.write(CONTROL, REQUEST)
    assert withdraw_request(guest.store, DOMID)
    assert guest.store.read(CONTROL) == ""


def test_a_failure_of_xenstore_is_not_mistaken_for_a_conflict(guest):
    guest.store.write(CONTROL, REQUEST)
    guest.store.moments.fail("transaction_end", 0, XenError("xs_transaction_end", errno.EIO))
    with pytest.raises(XenError, match="EIO"):
        withdraw_request(guest.store, DOMID)
