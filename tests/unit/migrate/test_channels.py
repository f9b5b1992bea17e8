"""Messages over a connection: silence, garbage, ends, and keepalives."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
import uuid
from typing import Any

import pytest
from two_channels import NAP_S, channels, greet_both

from saverestore import interrupts
from saverestore.errors import Interrupted
from saverestore.kernels.zeros import zeros
from saverestore.migrate import protocol
from saverestore.migrate.channel import SILENCE_S, Channel, SaidOtherwise
from saverestore.migrate.data import MessageSink, MessageSource
from saverestore.migrate.linking import heard_on
from saverestore.migrate.messages import (
    Abort,
    Aborted,
    Accepted,
    Busy,
    Grant,
    Join,
    KeepAlive,
    MessageType,
    ProtocolError,
    Ready,
    Running,
    StreamEnd,
)
from saverestore.migrate.peers import heard_of_grant
from saverestore.migrate.source_link import LimitedSink
from saverestore.transport.base import EndOfStream
from saverestore.transport.connection import BrokenPeer, PeerTimeout, SocketConnection, pair
from saverestore.transport.links import LinkedConnection
from saverestore.transport.sockets import Address, connect, notice_dead_links

ID = uuid.UUID(int=7)


def test_both_sides_greet_and_know_each_other():
    one, other = channels()
    with one, other:
        heard = greet_both(one, other)
    assert sorted(hello.journals for hello in heard) == ["aaaa", "bbbb"]


def test_a_peer_that_is_busy_is_kept_by_its_keepalives_and_one_that_is_silent_is_given_up():
    one, other = channels(timeout_s=0.5)
    with one, other:
        greet_both(one, other)
        begun = time.monotonic()
        threading.Timer(1.2, lambda: other.say(Ready(ID))).start()
        assert one.hear(Ready) == Ready(ID)
        assert time.monotonic() - begun > 1.0
    one, other = channels(timeout_s=0.2)
    with one, other, pytest.raises(PeerTimeout):
        one.hear(Ready)


def test_a_side_that_is_to_be_heard_more_often_is_so_at_once_though_it_has_begun_a_longer_wait():
    ends = socket.socketpair()
    one, other = (Channel(SocketConnection(end, "b", timeout_s=20), keepalive_s=5) for end in ends)
    with one, other:
        greet_both(one, other)
        for side in (one, other):
            side.expect_within(0.6)
        threading.Timer(1.5, lambda: other.say(Ready(ID))).start()
        threading.Timer(1.5, lambda: one.say(Ready(ID))).start()
        one.listen()
        assert one.hear(Ready) == Ready(ID)
        assert other.hear(Ready) == Ready(ID)


@pytest.mark.parametrize("has_links", [False, True])
def test_the_kernel_keeps_a_connection_for_the_silence_that_was_agreed_on(has_links):
    with socket.create_server(("127.0.0.1", 0)) as server:
        notice_dead_links(server, SILENCE_S)  # as who listens at an address does
        address = Address("b", "tcp", "127.0.0.1", server.getsockname()[1])
        ours, theirs = connect(address, timeout_s=SILENCE_S), server.accept()[0]
    ends = [ours, SocketConnection(theirs, "a", timeout_s=SILENCE_S)]
    if has_links:
        made: list[Any] = [LinkedConnection(end, timeout_s=60) for end in ends]
    else:
        made = [Channel(end) for end in ends]
        for channel in made:
            channel.expect_within(60)
    for end in ends:
        assert end._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
    closing = threading.Thread(target=made[1].close)
    closing.start()
    made[0].close()
    closing.join()


def test_a_channel_is_closed_without_waiting_for_the_next_keepalive():
    ends = socket.socketpair()
    one, other = (Channel(SocketConnection(end, "b", timeout_s=20), keepalive_s=60) for end in ends)
    with one, other:
        greet_both(one, other)
        begun = time.monotonic()
        one.close()
        assert time.monotonic() - begun < 0.8  # who waits for a thread that stays, waits 1 s
        assert not any(thread.is_alive() for thread in one._threads)


def test_writing_waits_for_a_peer_that_takes_nothing_as_long_as_it_sends_keepalives():
    one, other = channels(timeout_s=0.5)
    with one, other:
        greet_both(one, other)
        one.listen()
        writer = threading.Thread(target=one.say_data, args=([bytes(4 << 20)],))
        writer.start()
        writer.join(1.2)
        assert writer.is_alive()
        source = MessageSource(other)
        source.skip(4 << 20)
        writer.join(20)
        assert not writer.is_alive()


@pytest.mark.parametrize("listens", [False, True])
def test_a_peer_that_ends_is_broken(listens):
    one, other = channels()
    with one:
        if listens:
            one.listen()
        other.close()
        with pytest.raises(BrokenPeer):
            one.hear(Ready)


@pytest.mark.parametrize("listens", [False, True])
def test_garbage_is_refused(listens):
    one, other = channels()
    with one, other:
        if listens:
            one.listen()
        other.connection.outgoing.write(b"Last login: Sat Nov 28")
        with pytest.raises(ProtocolError, match="it begins with 'Last log'"):
            one.hear(Ready)


def test_a_peer_that_gives_up_is_heard_while_the_image_is_written():
    one, other = channels()
    with one, other:
        greet_both(one, other)
        one.listen()
        other.say(Aborted(ID, "no room", "host_lacks_memory", 3))
        sink = MessageSink(one)
        with pytest.raises(SaidOtherwise, match="said ABORTED: no room"):
            while True:
                sink.write(bytes(100))
                time.sleep(NAP_S)


def test_what_is_not_expected_is_against_the_protocol_and_what_ends_it_is_not():
    one, other = channels()
    with one, other:
        other.say(Accepted(ID))
        with pytest.raises(ProtocolError, match="said ACCEPTED where READY or RUNNING belongs"):
            one.hear(Ready, Running)
        other.say(Abort(ID, "cancelled\x1b[2J"))
        with pytest.raises(SaidOtherwise, match=r"said ABORT: cancelled \[2J"):
            one.hear(Ready)


def test_the_image_comes_out_as_it_went_in_with_other_messages_in_between():
    one, other = channels()
    with one, other:
        sink, source = MessageSink(one), MessageSource(other)
        sink.writev([b"abc", b"", b"defg"])
        one.say(KeepAlive())
        sink.write(b"hij")
        one.say(StreamEnd(sink.offset))
        one.say(Grant(ID))
        assert source.read(4) + source.read_some(100) + source.read(2) == b"abcdefghi"
        assert not source.at_end()
        source.skip(1)
        assert source.at_end()
        assert source.offset == sink.offset == 10
        with pytest.raises(EndOfStream):
            source.read(1)
        assert other.hear(Grant) == Grant(ID)


def test_zero_pages_of_an_image_are_held_to_the_limit_as_others_are():
    one, other = channels()
    with one, other:
        sink, source = LimitedSink(one, 4 << 20), MessageSource(other)
        begun = time.monotonic()
        writer = threading.Thread(target=sink.writev, args=([b"head", *zeros(4 << 20)],))
        writer.start()
        source.skip(3 << 20)
        assert time.monotonic() - begun > 0.5
        source.skip((1 << 20) + 4)
        writer.join()
        assert time.monotonic() - begun > 0.8


def test_a_source_that_asks_how_far_the_image_is_waits_until_all_of_it_is_used_and_no_longer():
    one, other = channels()
    with one, other:
        sink, source = MessageSink(one), MessageSource(other)
        one.listen()
        sink.write(bytes(100))
        one.say(KeepAlive())
        assert not one.await_acknowledged(sink.offset, 0.2)
        source.skip(99)
        assert one.connection.acknowledged == 0
        sink.write(b"x")
        reader = threading.Thread(target=source.skip, args=(2,))
        reader.start()
        assert one.await_acknowledged(100, 20)
        reader.join()
        assert one.connection.acknowledged == 100


@pytest.mark.parametrize("how", ["aborts", "is gone"])
def test_a_destination_that_ends_while_it_is_asked_how_far_it_is_is_not_waited_for(how):
    one, other = channels()
    with one, other:
        one.listen()
        ends = other.close if how == "is gone" else lambda: other.say(Aborted(ID, "why", "X"))
        threading.Timer(0.2, ends).start()
        began = time.monotonic()
        with pytest.raises(SaidOtherwise if how == "aborts" else BrokenPeer):
            one.await_acknowledged(1, 20)
        assert time.monotonic() - began < 10


def test_an_image_of_another_length_than_the_source_says_is_refused():
    one, other = channels()
    with one, other:
        MessageSink(one).write(b"abc")
        one.say(StreamEnd(4))
        source = MessageSource(other)
        source.skip(3)
        with pytest.raises(ProtocolError, match="it sent 4 bytes; 3 have come"):
            source.at_end()


def test_a_source_that_gives_up_amid_the_image_is_heard_there():
    one, other = channels()
    with one, other:
        MessageSink(one).write(b"abc")
        one.say(Abort(ID, "interrupted"))
        source = MessageSource(other)
        with pytest.raises(SaidOtherwise, match="interrupted"):
            source.read(4)


def test_nothing_is_said_behind_a_message_that_was_cut():
    one, other = channels(timeout_s=0.2)
    with one, other:
        with pytest.raises(PeerTimeout):
            one.say_data([bytes(8 << 20)])
        with pytest.raises(BrokenPeer, match="a message was cut short"):
            one.say(Abort(ID))


def test_nothing_is_said_behind_a_keepalive_that_was_cut():
    one, other = channels(timeout_s=0.2)
    with one, other:
        greet_both(one, other)
        with contextlib.suppress(PeerTimeout):
            while True:  # until not even a keepalive fits
                one.connection.outgoing.write(bytes(1))
        end = time.monotonic() + 20
        while sum(thread.name == "migration-keepalive" for thread in threading.enumerate()) > 1:
            assert time.monotonic() < end  # the keepalives of `one` end, as they cannot be sent
            time.sleep(NAP_S)
        with pytest.raises(BrokenPeer, match="a message was cut short"):
            one.say(Abort(ID))


def test_two_threads_may_say_something_at_once():
    one, other = channels()
    with one, other:
        writers = [threading.Thread(target=one.say_data, args=([bytes(4 << 20)],)) for _ in range(3)]
        for writer in writers:
            writer.start()
        source = MessageSource(other)
        source.skip(12 << 20)
        for writer in writers:
            writer.join()
        one.say(Abort(ID, "both were whole"))
        with pytest.raises(SaidOtherwise, match="both were whole"):
            source.read(1)


def test_long_buffers_are_cut_into_messages_that_are_allowed(monkeypatch):
    monkeypatch.setattr(protocol, "MAX_DATA_BYTES", 1000)
    one, other = channels()
    with one, other:
        one.say_data([bytes(700), bytes(2500), bytes(1)])
        lengths = []
        while sum(lengths) < 3201:
            header = other.next_header()
            assert header.type is MessageType.DATA
            lengths.append(header.length_bytes)
            other.read(header.length_bytes)
        assert max(lengths) <= 1000


def test_writing_behind_a_keepalive_waits_as_long_as_the_peer_sends_keepalives():
    one, other = channels(timeout_s=0.5)
    failures: list[BaseException] = []

    def say() -> None:
        try:
            one.say(StreamEnd(0))
        except BaseException as error:
            failures.append(error)

    with one, other:
        greet_both(one, other)
        one.listen()
        with one._writing, contextlib.suppress(BlockingIOError):
            while True:  # until not even a keepalive fits
                os.write(one.connection.fileno(), protocol.pack(KeepAlive()))
        end = time.monotonic() + 20
        while not one._is_cut:  # which is now being written
            assert time.monotonic() < end
            time.sleep(NAP_S)
        writer = threading.Thread(target=say, daemon=True)
        writer.start()
        writer.join(1.5)
        assert (failures, writer.is_alive()) == ([], True)
        assert other.hear(StreamEnd) == StreamEnd(0)
        writer.join(20)
        assert failures == []


class InterruptedLock:
    """A lock that is taken just as a signal comes."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.release = self.lock.release

    def acquire(self, timeout: float = -1) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        return self.lock.acquire(timeout=timeout)


def test_a_signal_that_comes_as_writing_begins_does_not_keep_others_from_writing():
    one, other = channels()
    with one, other:
        one._writing = lock = InterruptedLock()  # type: ignore[assignment]
        with interrupts.handled():
            with pytest.raises(Interrupted):
                one.say(Abort(ID, "never said"))
            assert not lock.lock.locked()
        one._writing = lock.lock
        one.say(Abort(ID, "said"))
        with pytest.raises(SaidOtherwise, match="said ABORT: said"):
            other.hear(Ready)


def test_a_message_that_comes_with_a_signal_is_heard_next():
    one, other = channels()
    with one, other:
        one.listen()
        heard = one._heard
        assert heard is not None

        class Interrupting:
            empty, put = heard.empty, heard.put

            def get(self, timeout: float) -> object:
                found = heard.get(timeout=timeout)
                os.kill(os.getpid(), signal.SIGINT)
                return found

        one._heard = Interrupting()  # type: ignore[assignment]
        other.say(Ready(ID))
        with interrupts.handled(), pytest.raises(Interrupted):
            one.hear(Ready)
        one._heard = heard
        assert one.hear(Ready) == Ready(ID)


def test_a_message_that_does_not_belong_at_the_start_of_a_link_is_refused_before_its_body_comes():
    one, other = pair()
    with one, other:
        other.outgoing.write(protocol.pack_header(MessageType.DATA, protocol.MAX_DATA_BYTES))
        with pytest.raises(ProtocolError, match="peer said DATA where JOIN belongs"):
            heard_on(one, Join)
        other.outgoing.write(protocol.pack(Join(ID, "secret")))
        assert heard_on(one, Join) == Join(ID, "secret")


@pytest.mark.parametrize("said", ["nothing", "BUSY", "RUNNING"])
def test_whatever_comes_of_a_grant_the_connection_has_no_deadline_afterwards(said):
    one, other = channels()
    with one, other:
        one.connection.timeout_s = NAP_S
        if said == "BUSY":
            other.say(Busy(ID, "COMMITTED"))
        elif said == "RUNNING":
            other.say(Running(ID))
        with contextlib.suppress(SaidOtherwise, PeerTimeout):
            heard_of_grant(one, within_s=NAP_S)
            assert said == "RUNNING"
        assert one.connection.deadline is None
        one.say(KeepAlive())
