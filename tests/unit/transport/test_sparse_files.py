"""Zero pages as holes: the bytes read back are the same, the disk is spared."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saverestore.errors import TransportError
from saverestore.kernels.zeros import SMALLEST_RUN, are_zeros, zeros, zeros_marked
from saverestore.stream.layout import DomainType, entries_of
from saverestore.stream.records import StaticDataEnd
from saverestore.stream.writer import LibxcWriter
from saverestore.transport.newfile import NewFile
from saverestore.transport.sparse import SparseFileSink

PAGE = 4096
DATA = np.random.default_rng(2).integers(1, 256, (256, PAGE), dtype=np.uint8)


@pytest.fixture
def sink(tmp_path):
    with SparseFileSink(os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT), "image") as made:
        yield made


def content_of(sink):
    size = os.fstat(sink.fileno()).st_size
    return os.pread(sink.fileno(), size, 0) if size else b""


def told(pages):
    return zeros_marked(pages.data)[0]


def disk_bytes(sink):
    os.fsync(sink.fileno())
    return os.fstat(sink.fileno()).st_blocks * 512


@pytest.mark.parametrize("header", [0, 8, 77, 4096, 4099])
def test_a_long_run_of_zero_pages_becomes_a_hole_wherever_it_begins(sink, header):
    pages = DATA.copy()
    pages[50:200] = 0
    sink.writev([b"h" * header, *told(pages)])
    assert content_of(sink) == b"h" * header + pages.tobytes()
    assert sink.offset == header + 256 * PAGE
    assert 106 * PAGE <= sink.stored_bytes <= 109 * PAGE
    assert disk_bytes(sink) <= 112 * PAGE


def test_a_run_goes_on_from_one_buffer_to_the_next(sink):
    zero = told(np.zeros((3, PAGE), dtype=np.uint8))
    sink.writev([b"head", DATA[:1].data, *zero * 10, DATA[1:2].data])
    assert content_of(sink) == b"head" + DATA[0].tobytes() + bytes(30 * PAGE) + DATA[1].tobytes()
    assert sink.stored_bytes <= 4 * PAGE + 4


def test_a_file_that_ends_in_a_hole_has_its_length(sink):
    sink.writev([b"head", *zeros(100 * PAGE)])
    assert content_of(sink) == b"head" + bytes(100 * PAGE)
    sink.write(b"tail")
    assert content_of(sink) == b"head" + bytes(100 * PAGE) + b"tail"


def test_pages_that_are_zero_but_for_one_byte_are_written(sink):
    pages = np.zeros((64, PAGE), dtype=np.uint8)
    pages[np.arange(64), np.arange(64) * 64 + 63] = 1
    sink.writev(told(pages))
    assert content_of(sink) == pages.tobytes()
    assert sink.stored_bytes == 64 * PAGE


def test_short_runs_are_written_as_they_are(sink):
    pages = DATA.copy()
    pages[::2] = 0
    pages[100 : 100 + SMALLEST_RUN // PAGE - 1] = 0
    assert zeros_marked(pages.data)[1] == 128 + (SMALLEST_RUN // PAGE - 1) // 2
    sink.writev(told(pages))
    assert sink.stored_bytes == 256 * PAGE


def test_the_writer_of_a_stream_tells_of_zero_pages(sink):
    pages = DATA.copy()
    pages[50:200] = 0
    writer = LibxcWriter(sink, DomainType.X86_HVM, (4, 17))
    writer.record(StaticDataEnd())
    begun_at = sink.stored_bytes
    prepared = writer.prepare_pages(entries_of(np.arange(256), np.zeros(256)), [pages.data])
    writer.write_prepared(prepared)
    assert prepared.nr_zero == 150
    assert content_of(sink).endswith(pages.tobytes())
    assert sink.stored_bytes - begun_at < 110 * PAGE


def test_zeroes_that_nobody_told_of_are_written(sink):
    sink.writev([bytes(100 * PAGE)])
    assert content_of(sink) == bytes(100 * PAGE)
    assert sink.stored_bytes == 100 * PAGE


@given(zero=st.lists(st.booleans(), max_size=80), lone=st.integers(0, PAGE - 1))
@settings(max_examples=60, deadline=None)
def test_pages_with_their_zeroes_told_are_the_same_bytes(zero, lone):
    pages = np.zeros((len(zero), PAGE), dtype=np.uint8)
    pages[~np.array(zero, dtype=bool), lone] = 7
    buffers, nr_zero = zeros_marked(pages.data if len(zero) else b"")
    assert b"".join(buffers) == pages.tobytes()
    assert nr_zero == sum(zero)
    assert all(not any(buffer) for buffer in buffers if are_zeros(buffer))


def test_more_zeroes_than_there_are_in_one_piece_are_several():
    parts = zeros((20 << 20) + 5)
    assert sum(map(len, parts)) == (20 << 20) + 5
    assert all(map(are_zeros, parts)) and are_zeros(parts[0][7:9])
    assert zeros(0) == [] and not are_zeros(memoryview(bytes(8)))


@given(
    calls=st.lists(
        st.lists(
            st.tuples(st.sampled_from([0, 1, 8, 100, PAGE, 9 * PAGE, 40 * PAGE]), st.booleans()), max_size=6
        ),
        max_size=6,
    )
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_written_is_read_back(calls):
    with SparseFileSink(os.memfd_create("image"), "image") as sink:
        wanted = b""
        for call in calls:
            buffers = []
            for size, is_zero in call:
                buffers += zeros(size) if is_zero else [DATA.tobytes()[:size]]
            sink.writev(buffers)
            wanted += b"".join(buffers)
            assert (sink.offset, content_of(sink)) == (len(wanted), wanted)


def test_a_new_file_is_sparse_and_what_exists_is_not(tmp_path):
    with NewFile(tmp_path / "image") as file:
        file.sink.writev([b"head", *zeros(1000 * PAGE), b"tail"])
        assert file.sink.stored_bytes < 10 * PAGE
        file.sync()
        file.publish()
    assert (tmp_path / "image").read_bytes() == b"head" + bytes(1000 * PAGE) + b"tail"
    os.mkfifo(tmp_path / "pipe")
    keep = os.open(tmp_path / "pipe", os.O_RDWR)
    with NewFile(tmp_path / "pipe") as file:
        file.sink.writev(zeros(100 * PAGE - 5))
        assert file.sink.stored_bytes == 100 * PAGE - 5
    os.close(keep)


def test_after_a_failing_write_nobody_holds_the_buffers(sink, monkeypatch):
    def fail(fd, buffers, offset):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwritev", fail)
    view = memoryview(bytearray(DATA.tobytes()))
    with pytest.raises(TransportError, match="No space left") as caught:
        sink.writev([b"head", view, *zeros(20 * PAGE), b"tail"])
    view.release()  # a BufferError if anybody still had a part of it, in the traceback, say
    assert caught.value.__traceback__ is not None
