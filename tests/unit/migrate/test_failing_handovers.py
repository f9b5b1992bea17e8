"""What fails just where the domain is handed over: an entry of a journal, a message, a destination that hangs."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from table_host import Pair
from test_migrations import entry_that_fails

from saverestore.errors import Remedy, TransportError, XenRefused
from saverestore.migrate.channel import Channel
from saverestore.migrate.messages import MessageType
from saverestore.migrate.peers import InDoubt, MigrationAborted
from saverestore.migrate.source import HandOver
from saverestore.migrate.source_link import LinkOptions


@pytest.fixture
def pair(tmp_path) -> Pair:
    return Pair(tmp_path)


def test_an_end_of_the_image_that_could_not_be_said_is_not_waited_for(pair, monkeypatch):
    """The destination, which has not heard it, sends keepalives for ever."""
    say = HandOver._say

    def failing(self, message) -> None:
        if message.type is MessageType.STREAM_END:
            raise TransportError("the message is lost")
        say(self, message)

    monkeypatch.setattr(HandOver, "_say", failing)
    outcome = []

    def migrate() -> None:
        try:
            pair.migrate()
        except TransportError as error:
            outcome.append(error)

    thread = threading.Thread(target=migrate, daemon=True)
    thread.start()
    thread.join(10)
    assert [str(one) for one in outcome] == ["the message is lost"]
    pair.join()
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})
    assert pair.states() == (["ABORTED"], ["ABORTED"])


@pytest.mark.parametrize("kept", [False, True])
def test_a_grant_that_cannot_be_written_is_never_said_on_another_connection_either(pair, monkeypatch, kept):
    """The link breaks in that very moment. Recovery might find a journal without it, and resume the domain here."""
    ends, said = [], []

    def sockets():
        ends.append(socket.socketpair())
        return ends[-1]

    say = Channel.say

    def listened(channel, message) -> None:
        said.append(message.type)
        say(channel, message)

    pair.sockets = sockets
    monkeypatch.setattr(Channel, "say", listened)
    monkeypatch.setattr("saverestore.migrate.source.ASK_EVERY_S", 0.1)
    cut = lambda: ends[0][0].shutdown(socket.SHUT_RDWR)  # noqa: E731
    entry_that_fails(monkeypatch, pair.a, "GRANTED", kept=kept, then=cut)
    with pytest.raises(MigrationAborted):
        pair.migrate(settle_for_s=20.0)
    pair.join()
    assert len(ends) > 1
    assert MessageType.GRANT not in said
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})
    assert pair.states() == (["ABORTED"], ["ABORTED"])


@pytest.mark.parametrize("state", ["RECEIVING", "READY"])
@pytest.mark.parametrize("kept", [False, True])
def test_a_destination_that_cannot_write_down_how_far_it_is_leaves_nothing_and_says_why(
    pair, monkeypatch, kept, state
):
    entry_that_fails(monkeypatch, pair.b, state, kept=kept)
    with pytest.raises(MigrationAborted, match="b aborted the migration: the disk is broken"):
        pair.migrate()
    pair.join()
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})
    assert pair.states() == (["ABORTED"], ["ABORTED"])


def test_a_failure_once_ready_was_said_keeps_the_copy_until_the_source_has_spoken(pair, monkeypatch):
    """The restore's last step fails behind it: the source may have granted the domain by then."""

    @contextmanager
    def reserved(*_: object):
        yield
        if pair.states()[1] == ["READY"]:
            raise XenRefused("b is in trouble")

    pair.b.memory_reserved = reserved
    with pytest.raises(InDoubt):
        pair.migrate()
    pair.join()
    assert (pair.a.table(), pair.b.table()) == ({"web1": "suspended"}, {"web1--incoming": "paused"})
    assert pair.states() == (["GRANTED"], ["READY"])
    (error,) = pair.served
    assert error.__notes__ == ["its copy is kept here, complete and paused: the source may have granted it"]
    assert [one.remedy for one in error.remedies] == [Remedy.RECOVER_MIGRATION]


@pytest.mark.parametrize("hangs_again", [False, True])
def test_a_destination_that_is_alive_and_does_not_answer_to_the_grant_is_not_waited_for_without_an_end(
    pair, monkeypatch, hangs_again
):
    """Its disk hangs, or its Xen. It sends keepalives all the same, and signals are held back here by then.

    `hangs_again`: who answers on the next connection hangs, too.
    """
    may_end = threading.Event()
    outcome = []

    def migrate() -> None:
        try:
            outcome.append(pair.migrate(settle_for_s=1.0, link=LinkOptions(over_ssh=True, silence_s=1.0)))
        except InDoubt as error:
            outcome.append(error)

    if hangs_again:
        monkeypatch.setattr("saverestore.migrate.destination.answer", lambda *_: may_end.wait(30))
    pair.timeout_s = 1.0
    pair.b.handles.xen.unpause = lambda domid: may_end.wait(30) and pair.b.unpause(domid)
    thread = threading.Thread(target=migrate, daemon=True)
    thread.start()
    thread.join(15)
    ended = list(outcome)
    may_end.set()
    pair.join()
    thread.join(15)
    assert [type(one) for one in ended] == [InDoubt]
    assert ended[0].exit_code == 7
    assert (pair.a.table(), pair.b.table()) == ({"web1": "suspended"}, {"web1": "running"})
    assert pair.states() == (["GRANTED"], ["RUNNING"])


def test_a_connection_over_which_the_destination_has_confirmed_that_it_gave_up_has_no_deadline_afterwards(
    pair, monkeypatch
):
    deadlines = []
    confirmation = HandOver._confirmation

    def noted(self) -> str:
        text = confirmation(self)
        deadlines.append(self._channel.connection.deadline)
        return text

    monkeypatch.setattr(HandOver, "_confirmation", noted)
    save_guest = pair.a.save_guest

    def failing_guest(*given):
        guest = save_guest(*given)
        guest.moments.fail("suspend", 0, XenRefused("a is in trouble"))
        return guest

    pair.a.save_guest = failing_guest
    with pytest.raises(XenRefused) as caught:
        pair.migrate()
    pair.join()
    assert "b has nothing left of it" in caught.value.__notes__
    assert deadlines == [None]
