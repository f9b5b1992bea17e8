"""A guest is asked to suspend through xenstore, and the request is taken back where it does not answer."""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import SimpleNamespace

import pytest

try:
    from pyxc import XenError
except ImportError as error:
    pytest.skip(f"needs the compiled binding: {error}", allow_module_level=True)

from saverestore.errors import DomainError
from saverestore.guest.common.suspend import REQUEST, Suspender, withdraw_request
from saverestore.testing.store import MemoryStore

DOMID = 7
CONTROL = f"/local/domain/{DOMID}/control/shutdown"
TIMEOUT_S = 0.05


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
    guest.answers("read", 2, guest.suspends)
    suspender = guest.suspender()
    suspender.suspend()
    assert guest.info.suspended
    assert nothing_is_left_of_the_request(guest)
    suspender.resume()
    suspender.resume()
    assert guest.resumed == 1


def test_a_guest_that_says_it_cannot_is_not_asked(guest):
    guest.store.write(f"/local/domain/{DOMID}/control/feature-suspend", "0")
    suspender = guest.suspender()
    with pytest.raises(DomainError, match="says that it cannot suspend"):
        suspender.suspend()
    assert nothing_is_left_of_the_request(guest)
    suspender.resume()
    assert guest.resumed == 0


def test_from_a_guest_that_does_not_answer_the_request_is_taken_back(guest):
    suspender = guest.suspender()
    with pytest.raises(DomainError, match="the request was withdrawn"):
        suspender.suspend()
    assert nothing_is_left_of_the_request(guest)
    suspender.resume()
    assert guest.resumed == 0


def test_a_guest_that_answers_while_the_request_is_taken_back_is_suspended(guest):
    guest.answers("transaction_end", 0, guest.suspends)
    guest.suspender().suspend()
    assert guest.info.suspended
    assert guest.store.moments.calls.count("transaction_start") == 2
    assert nothing_is_left_of_the_request(guest)


def test_a_guest_that_takes_the_request_and_stays_awake_may_still_suspend_later(guest):
    guest.answers("read", 2, lambda: guest.store.write(CONTROL, ""))
    with pytest.raises(DomainError, match="took the request to suspend but did not"):
        guest.suspender().suspend()
    assert nothing_is_left_of_the_request(guest)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"dying": True}, "somebody is destroying it"),
        ({"shutdown": True, "shutdown_reason": 3}, "crashed instead of suspending"),
    ],
)
def test_a_guest_that_stops_otherwise_is_reported_as_such(guest, state, reason):
    guest.answers("read", 2, lambda: vars(guest.info).update(state))
    with pytest.raises(DomainError, match=reason):
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
