"""Sources and sinks over real descriptors: files, pipes, socket pairs."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from stream_samples import PipeLikeSource, StingySource, source_of

from saverestore import interrupts
from saverestore.errors import Advice, ErrorName, ExitCode, ImageError, Interrupted, Remedy, TransportError
from saverestore.kernels.zeros import zeros
from saverestore.transport import EndOfStream, FdSink, FdSource
from saverestore.transport.fd import IOV_MAX
from saverestore.transport.pipe import sink_of

PATTERN = bytes(range(251)) * 40


def in_thread(work) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def feed(fd: int, data: bytes, chunk: int) -> threading.Thread:
    """Write `data` in small writes, so that the reader gets short reads; then close."""

    def work() -> None:
        for begin in range(0, len(data), chunk):
            os.write(fd, data[begin : begin + chunk])
        os.close(fd)

    return in_thread(work)


def test_reads_exactly_what_is_asked_and_no_byte_more():
    with source_of(PATTERN) as source:
        assert source.read(10) == PATTERN[:10]
        assert os.lseek(source.fileno(), 0, os.SEEK_CUR) == source.offset == 10


def test_reading_nothing_is_allowed_at_the_end():
    with source_of(b"") as source:
        assert source.read(0) == b""
        source.readv([])
        source.skip(0)


def test_several_buffers_are_filled_in_order_through_a_pipe_with_short_reads():
    reader, writer = os.pipe()
    thread = feed(writer, PATTERN, 7)
    views = [bytearray(3), bytearray(1000), bytearray(0), bytearray(4096), bytearray(len(PATTERN) - 5099)]
    with FdSource(reader, "pipe") as source:
        source.readv(views)
        assert b"".join(views) == PATTERN
        assert source.offset == len(PATTERN)
        assert source.at_end()
    thread.join()


def test_more_buffers_than_the_kernel_takes_at_once_are_filled():
    count = 2 * IOV_MAX + 3
    data = os.urandom(count * 5)
    views = [bytearray(5) for _ in range(count)]
    with source_of(data) as source:
        source.readv(views)
    assert b"".join(views) == data


@pytest.mark.parametrize("most", [1, 2, 5, 13, 4096, 5000])
def test_a_source_that_gives_few_bytes_at_a_time_fills_all_buffers(most):
    data = os.urandom(9000)
    views = [bytearray(4096), bytearray(100), bytearray(4804)]
    with StingySource(data, most) as source:
        source.readv(views)
    assert b"".join(views) == data


def test_memory_of_numpy_and_mmap_is_filled_in_place():
    array = np.zeros(512, dtype="<u8")
    memory = mmap.mmap(-1, 4096)
    data = os.urandom(8192)
    with PipeLikeSource(data, 1000) as source:
        source.readv([array, memory])
    assert array.tobytes() + memory[:] == data
    memory.close()


def test_mapped_memory_can_be_unmapped_while_the_error_is_handled():
    memory = mmap.mmap(-1, 8192)
    with source_of(b"short") as source:
        try:
            source.readv([memory])
        except EndOfStream:
            memory.close()  # BufferError, if a view of it were still held by the traceback


def test_end_of_stream_says_what_is_missing_and_where():
    with source_of(b"12345") as source, pytest.raises(EndOfStream) as caught:
        source.read(8, "a record header")
    text = str(caught.value)
    assert "image ends after 5 bytes: 3 more bytes were expected for a record header" in text
    assert caught.value.offset == 5
    assert caught.value.missing_bytes == 3
    assert isinstance(caught.value, ImageError)


@pytest.mark.parametrize("kind", [StingySource, PipeLikeSource])
def test_skipping_lands_where_reading_would(kind):
    with kind(PATTERN, 100) as source:
        source.skip(1000)
        source.skip(1)
        assert source.offset == 1001
        assert source.read(5) == PATTERN[1001:1006]


@pytest.mark.parametrize("kind", [StingySource, PipeLikeSource])
def test_skipping_past_the_end_is_noticed_though_a_file_could_seek_there(kind):
    with kind(b"12345") as source, pytest.raises(EndOfStream) as caught:
        source.skip(10, "the rest")
    assert caught.value.missing_bytes == 5
    assert source.offset == 5


def test_skipping_in_a_pipe_keeps_one_bounded_buffer():
    with PipeLikeSource(bytes(5 << 20)) as source:
        source.skip(10)
        source.skip((5 << 20) - 10)
        assert source.longest_request <= 1 << 20


@pytest.mark.parametrize("kind", [StingySource, PipeLikeSource])
def test_skip_to_end_counts_what_was_left(kind):
    with kind(PATTERN, 1000) as source:
        source.read(3)
        assert source.skip_to_end() == len(PATTERN) - 3
        assert source.at_end()


def test_a_source_starts_where_its_descriptor_stands():
    source = source_of(PATTERN)
    os.lseek(source.fileno(), 100, os.SEEK_SET)
    with source:
        assert source.read(4) == PATTERN[100:104]
        assert source.offset == 4


def test_a_closed_source_cannot_be_used_and_closing_twice_is_fine():
    source = source_of(PATTERN)
    source.close()
    source.close()
    with pytest.raises(ValueError, match="image is closed"):
        source.read(1)


def test_a_descriptor_that_is_only_lent_stays_open():
    reader, writer = os.pipe()
    FdSource(reader, "pipe", close_fd=False).close()
    os.fstat(reader)
    os.close(reader)
    os.close(writer)


def test_a_read_error_names_the_file_and_the_place(tmp_path: Path):
    fd = os.open(tmp_path, os.O_RDONLY)
    with (
        FdSource(fd, "folder") as source,
        pytest.raises(TransportError, match=r"folder: reading failed at byte 0x0"),
    ):
        source.read(1)


def test_a_socket_whose_sender_dies_is_told_apart_from_a_short_image():
    left, right = socket.socketpair()
    left.send(b"unread data makes the close a reset")
    right.send(b"x")
    right.close()
    with (
        FdSource(left.detach(), "peer") as source,
        pytest.raises((TransportError, EndOfStream), match="peer"),
    ):
        source.read(2)


def test_a_non_blocking_descriptor_is_waited_for():
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    data = os.urandom(1 << 20)

    def work() -> None:
        with FdSink(writer, "pipe") as sink:
            sink.write(data)

    thread = in_thread(work)
    with FdSource(reader, "pipe") as source:
        assert source.read(len(data)) == data
    thread.join()


def test_signals_in_the_middle_of_a_transfer_do_no_harm():
    reader, writer = os.pipe()
    data = os.urandom(1 << 20)
    old = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        thread = feed(writer, data, 4096)
        with FdSource(reader, "pipe") as source:
            assert source.read(len(data)) == data
        thread.join()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_an_exception_from_a_signal_handler_leaves_the_offset_at_what_had_come():
    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    reader, writer = os.pipe()
    os.write(writer, b"1234")
    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with FdSource(reader, "pipe") as source:
            with pytest.raises(Stop):
                source.read(10)
            assert source.offset == 4
    finally:
        signal.signal(signal.SIGALRM, old)
        os.close(writer)


@pytest.mark.parametrize("pair", ["pipe", "socketpair"])
def test_a_batch_goes_through_and_comes_out_as_it_was(pair):
    if pair == "pipe":
        reader, writer = os.pipe()
    else:
        reader, writer = (end.detach() for end in socket.socketpair())
    pages = np.random.default_rng(1).integers(0, 256, (1500, 4096), dtype=np.uint8)
    pages.setflags(write=False)
    sink = FdSink(writer, pair)

    def work() -> None:
        with sink:
            sink.writev([b"header", pages[:1].data, b"", *(page.data for page in pages[1:])])

    thread = in_thread(work)
    out = np.zeros((1500, 4096), dtype=np.uint8)
    with FdSource(reader, pair) as source:
        assert source.read(6) == b"header"
        source.readv([page.data for page in out])
        assert source.at_end()
    thread.join()
    assert sink.offset == 6 + pages.nbytes
    assert np.array_equal(pages, out)


def test_short_writes_are_continued_in_the_middle_of_a_buffer(monkeypatch):
    written = bytearray()

    def writev(fd: int, buffers: list) -> int:
        data = b"".join(bytes(buffer) for buffer in buffers)[:7]
        written.extend(data)
        return len(data)

    monkeypatch.setattr(os, "writev", writev)
    reader, writer = os.pipe()
    with FdSink(writer, "pipe") as sink:
        sink.writev([PATTERN[:5], memoryview(PATTERN)[5:100], np.frombuffer(PATTERN, np.uint8)[100:1000]])
        assert sink.offset == 1000
    os.close(reader)
    assert written == PATTERN[:1000]


def test_a_full_disk_is_named_with_place_and_advice():
    with (
        FdSink(os.open("/dev/full", os.O_WRONLY), "/mnt/out.img") as sink,
        pytest.raises(
            TransportError, match=r"/mnt/out.img: No space left on device, at byte 0x0 = 0$"
        ) as caught,
    ):
        sink.write(b"data")
    assert caught.value.exit_code == ExitCode.IO
    assert caught.value.name is ErrorName.DISK_FULL
    assert caught.value.remedies == (Advice(Remedy.OTHER_PLACE),)


def test_a_reader_that_has_gone_is_named():
    reader, writer = os.pipe()
    os.close(reader)
    with FdSink(writer, "pipe") as sink, pytest.raises(TransportError, match="the reader of pipe has gone"):
        sink.write(b"data")


@pytest.mark.parametrize("work", ["read", "peek", "splice", "write", "zeros"])
def test_a_signal_ends_a_wait_for_a_non_blocking_descriptor(work):
    read_end, write_end = os.pipe()
    other_end, pipe = os.pipe()
    for fd in (read_end, write_end):
        os.set_blocking(fd, False)
    killer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    with FdSource(read_end, "pipe") as source, sink_of(write_end, "pipe") as sink, interrupts.handled():
        killer.start()
        with pytest.raises(Interrupted):
            {
                "read": lambda: source.read(1),
                "peek": lambda: source.peek(1),
                "splice": lambda: source.splice(pipe, 1),
                "write": lambda: sink.write(bytes(8 << 20)),
                "zeros": lambda: sink.writev(zeros(8 << 20)),
            }[work]()
        killer.join()
    os.close(other_end)
    os.close(pipe)
