"""TLS, a few hundred KiB at a time: what is sent arrives in order, also where the kernel takes little at once."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tls_sites import LONG_S, Site, over_tls

from saverestore import interrupts
from saverestore.errors import Interrupted
from saverestore.transport import tls_peers, tls_records
from saverestore.transport.connection import BadAcknowledgement, BrokenPeer, PeerTimeout
from saverestore.transport.tcp_info import queued_bytes
from saverestore.transport.tls_records import AT_ONCE_BYTES, RECORD_BYTES, InKernel, InMemory, is_encrypting

PATTERN = os.urandom(1 << 20)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(params=["memory", "kernel"])
def ends(request, site, monkeypatch):
    """Both ends of a connection. "kernel": as where the kernel encrypts, or OpenSSL where it does not after all."""
    monkeypatch.setattr(tls_peers, "kernel_can_encrypt", lambda: request.param == "kernel")
    monkeypatch.setattr(InKernel, "is_of_use", True)
    one, other = over_tls(site)
    with one, other:
        yield one, other


def take_little_at_once(connection):
    """Have the kernel take a few KiB of what is written."""
    connection._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


@contextlib.contextmanager
def reading(connection, nr_bytes):
    """Read so many bytes on another thread: a list that has them when the block has ended."""
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(connection.incoming.read(nr_bytes)))
    thread.start()
    yield found
    thread.join(LONG_S)


lengths = st.one_of(
    st.integers(0, 40),
    st.integers(RECORD_BYTES - 2, RECORD_BYTES + 2),
    st.integers(AT_ONCE_BYTES - 2, AT_ONCE_BYTES + 2),
    st.just(len(PATTERN)),
)


@pytest.mark.parametrize("small", [False, True])
def test_buffers_of_any_length_arrive_whole_and_in_order(ends, small):
    one, other = ends
    if small:
        take_little_at_once(one)

    @settings(max_examples=8 if small else 25, deadline=None)
    @given(st.lists(lengths, max_size=12), st.integers(0, 5000))
    def check(sizes, start):
        views = [memoryview(PATTERN)[min(start, len(PATTERN) - size) :][:size] for size in sizes]
        expected = b"".join(bytes(view) for view in views)
        before = one.outgoing.offset
        with reading(other, len(expected)) as found:
            one.outgoing.writev(views)
        assert found == [expected]
        assert one.outgoing.offset - before == len(expected)

    check()


def test_both_directions_at_once_of_which_little_is_taken_at_once(ends):
    one, other = ends
    take_little_at_once(one)
    take_little_at_once(other)
    with reading(one, len(PATTERN)) as to_one, reading(other, len(PATTERN)) as to_other:
        thread = threading.Thread(target=other.outgoing.write, args=(PATTERN,))
        thread.start()
        one.outgoing.write(PATTERN)
        thread.join(LONG_S)
    assert to_one == to_other == [PATTERN]


def test_what_was_encrypted_ahead_may_be_acknowledged_before_it_is_counted_and_no_more(site):
    one, other = over_tls(site)
    take_little_at_once(one)
    with one, other:
        one.timeout_s = 0.3
        with pytest.raises(PeerTimeout):
            one.outgoing.write(bytes(8 << 20))
        other.timeout_s = 0.3
        with contextlib.suppress(PeerTimeout):
            while True:
                other.incoming.read_some(1 << 20)
        assert other.incoming.offset > one.outgoing.offset
        one.note_acknowledged(other.incoming.offset)
        assert one.acknowledged == other.incoming.offset
        with pytest.raises(BadAcknowledgement):
            one.note_acknowledged(one.outgoing.offset + AT_ONCE_BYTES + 1)


def test_a_write_that_was_given_up_is_followed_by_no_other(ends):
    one, other = ends
    one.timeout_s = 0.2
    with pytest.raises(PeerTimeout):
        one.outgoing.write(bytes(32 << 20))
    with pytest.raises(BrokenPeer, match="what was written before was cut short"):
        one.outgoing.write(b"more")
    one.outgoing.close()
    with pytest.raises(BrokenPeer, match="the connection was cut, not closed"):
        other.incoming.skip_to_end()


def test_so_is_one_that_a_signal_ended_outside_of_any_wait(ends, monkeypatch):
    one, other = ends

    def interrupted(_event):
        raise Interrupted("interrupted by Ctrl-C")

    monkeypatch.setattr(one._outgoing, "_wait", interrupted)
    with pytest.raises(Interrupted):
        one.outgoing.write(bytes(32 << 20))
    other.timeout_s = 0.2
    with contextlib.suppress(PeerTimeout):
        other.incoming.skip_to_end()
    with pytest.raises(BrokenPeer, match="what was written before was cut short"):
        one.outgoing.write(b"\xff")
    one.outgoing.close()
    with pytest.raises(BrokenPeer, match="the connection was cut, not closed"):
        other.incoming.skip_to_end()


def test_the_end_is_said_although_the_kernel_takes_nothing_for_a_while(ends):
    one, other = ends
    take_little_at_once(one)
    with reading_late(other) as found:
        one.outgoing.write(PATTERN)
        one.outgoing.close()
    assert found == [len(PATTERN)]


@contextlib.contextmanager
def reading_late(connection):
    """Read to the end on another thread, slowly: how many bytes came."""
    found: list[int] = []

    def read():
        while connection.incoming.read_some(1 << 16):
            time.sleep(0.01)
        found.append(connection.incoming.offset)

    thread = threading.Thread(target=read)
    thread.start()
    yield found
    thread.join(LONG_S)


def test_what_comes_as_the_end_is_said_is_not_lost_by_a_signal(ends, monkeypatch):
    one, other = ends
    other.outgoing.write(b"restores")
    while not select.select([one.fileno()], [], [], LONG_S)[0]:
        pass
    real = one._records.receive_into

    def interrupted(view):
        came = real(view)
        os.kill(os.getpid(), signal.SIGINT)
        return came

    monkeypatch.setattr(one._records, "receive_into", interrupted)
    with interrupts.handled(), pytest.raises(Interrupted):
        one.outgoing.close()
    monkeypatch.setattr(one._records, "receive_into", real)
    assert one.incoming.read(8) == b"restores"


def test_small_buffers_share_records(ends):
    one, other = ends
    before = sent_by(one)
    one.outgoing.writev([b"x" * 100] * 1000)
    assert other.incoming.read(100_000) == b"x" * 100_000
    assert sent_by(one) - before < 101_000  # 22 bytes a record: 10 records rather than 1,000


def test_where_the_kernel_has_not_encrypted_once_it_is_not_asked_again(site, monkeypatch):
    monkeypatch.setattr(tls_peers, "kernel_can_encrypt", lambda: True)
    monkeypatch.setattr(InKernel, "is_of_use", True)
    kinds = []
    for _ in range(2):
        one, other = over_tls(site)
        with one, other:
            kinds.append(type(one._records))
            encrypts = is_encrypting(one._socket)
    assert kinds == [InKernel, InKernel if encrypts else InMemory]


def sent_by(connection):
    """How many bytes have gone over the socket and were acknowledged there: tcpi_bytes_acked of linux/tcp.h."""
    while queued_bytes(connection._socket):
        time.sleep(0.01)
    info = connection._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int.from_bytes(info[120:128], sys.byteorder)


def test_what_came_before_a_record_that_is_damaged_is_used_and_the_damage_is_named_afterwards(site):
    one, other = over_tls(site)
    with one, other:
        one.outgoing.write(PATTERN[:50_000])
        one._socket.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        got = bytearray()
        with pytest.raises(BrokenPeer, match="host1 has broken the TLS connection, 50000 bytes had come"):
            while True:
                got += other.incoming.read_some(1 << 20)
        assert got == PATTERN[:50_000]


def test_a_kernel_that_cannot_encrypt_is_not_asked_again(monkeypatch):
    tls_records.kernel_can_encrypt.cache_clear()
    monkeypatch.setattr(tls_records, "KERNEL_ENCRYPTS", 8)
    monkeypatch.setattr(tls_records, "TCP_ULP", 9999)  # of no kernel
    asked = []
    real = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda *args: asked.append(args) or real(*args))
    assert not tls_records.kernel_can_encrypt()
    assert not tls_records.kernel_can_encrypt()
    assert len(asked) == 1
    tls_records.kernel_can_encrypt.cache_clear()
