"""Holding to a rate: the token bucket, the sink that has one, and the kernel's pacing of TCP."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from saverestore.errors import TransportError
from saverestore.kernels.zeros import zeros
from saverestore.transport.connection import PipeConnection, SocketConnection
from saverestore.transport.fd import FdSink
from saverestore.transport.paced import PacedSink, TokenBucket
from saverestore.transport.pipe import PipeSink
from saverestore.transport.sparse import SparseFileSink

MIB = 1 << 20


class Clock:
    """Time passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.during = lambda: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 0.1
        self.now += seconds
        self.during()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def bucket_of(clock: Clock, rate: int | None) -> TokenBucket:
    return TokenBucket(rate, clock=clock, sleep=clock.sleep)


def test_what_was_spent_takes_its_time_at_the_rate(clock):
    bucket = bucket_of(clock, 1000)
    for _ in range(10):
        bucket.spend(500)
    assert clock.now - 100 == pytest.approx(5.0)


def test_a_pause_is_made_up_for_by_fifty_milliseconds_at_most(clock):
    bucket = bucket_of(clock, 1000)
    clock.now += 60
    before = clock.now
    bucket.spend(1000)
    assert clock.now - before == pytest.approx(0.95)


def test_without_a_rate_nobody_waits_and_a_later_one_does_not_count_what_was_spent_before(clock):
    bucket = bucket_of(clock, None)
    bucket.spend(10**12)
    assert clock.now == 100
    bucket.change(1000)
    bucket.spend(100)
    assert clock.now - 100 == pytest.approx(0.1)


@pytest.mark.parametrize("rate", [100_000, None])
def test_who_waits_for_a_slow_rate_is_let_go_by_a_faster_one(clock, rate):
    bucket = bucket_of(clock, 10)
    clock.during = lambda: bucket.change(rate)
    bucket.spend(1000)
    assert clock.now - 100 <= 0.2


@pytest.mark.parametrize("rate", [0, -1])
def test_a_rate_that_is_not_greater_than_0_is_refused(rate):
    with pytest.raises(ValueError, match="greater than 0"):
        TokenBucket(rate)


def read_all(fd: int, into: bytearray) -> threading.Thread:
    def read() -> None:
        while part := os.read(fd, 1 << 16):
            into.extend(part)

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def test_a_paced_sink_writes_everything_in_order_at_its_rate():
    ours, theirs = os.pipe()
    got = bytearray()
    thread = read_all(ours, got)
    buffers = [os.urandom(size) for size in (0, 1, 5000, 300_000, 7, 60_000)]
    sink = PacedSink(FdSink(theirs, "a pipe"), 1 * MIB)
    begun = time.monotonic()
    sink.writev(buffers)
    took_s = time.monotonic() - begun
    sink.finish()
    sink.close()
    thread.join()
    os.close(ours)
    assert bytes(got) == b"".join(buffers)
    assert sink.offset == sink.stored_bytes == len(got)
    assert 0.25 < took_s < 5


def test_a_rate_can_be_changed_while_a_write_waits():
    ours, theirs = os.pipe()
    got = bytearray()
    thread = read_all(ours, got)
    sink = PacedSink(FdSink(theirs, "a pipe"), 64 << 10)
    threading.Timer(0.2, lambda: sink.change(None)).start()
    begun = time.monotonic()
    sink.write(bytes(256 << 10))
    assert time.monotonic() - begun < 2  # 4 s at the first rate
    sink.write(bytes(8 * MIB))
    sink.close()
    thread.join()
    os.close(ours)
    assert len(got) == 8 * MIB + (256 << 10)


@pytest.mark.parametrize("kind", [FdSink, PipeSink])
def test_zeroes_that_a_pipe_gets_as_bytes_come_at_the_rate_as_others_do(kind):
    ours, theirs = os.pipe()
    sink = PacedSink(kind(theirs, "a pipe"), 4 * MIB)
    arrived: list[tuple[float, int]] = []

    def read() -> None:
        while part := os.read(ours, 1 << 20):
            arrived.append((time.monotonic() - begun, len(part)))

    thread = threading.Thread(target=read)
    begun = time.monotonic()
    thread.start()
    sink.writev([b"head", *zeros(4 * MIB), b"end"])
    sink.close()
    thread.join()
    os.close(ours)
    assert sum(size for _, size in arrived) == 4 * MIB + 7
    assert sum(size for at_s, size in arrived if at_s < 0.5) < 3 * MIB
    assert arrived[-1][0] > 0.8


def test_holes_of_a_file_stay_holes_and_cost_no_time(tmp_path):
    fd = os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT)
    sink = PacedSink(SparseFileSink(fd, "a file"), 64 << 10)
    begun = time.monotonic()
    sink.writev([b"head", *zeros(64 * MIB), b"end"])
    assert time.monotonic() - begun < 1
    sink.close()
    found = (tmp_path / "image").stat()
    assert found.st_size == 64 * MIB + 7
    assert found.st_blocks * 512 < MIB


def test_what_fails_below_is_raised_and_no_buffer_is_kept():
    ours, theirs = os.pipe()
    os.close(ours)
    sink = PacedSink(FdSink(theirs, "a pipe"), MIB)
    data = bytearray(1000)
    with pytest.raises(TransportError, match="has gone") as caught:
        sink.write(data)
    data.clear()  # BufferError while anybody has a view of it
    assert caught.value
    sink.close()


def tcp_pair() -> tuple[SocketConnection, SocketConnection]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    return SocketConnection(one, "b", timeout_s=20), SocketConnection(other, "a", timeout_s=20)


def test_the_kernel_holds_a_tcp_connection_to_its_rate_until_another_is_set():
    one, other = tcp_pair()
    with one, other:
        assert one.pace(8 * MIB)
        reader = threading.Thread(target=lambda: other.incoming.skip(36 * MIB))
        begun = time.monotonic()
        reader.start()
        one.outgoing.write(bytes(4 * MIB))
        while _queued(one):
            time.sleep(0.005)
        assert 0.4 < time.monotonic() - begun < 3
        assert one.pace(None)
        begun = time.monotonic()
        one.outgoing.write(bytes(32 * MIB))
        reader.join()
        assert time.monotonic() - begun < 3  # 4 s at the first rate


def _queued(connection: SocketConnection) -> int:
    from saverestore.transport.tcp_info import queued_bytes

    return queued_bytes(connection._socket)


def test_the_kernel_cannot_pace_a_pipe_or_a_socket_pair():
    ends = socket.socketpair()
    with SocketConnection(ends[0], "b", timeout_s=1) as one, SocketConnection(ends[1], "a", timeout_s=1):
        assert not one.pace(MIB)
    with PipeConnection(*os.pipe(), "b", timeout_s=1) as pipe:
        assert not pipe.pace(MIB)
    one, other = tcp_pair()
    one.close()
    other.close()
    assert not one.pace(MIB)
