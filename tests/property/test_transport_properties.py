"""Properties of the compressed transport: whatever the writes and the reads, the bytes are the same."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stream_samples import PipeLikeSource, StingySource, file_of

from saverestore.transport import FdSink, FdSource
from saverestore.transport.opening import decompressed
from saverestore.transport.random_access import PlainFile, SeekableZstdFile, read_seek_table
from saverestore.transport.zstd_sink import ZstdSink

BUFFER = st.binary(max_size=300) | st.builds(bytes, st.integers(0, 3000))
WRITES = st.lists(st.lists(BUFFER, max_size=4), max_size=12)


SMALL_FRAMES = {"frame_bytes": 1000, "batch_bytes": 500}
"""All cuts occur in little data."""


def compressed(writes, workers):
    fd = os.memfd_create("compressed")
    with FdSink(fd, "compressed") as raw, ZstdSink(raw, workers=workers, **SMALL_FRAMES) as sink:
        for buffers in writes:
            sink.writev(buffers)
        sink.finish()
        return os.pread(fd, raw.offset, 0)


@given(
    writes=WRITES, reads=st.lists(st.integers(1, 2500)), workers=st.integers(1, 3), most=st.integers(1, 5000)
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_reads_of_any_writes_return_what_was_written(writes, reads, workers, most):
    whole = b"".join(b"".join(buffers) for buffers in writes)
    data = compressed(writes, workers)
    for kind in (StingySource, PipeLikeSource):
        with decompressed(kind(data, most), workers=workers) as source:
            at = 0
            for n in reads:
                n = min(n, len(whole) - at)
                if n % 3:
                    assert source.read(n) == whole[at : at + n]
                else:
                    source.skip(n)
                at += n
                assert source.offset == at
            assert source.skip_to_end() == len(whole) - at
            assert source.at_end()


@given(writes=WRITES, places=st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 4000)), max_size=10))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_part_of_any_writes_is_read_without_the_rest(writes, places):
    whole = b"".join(b"".join(buffers) for buffers in writes)
    raw = FdSource(file_of(compressed(writes, 2)), "image")
    plain = PlainFile(raw)
    table = read_seek_table(plain.pread, plain.file_size, "image")
    assert table is not None
    with SeekableZstdFile(raw, table) as file:
        assert file.size == len(whole)
        for offset, length in places:
            offset = min(offset, len(whole))
            length = min(length, len(whole) - offset)
            assert file.read_at(offset, length) == whole[offset : offset + length]
