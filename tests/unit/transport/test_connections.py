"""What a Connection promises, of each kind of socket: bytes both ways, waits that end, what the peer acknowledges."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import contextmanager

import pytest
from tls_sites import Site, over_tls

from saverestore import interrupts
from saverestore.errors import Interrupted, TransportError
from saverestore.transport import EndOfStream, tls_peers
from saverestore.transport.connection import (
    BadAcknowledgement,
    BrokenPeer,
    PeerTimeout,
    SocketConnection,
    pair,
)
from saverestore.transport.sockets import Address, connect, notice_dead_links
from saverestore.transport.tls_peers import parse_allowed

LONG_S, SHORT_S = 20.0, 0.15
MUCH = bytes(range(251)) * 40_000  # more than the kernel holds for a peer that does not read


def over_tcp() -> tuple[SocketConnection, SocketConnection]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    return (
        SocketConnection(one, "host2", timeout_s=LONG_S),
        SocketConnection(other, "host1", timeout_s=LONG_S),
    )


def over_a_pair() -> tuple[SocketConnection, SocketConnection]:
    one, other = socket.socketpair()
    return (
        SocketConnection(one, "host2", timeout_s=LONG_S),
        SocketConnection(other, "host1", timeout_s=LONG_S),
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(params=[over_a_pair, over_tcp, over_tls], ids=["pair", "tcp", "tls"])
def ends(request):
    needs_site = request.param is over_tls
    one, other = request.param(request.getfixturevalue("site")) if needs_site else request.param()
    with one, other:
        yield one, other


@contextmanager
def meanwhile(work):
    """`work` on another thread, which has ended when the block has, and did not fail."""
    failed = []

    def guarded():
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    assert failed == []


@contextmanager
def signal_in(seconds):
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    with interrupts.handled():
        timer.start()
        try:
            yield
        finally:
            timer.join()


def dead_after_s(connection: SocketConnection) -> float:
    return connection._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) / 1000


@contextmanager
def connected_as_hosts_are(kind, site):
    """Both ends, by an address, so that the kernel gives up what is dead."""
    allowed, accepted = parse_allowed("host1", "list"), []
    with socket.create_server(("127.0.0.1", 0)) as server:
        notice_dead_links(server, LONG_S)

        def accept():
            if kind == "tls":
                there = site.host("host2", "127.0.0.1")
                accepted.append(tls_peers.first_admitted(server, there, allowed, timeout_s=LONG_S))
            else:
                accepted.append(SocketConnection(server.accept()[0], "host1", timeout_s=LONG_S))

        address = Address("host2", kind, "127.0.0.1", server.getsockname()[1], tls=site.host("host1"))
        with meanwhile(accept):
            one = connect(address, timeout_s=LONG_S)
    with one, accepted[0]:
        yield one, accepted[0]


@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_the_kernel_gives_up_no_sooner_than_is_waited_here_and_a_busy_peer_no_sooner_than_before(kind, site):
    with connected_as_hosts_are(kind, site) as both:
        for connection in both:
            for seconds, expected_s in ((60, 60), (2, LONG_S), (LONG_S, LONG_S)):
                connection.timeout_s = seconds
                assert (connection.timeout_s, dead_after_s(connection)) == (seconds, expected_s)


def test_a_connection_that_the_kernel_does_not_watch_stays_so():
    one, other = over_tcp()
    with one, other:
        one.timeout_s = 60
        assert dead_after_s(one) == 0


def test_a_connection_that_is_closed_may_still_be_told_how_long_to_wait(site):
    with connected_as_hosts_are("tcp", site) as (one, _):
        one.close()
        one.timeout_s = 60


def test_both_directions_carry_much_at_the_same_time_and_count_it(ends):
    one, other = ends

    def answer():
        with meanwhile(lambda: other.outgoing.writev([MUCH[:100], MUCH[100:]])):
            assert other.incoming.read(len(MUCH)) == MUCH

    with meanwhile(answer), meanwhile(lambda: one.outgoing.write(MUCH)):
        assert one.incoming.read(len(MUCH)) == MUCH
    for end in ends:
        assert end.incoming.offset == end.outgoing.offset == len(MUCH)


def test_a_peer_that_sends_nothing_is_waited_for_so_long_and_no_longer(ends):
    one, other = ends
    one.timeout_s = SHORT_S
    with pytest.raises(PeerTimeout, match=r"host2 sent nothing; waited 0\.\d s") as caught:
        one.incoming.read(1)
    assert caught.value.peer == "host2"
    assert SHORT_S <= caught.value.waited_s < LONG_S
    assert isinstance(caught.value, TransportError)
    other.outgoing.write(b"late")
    assert one.incoming.read(4) == b"late"


def test_a_peer_that_takes_nothing_is_waited_for_so_long_and_what_it_can_have_got_is_counted(ends):
    one, other = ends
    one.timeout_s = SHORT_S
    with pytest.raises(PeerTimeout, match="host2 took nothing"):
        one.outgoing.write(MUCH)
    sent = one.outgoing.offset
    assert 0 < sent < len(MUCH)
    assert other.incoming.read(sent) == MUCH[:sent]


def test_a_peer_that_sends_a_byte_now_and_then_keeps_a_wait_alive_but_not_beyond_the_deadline(ends):
    one, other = ends
    stop = threading.Event()

    def dribble():
        while not stop.wait(0.02):
            other.outgoing.write(b".")

    with meanwhile(dribble):
        try:
            one.deadline = time.monotonic() + 3 * SHORT_S
            with pytest.raises(PeerTimeout):
                one.incoming.read(1 << 20)
            assert one.deadline <= time.monotonic()
            one.deadline = None
            one.timeout_s = SHORT_S * 20
            one.incoming.read(10)
        finally:
            stop.set()


def test_a_deadline_that_has_passed_ends_a_wait_at_once_and_takes_nothing_that_is_there(ends):
    one, other = ends
    one.deadline = time.monotonic() - 1
    with pytest.raises(PeerTimeout) as caught:
        one.incoming.read(1)
    assert caught.value.waited_s < LONG_S / 2
    other.outgoing.write(b"there")
    one.deadline = time.monotonic() + LONG_S
    assert one.incoming.read(5) == b"there"


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_a_connection_without_a_time_limit_cannot_be_made(seconds):
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ValueError, match="timeout_s must be greater than 0"):
        SocketConnection(ours, "host2", timeout_s=seconds)


@pytest.mark.parametrize("work", ["read", "write"])
def test_a_signal_ends_a_wait_in_the_main_thread_and_the_counts_are_right(ends, work):
    one, other = ends
    begun = time.monotonic()
    with signal_in(0.2), pytest.raises(Interrupted):
        if work == "read":
            one.incoming.read(1)
        else:
            one.outgoing.write(MUCH)
    assert time.monotonic() - begun < LONG_S / 2
    if work == "read":
        one.outgoing.write(b"given up")
        assert other.incoming.read(8) == b"given up"
    else:
        other.timeout_s = LONG_S
        assert other.incoming.read(one.outgoing.offset) == MUCH[: one.outgoing.offset]
        one.outgoing.close()
        if one.is_plain:
            assert other.incoming.at_end()
        else:  # a part of what was encrypted ahead has come, too
            with pytest.raises(BrokenPeer, match="the connection was cut, not closed"):
                other.incoming.skip_to_end()


def test_within_a_shield_a_signal_waits_and_the_time_limit_ends_the_wait(ends):
    one, _ = ends
    one.timeout_s = 3 * SHORT_S
    with signal_in(0.1):
        with pytest.raises(PeerTimeout), interrupts.shield():
            one.incoming.read(1)
        with pytest.raises(Interrupted), interrupts.shield():
            pass


def test_half_a_close_is_the_end_for_the_peer_whose_answer_still_comes(ends):
    one, other = ends
    one.outgoing.write(b"all of it")
    one.outgoing.close()
    one.outgoing.close()
    assert other.incoming.read(9) == b"all of it"
    assert other.incoming.at_end()
    other.outgoing.write(b"thanks")
    assert one.incoming.read(6) == b"thanks"
    with pytest.raises(ValueError, match="host2 is closed"):
        one.outgoing.write(b"more")


def test_a_peer_that_closes_amid_what_was_asked_for_is_an_end_with_the_place(ends):
    one, other = ends
    other.outgoing.write(b"abc")
    other.close()
    with pytest.raises(EndOfStream, match=r"host2 ends after 3 bytes: 5 more bytes .* for a message"):
        one.incoming.read(8, "a message")


def test_a_peer_that_is_gone_is_named_when_something_is_written_to_it(ends):
    one, other = ends
    other.close()
    with pytest.raises(BrokenPeer, match=r"host2 is gone, \d+ bytes had been sent") as caught:
        for _ in range(100):  # the first bytes may be on the way still
            one.outgoing.write(MUCH[:1000])
    assert caught.value.peer == "host2"


def test_a_peer_that_dies_with_our_bytes_unread_is_gone_for_the_reader_too(ends):
    one, other = ends
    one.outgoing.write(b"never read")
    other.close()
    with pytest.raises((BrokenPeer, EndOfStream)):
        one.incoming.read(1)


def test_closing_twice_is_fine_and_nothing_works_afterwards(ends):
    one, _ = ends
    one.close()
    one.close()
    assert one.fileno() == -1
    for use in (
        lambda: one.incoming.read(1),
        lambda: one.outgoing.write(b"x"),
        lambda: one.incoming.at_end(),
    ):
        with pytest.raises(ValueError, match="host2 is closed"):
            use()


def test_a_peer_that_has_closed_first_is_no_error_for_our_close(ends):
    one, other = ends
    one.outgoing.write(b"unread")
    other.close()
    one.close()


@pytest.mark.parametrize("reads_no_more", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_what_was_written_arrives_although_bytes_from_the_peer_are_unread_at_the_close(late, reads_no_more):
    one, other = over_tcp()
    data = os.urandom(3 << 20)
    with meanwhile(lambda: (one.outgoing.write(data), one.close())):
        if reads_no_more:
            one.incoming.close()
        if not late:
            other.outgoing.write(b"bye")
        time.sleep(SHORT_S)  # it is closing now, and what it wrote is on its way
        if late:
            other.outgoing.write(b"bye")
        got = bytearray(len(data))
        other.incoming.readinto(got)
    assert got == data
    with pytest.raises(EndOfStream):
        other.incoming.readinto(bytearray(1))
    other.close()


@pytest.mark.parametrize("by", ["timeout", "deadline"])
def test_a_close_does_not_wait_for_ever_for_a_peer_that_takes_nothing(by):
    one, other = over_tcp()
    one.timeout_s = SHORT_S
    with pytest.raises(PeerTimeout):
        one.outgoing.write(MUCH)
    if by == "deadline":
        one.timeout_s, one.deadline = LONG_S, time.monotonic() + SHORT_S
    begun = time.monotonic()
    one.close()
    assert SHORT_S <= time.monotonic() - begun < LONG_S / 2
    assert one.fileno() == -1
    other.close()


def test_acknowledged_positions_rise_and_one_beyond_what_was_written_is_the_peers_fault(ends):
    one, _ = ends
    one.outgoing.write(bytes(100))
    assert one.acknowledged == 0
    one.note_acknowledged(60)
    one.note_acknowledged(40)
    assert one.acknowledged == 60
    with pytest.raises(BadAcknowledgement, match="host2 acknowledges 101 bytes, and 100 were sent"):
        one.note_acknowledged(101)
    assert one.acknowledged == 60
    one.note_acknowledged(100)
    assert one.acknowledged == 100


def test_an_acknowledgement_that_comes_before_the_write_has_returned_waits_until_it_is_counted(
    ends, monkeypatch
):
    one, _ = ends
    if not one.is_plain:
        pytest.skip("TLS is not written by writev")
    real, threads, failed = os.writev, [], []

    def note(position):
        try:
            one.note_acknowledged(position)
        except BadAcknowledgement as error:
            failed.append(error)

    def writev(fd, buffers):
        moved = real(fd, buffers)
        threads.append(threading.Thread(target=note, args=(moved,)))
        threads[0].start()
        threads[0].join(0.1)
        return moved

    monkeypatch.setattr(os, "writev", writev)
    one.outgoing.write(bytes(100))
    threads[0].join()
    assert (failed, one.acknowledged) == ([], 100)


def test_a_pair_within_this_process_is_a_connection():
    one, other = pair()
    with one, other:
        one.outgoing.write(b"hello")
        assert other.incoming.read(5) == b"hello"
        assert (one.peer, one.incoming.regular_file) == ("peer", None)


def test_what_has_passed_is_told_of_tcp_and_not_of_what_is_none():
    one, other = pair()
    with one, other:
        assert one.passed() is None
    with socket.create_server(("127.0.0.1", 0)) as server:
        made = socket.create_connection(server.getsockname())
        ours, theirs = (SocketConnection(end, "peer", timeout_s=5) for end in (made, server.accept()[0]))
    with ours, theirs:
        before = ours.passed()
        ours.outgoing.write(bytes(1000))
        theirs.incoming.read(1000)
        end = time.monotonic() + 5
        while (passed := ours.passed()) != (before[0] + 1000, 0):
            assert passed is not None and sum(passed) <= before[0] + 1000
            assert time.monotonic() < end
    assert ours.passed() is None
