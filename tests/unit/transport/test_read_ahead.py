"""Reading a zstd file piece by piece, and its frames into memory that is kept."""

from __future__ import annotations

import fcntl
import os

import numpy as np
import pytest
import zstandard

from saverestore.errors import ImageError
from saverestore.transport import FdSink, FdSource
from saverestore.transport.base import EndOfStream
from saverestore.transport.fd import PIPE_BYTES
from saverestore.transport.read_ahead import ReadAhead
from saverestore.transport.zstd_codec import decompress_frame_into

CONTENT = np.random.default_rng(3).integers(0, 9, 100_000, dtype=np.uint8).tobytes()


@pytest.fixture
def pipe():
    read_end, write_end = os.pipe()
    with FdSource(read_end, "pipe") as source, FdSink(write_end, "pipe") as sink:
        yield source, sink


def test_bytes_come_in_order_whatever_is_looked_at_before(pipe):
    source, sink = pipe
    sink.write(bytes(range(200)))
    sink.close()
    ahead = ReadAhead(source, buffer_bytes=16)
    assert ahead.read(5, "it") == bytes(range(5))
    assert ahead.peek(90, 3, "it") == bytes(range(95, 98))
    assert ahead.peek(0, 2, "it") == bytes(range(5, 7))
    assert ahead.offset == 5
    assert ahead.read(195, "it") == bytes(range(5, 200))
    assert not ahead.has_more()
    assert ahead.offset == 200


def test_it_waits_for_no_more_than_is_asked_for(pipe):
    source, sink = pipe
    sink.write(b"abc")
    ahead = ReadAhead(source)
    assert ahead.has_more()
    assert ahead.read(3, "it") == b"abc"  # the writer is still there: more would be waited for without end


def test_an_end_that_comes_too_early_tells_where_and_how_much_is_missing(pipe):
    source, sink = pipe
    sink.write(b"abcdef")
    sink.close()
    ahead = ReadAhead(source)
    ahead.read(2, "it")
    with pytest.raises(
        EndOfStream, match=r"ends after 6 bytes: 3 more bytes were expected for a frame"
    ) as raised:
        ahead.peek(5, 2, "a frame")
    assert (raised.value.offset, raised.value.missing_bytes) == (6, 3)


def test_a_frame_goes_into_memory_of_its_size():
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(CONTENT)
    target = bytearray(len(CONTENT))
    decompress_frame_into(memoryview(target), frame, name="image", offset=0)
    assert target == CONTENT


@pytest.mark.parametrize("size", [1, len(CONTENT) - 1, len(CONTENT) + 1])
def test_a_frame_of_another_size_is_refused(size):
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(CONTENT)
    with pytest.raises(ImageError, match=f"where {size} belong"):
        decompress_frame_into(memoryview(bytearray(size)), frame, name="image", offset=0)


@pytest.mark.parametrize("at", [-1, 200])
def test_a_damaged_frame_is_refused(at):
    frame = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(CONTENT))
    frame[at] ^= 1
    with pytest.raises(ImageError, match="a zstd frame is damaged"):
        decompress_frame_into(memoryview(bytearray(len(CONTENT))), bytes(frame), name="image", offset=0)


def test_a_pipe_is_made_to_hold_more_and_never_less(pipe):
    _, sink = pipe
    capacity = fcntl.fcntl(sink.fileno(), fcntl.F_GETPIPE_SZ)
    allowed = min(PIPE_BYTES, int(open("/proc/sys/fs/pipe-max-size").read()))  # noqa: SIM115, PTH123
    assert capacity >= allowed or os.geteuid() != 0
    with FdSink(os.dup(sink.fileno()), "again"):
        assert fcntl.fcntl(sink.fileno(), fcntl.F_GETPIPE_SZ) == capacity
