"""Zero pages into a pipe without copies: the reader finds the same bytes, whatever of them is spliced."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saverestore import interrupts
from saverestore.errors import Interrupted, TransportError
from saverestore.kernels.zeros import SMALLEST_RUN, zeros
from saverestore.transport import pipe
from saverestore.transport.fd import PIPE_BYTES, FdSink
from saverestore.transport.pipe import PipeSink, sink_of

MIB = 1 << 20
DATA = np.random.default_rng(5).integers(1, 256, 3 * MIB, dtype=np.uint8).data


class Reader(threading.Thread):
    def __init__(self, fd):
        super().__init__()
        self.fd, self.got = fd, bytearray()

    def run(self):
        while part := os.read(self.fd, 1 << 16):
            self.got += part


@contextmanager
def piped(blocking=True):
    """A sink, and what the reader has got once the block has ended."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, blocking)
    reader = Reader(read_end)
    reader.start()
    try:
        with sink_of(write_end, "pipe") as sink:
            yield sink, reader.got
    finally:
        reader.join()
        os.close(read_end)


@pytest.fixture
def spliced(monkeypatch):
    """How many bytes each call moved."""
    counts = []

    def splice(*args, **more):
        counts.append(real(*args, **more))
        return counts[-1]

    real = os.splice
    monkeypatch.setattr(os, "splice", splice)
    return counts


PARTS = st.lists(
    st.tuples(st.just("data"), st.integers(0, 70_000))
    | st.tuples(
        st.just("zeros"), st.sampled_from([0, 1, SMALLEST_RUN - 1, SMALLEST_RUN, 100_003, PIPE_BYTES + 4096])
    ),
    max_size=6,
)


@given(writes=st.lists(PARTS, max_size=3), blocking=st.booleans())
@settings(deadline=None)
def test_whatever_is_written_arrives_and_is_counted(writes, blocking):
    expected = bytearray()
    with piped(blocking) as (sink, got):
        for parts in writes:
            buffers = []
            for kind, nr_bytes in parts:
                buffers += [DATA[:nr_bytes]] if kind == "data" else zeros(nr_bytes)
            sink.writev(buffers)
            expected += b"".join(buffers)
            assert sink.offset == sink.stored_bytes == len(expected)
    assert got == expected


def test_long_runs_of_zeroes_are_spliced_and_nothing_else_is(spliced):
    with piped() as (sink, got):
        sink.writev([DATA[:100], *zeros(3 * MIB), DATA[:5], *zeros(SMALLEST_RUN - 4096), bytes(MIB)])
    assert sum(spliced) == 3 * MIB
    assert got == bytes(DATA[:100]) + bytes(3 * MIB) + bytes(DATA[:5]) + bytes(SMALLEST_RUN - 4096 + MIB)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_where_the_kernel_cannot_splice_zeroes_are_written(monkeypatch, after):
    real, calls = os.splice, []

    def splice(*args, **more):
        calls.append(args)
        if len(calls) > after:
            raise OSError(errno.EINVAL, "no")
        return real(*args, **more)

    monkeypatch.setattr(os, "splice", splice)
    with piped() as (sink, got):
        sink.writev([*zeros(3 * MIB), DATA[:3]])
        assert sink.offset == 3 * MIB + 3
    assert got == bytes(3 * MIB) + bytes(DATA[:3])


def test_without_a_file_in_memory_zeroes_are_written(monkeypatch):
    def no_memory(*_: object) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", no_memory)
    pipe.zeros_file.cache_clear()
    with piped() as (sink, got):
        sink.writev(zeros(MIB))
    assert got == bytes(MIB)
    pipe.zeros_file.cache_clear()


def test_a_reader_that_goes_amid_zeroes_is_an_error_with_the_place():
    read_end, write_end = os.pipe()
    with PipeSink(write_end, "pipe") as sink:
        sink.writev([b"abcd"])
        os.close(read_end)
        with pytest.raises(TransportError, match="the reader of pipe has gone, at byte 0x4 = 4"):
            sink.writev(zeros(MIB))


def test_a_signal_ends_the_wait_for_a_reader_that_takes_nothing(monkeypatch):
    waiting, real = threading.Event(), os.splice

    def splice(*args, **more):
        waiting.set()
        return real(*args, **more)

    def interrupt():
        waiting.wait()
        time.sleep(0.3)  # until the pipe is full, and splice waits
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "splice", splice)
    read_end, write_end = os.pipe()
    killer = threading.Thread(target=interrupt)
    with sink_of(write_end, "pipe") as sink, interrupts.handled():
        killer.start()
        with pytest.raises(Interrupted):
            sink.writev(zeros(3 * MIB))
        assert 0 < sink.offset <= PIPE_BYTES
    killer.join()
    os.close(read_end)


def test_nobody_can_write_to_the_zeroes_that_readers_may_still_hold():
    with pytest.raises(PermissionError):
        os.pwrite(pipe.zeros_file(), b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(pipe.zeros_file(), 0)


def test_what_is_no_pipe_gets_a_plain_sink(tmp_path):
    with sink_of(os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT), "file") as sink:
        assert type(sink) is FdSink
    fd = os.open(os.devnull, os.O_WRONLY)
    os.close(fd)
    assert type(sink_of(fd, "closed", close_fd=False)) is FdSink
