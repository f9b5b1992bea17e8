"""Compressed files from front to back: our own, those of shell pipes, and what can be wrong with them."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
import zstandard
from stream_samples import PipeLikeSource, source_of

from saverestore.errors import Advice, ExitCode, ImageError, Remedy, TransportError
from saverestore.transport import FdSink
from saverestore.transport.base import EndOfStream
from saverestore.transport.compressed_source import DecompressedSource
from saverestore.transport.opening import decompressed, open_image
from saverestore.transport.random_access import open_random_access
from saverestore.transport.zstd_seekable import ANNOUNCEMENT, Frame, SeekTable, pack_digest
from saverestore.transport.zstd_sink import BATCH_BYTES, FRAME_BYTES, ZstdSink

RANDOM = np.random.default_rng(7)
TEXT = RANDOM.integers(0, 7, 300_000, dtype=np.uint8).tobytes()


def no_threads_of_ours():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("zstd", "unpack"))]


@pytest.fixture(autouse=True)
def no_thread_survives():
    yield
    assert no_threads_of_ours() == []


def written(pieces, **options):
    """What the sink makes of these writes."""
    read_fd = os.memfd_create("compressed")
    with FdSink(read_fd, "compressed") as raw, ZstdSink(raw, workers=2, **options) as sink:
        for piece in pieces:
            sink.writev(piece if isinstance(piece, list) else [piece])
        sink.finish()
        size = raw.offset
        return os.pread(read_fd, size, 0)


def read_back(data, kind=source_of, **options):
    with decompressed(kind(data), workers=2, **options) as source:
        content = bytearray()
        while not source.at_end():
            content += source.read(1)
            assert source.offset == len(content)
            content += source.read(len(source._content) - source._at)
        return bytes(content)


def frame_of(content, **options):
    return zstandard.ZstdCompressor(level=1, **{"write_checksum": True, **options}).compress(content)


def table_for(*frames_and_content):
    return SeekTable.of(
        [
            Frame(len(frame), len(content), int.from_bytes(frame[-4:], "little") if content else 0x51D8E999)
            for frame, content in frames_and_content
        ]
    ).pack()


SMALL_FRAMES = {"frame_bytes": 1000, "batch_bytes": 500}
"""Whole files in no time."""


@pytest.mark.parametrize("kind", [source_of, PipeLikeSource])
def test_what_was_written_is_read_back(kind):
    pieces = [b"head", [TEXT, memoryview(bytes(3 * FRAME_BYTES))], TEXT[:1000], b"tail"]
    whole = b"".join(b"".join(piece) if isinstance(piece, list) else piece for piece in pieces)
    assert read_back(written(pieces), kind) == whole


def test_zstd_itself_decompresses_it(tmp_path):
    zstd = shutil.which("zstd") or pytest.skip("no zstd here")
    path = tmp_path / "image.zst"
    path.write_bytes(written([b"head", [TEXT] * 20, b"tail"]))
    done = subprocess.run([zstd, "-dc", str(path)], capture_output=True, check=True)
    assert done.stdout == b"head" + TEXT * 20 + b"tail"


def test_batches_begin_frames_and_are_cut_from_their_end(tmp_path):
    entries, pages = b"e" * 16400, RANDOM.integers(0, 9, (2048, 4096), dtype=np.uint8)
    path = tmp_path / "image"
    path.write_bytes(written([b"xl", b"header", [entries, pages], b"record", b"END"]))
    with open_random_access(str(path)) as file:
        content = [int(size) for size in file._table.content]
    assert content == [2, 0, 6, 16400, FRAME_BYTES, FRAME_BYTES, 9, 0]


def test_small_batches_are_gathered():
    data = written([[bytes(BATCH_BYTES // 2)] for _ in range(40)])
    with decompressed(source_of(data), workers=1) as source:
        source.skip_to_end()
        assert source.offset == 40 * (BATCH_BYTES // 2)
    assert data.count(b"\x28\xb5\x2f\xfd") == 1 + 2, "the first call, 4 MiB, and what was left"


@pytest.mark.parametrize("level", [1, 3, 19])
def test_every_level_reads_back(level):
    assert read_back(written([TEXT], level=level)) == TEXT


@pytest.mark.parametrize("kind", [source_of, PipeLikeSource])
@pytest.mark.parametrize(
    "command",
    [
        ["gzip", "-1"],
        ["zstd", "-q"],
        ["zstd", "-q", "-19", "-T2"],
        ["zstd", "-q", "--no-check"],
        ["lz4", "-q"],
    ],
    ids=" ".join,
)
def test_what_a_shell_pipe_made_is_read(command, kind):
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} here")
    if command[0] == "lz4":
        pytest.importorskip("lz4.frame")
    content = TEXT + bytes(20 << 20) + RANDOM.integers(0, 256, 2 << 20, dtype=np.uint8).tobytes() + TEXT
    made = subprocess.run([*command, "-c"], input=content, capture_output=True, check=True).stdout
    assert read_back(made, kind) == content
    assert read_back(made + made, kind) == content + content
    for cut in (1, len(made) // 2, len(made) - 5):
        with pytest.raises(ImageError, match=r"ends after|cut short|damaged"):
            read_back(made[:-cut], kind)


def test_zstd_of_a_file_declares_a_large_size_and_is_read(tmp_path):
    zstd = shutil.which("zstd") or pytest.skip("no zstd here")
    content = TEXT * 50
    (tmp_path / "image").write_bytes(content)
    subprocess.run([zstd, "-q", str(tmp_path / "image")], check=True)
    with open_image(str(tmp_path / "image.zst"), workers=2) as source:
        assert source.read(len(content)) == content
        assert source.at_end()


def test_skippable_frames_of_others_are_passed_over():
    frames = frame_of(TEXT), frame_of(b"more")
    foreign = b"\x50\x2a\x4d\x18" + (100_000).to_bytes(4, "little") + bytes(100_000)
    assert read_back(foreign + frames[0] + foreign + frames[1]) == TEXT + b"more"


def test_a_seekable_file_of_others_is_read_and_its_table_checked():
    one, two = frame_of(TEXT), frame_of(b"more", write_content_size=False)
    data = one + two + table_for((one, TEXT), (two, b"more"))
    for kind in (source_of, PipeLikeSource):
        assert read_back(data, kind) == TEXT + b"more"


def test_a_table_that_lies_is_found_at_the_end_of_a_pipe_and_at_once_in_a_file():
    one, two = frame_of(TEXT), frame_of(b"more")
    swapped = one + two + table_for((two, b"more"), (one, TEXT))
    with pytest.raises(ImageError, match="the seek table is wrong: it does not list the frames"):
        read_back(swapped, PipeLikeSource)
    too_long = one + two + table_for((one, TEXT), (two, b"more"), (two, b"more"))
    with pytest.raises(ImageError, match="the seek table is wrong: its frames take"):
        decompressed(source_of(too_long))


def test_a_table_with_another_checksum_lies():
    one = frame_of(TEXT)
    table = SeekTable.of([Frame(len(one), len(TEXT), 5)]).pack()
    with pytest.raises(ImageError, match="the seek table is wrong"):
        read_back(one + table)


@pytest.mark.parametrize("behind", [b"\0", b"garbage", frame_of(b"x"), ANNOUNCEMENT])
def test_nothing_may_follow_the_seek_table(behind):
    # PipeLike: a file's table is where the file ends.
    with pytest.raises(ImageError, match=r"something follows|ends after"):
        read_back(written([TEXT]) + behind, PipeLikeSource)


def test_what_follows_frames_and_is_no_frame_is_refused_with_its_place():
    frame = frame_of(TEXT)
    with pytest.raises(ImageError, match="should start") as caught:
        read_back(frame + b"garbage")
    assert caught.value.offset == len(frame)
    assert caught.value.exit_code == ExitCode.IMAGE


def test_no_frame_comes_between_digest_and_table():
    data = written([b"head", TEXT[:2500]], **SMALL_FRAMES)
    begin = data.index(pack_digest(bytes(16))[:16])
    for extra in (frame_of(b"x"), b"\x50\x2a\x4d\x18\0\0\0\0"):
        with pytest.raises(ImageError, match="a frame follows the digest"):
            read_back(data[: begin + 32] + extra + data[begin + 32 :], PipeLikeSource)


def test_every_truncation_of_our_file_is_found():
    data = written([b"head", TEXT[:3000], b"tail"], **SMALL_FRAMES)
    for kind, step in ((source_of, 1), (PipeLikeSource, 7)):
        not_found = []
        for length in range(4, len(data), step):
            try:
                not_found.append(read_back(data[:length], kind))
            except ImageError:
                continue
        # Behind the very first frame only: there an image ends too early for whoever reads it.
        assert not_found in ([], [b"head"])
    for length in range(4):
        with decompressed(source_of(data[:length])) as source:
            assert source.read(length) == data[:length], "too short to be told from what is not compressed"


def test_every_changed_byte_of_our_file_is_found():
    data = written([b"head", TEXT[:3000], bytes(3000), b"tail"], **SMALL_FRAMES)
    accepted = []
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        try:
            source = decompressed(source_of(bytes(changed)), workers=1)
        except ImageError:
            continue
        with source:
            if not isinstance(source, DecompressedSource):
                continue  # no zstd any more, and no image
            try:
                source.skip_to_end()
            except ImageError:
                continue
            accepted.append(place)
    assert accepted == []


def bomb(declared, real=64 << 20):
    """A frame that declares so much content and holds more: of a real one the size is overwritten."""
    frame = bytearray(frame_of(bytes(real), write_checksum=False))
    assert frame[4] >> 6 == 2, "a size of four bytes"
    at = 5 if frame[4] & 0x20 else 6
    frame[at : at + 4] = declared.to_bytes(4, "little")
    return bytes(frame)


@pytest.mark.parametrize("declared", [1000, 9 << 20, 100 << 20])
def test_a_frame_that_expands_to_other_than_it_claims_is_refused_in_bounded_memory(declared):
    data = bomb(declared)
    tracemalloc.start()
    try:
        with (
            pytest.raises(ImageError, match=r"zstd frame"),
            decompressed(PipeLikeSource(data), workers=1) as source,
        ):
            source.skip_to_end()
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_a_frame_without_end_is_given_up():
    header = frame_of(b"x" * 1000, write_checksum=False)[:7]
    endless = header + (b"\0\0\4" + bytes(1 << 15)) * 3  # stored blocks, none of them the last
    with pytest.raises(ImageError, match=r"continues after .* bytes, but declares 1000 of content"):
        read_back(endless)


@pytest.mark.parametrize("kind", ["gzip", "zstd", "lz4"])
def test_a_bomb_costs_no_memory(kind):
    if kind == "gzip":
        data = gzip.compress(bytes(200 << 20), 1)
    elif kind == "zstd":
        data = frame_of(bytes(200 << 20), write_content_size=False)
    else:
        data = pytest.importorskip("lz4.frame").compress(bytes(200 << 20), store_size=False)
    tracemalloc.start()
    try:
        with decompressed(source_of(data), workers=2) as source:
            assert source.skip_to_end() == 200 << 20
        assert tracemalloc.get_traced_memory()[1] < (64 + 2 * 16) << 20
    finally:
        tracemalloc.stop()


def test_a_window_too_large_is_refused_with_the_way_out():
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27, write_content_size=False)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = compressor.compress(TEXT) + compressor.flush()
    with pytest.raises(ImageError, match="window of 128 MiB") as caught:
        read_back(data)
    assert caught.value.remedies == (Advice(Remedy.DECOMPRESS, "zstd"),)


def test_without_its_package_lz4_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "lz4.frame", None)
    monkeypatch.setitem(sys.modules, "lz4", None)
    with pytest.raises(ImageError, match=r"install python3-lz4 \(pip: lz4\)"):
        decompressed(source_of(b"\x04\x22\x4d\x18" + bytes(20)))


def test_gzip_followed_by_something_else_is_refused():
    with pytest.raises(ImageError, match="67617262 where a gzip header should start"):
        read_back(gzip.compress(TEXT) + b"garbage")


def test_an_end_too_early_says_where_in_the_image():
    with (
        decompressed(source_of(frame_of(b"x" * 100)), workers=1) as source,
        pytest.raises(EndOfStream, match=r"image, decompressed, ends after 100 bytes: 50 more"),
    ):
        source.read(150, "the test")


def test_a_file_is_told_by_its_first_bytes_not_by_its_name(tmp_path):
    (tmp_path / "image.zst").write_bytes(b"plain")
    (tmp_path / "image.img").write_bytes(frame_of(TEXT))
    with open_image(str(tmp_path / "image.zst")) as plain, open_image(str(tmp_path / "image.img")) as packed:
        assert plain.read(5) == b"plain"
        assert packed.read(len(TEXT)) == TEXT


@pytest.mark.parametrize("data", [b"", b"a", b"plain bytes"])
def test_what_is_looked_at_in_a_pipe_is_still_read(data):
    source = PipeLikeSource(data, most=1)
    assert source.peek(4) == data[:4]
    assert source.offset == 0
    assert source.read(len(data)) == data
    assert source.at_end()


def test_memory_of_the_sink_is_bounded_by_its_workers():
    noise = RANDOM.integers(0, 256, (2048, 4096), dtype=np.uint8)
    workers = 2
    tracemalloc.start()
    try:
        with FdSink(os.open(os.devnull, os.O_WRONLY), "null") as raw, ZstdSink(raw, workers=workers) as sink:
            for _ in range(12):
                sink.writev([noise])
            sink.finish()
        assert tracemalloc.get_traced_memory()[1] < (64 + 16 * workers) << 20
    finally:
        tracemalloc.stop()


class FullDisk(FdSink):
    """Takes the first bytes, and no more."""

    def writev(self, buffers):
        if self.offset > 1000:
            raise TransportError("full")
        super().writev(buffers)


def test_an_error_of_the_disk_comes_out_of_the_call_that_writes_and_ends_the_threads():
    with (
        pytest.raises(TransportError, match="full"),
        FullDisk(os.open(os.devnull, os.O_WRONLY), "null") as raw,
        ZstdSink(raw, workers=2) as sink,
    ):
        while True:
            sink.writev([TEXT])
    assert no_threads_of_ours() == []


def test_after_an_error_nobody_holds_the_buffers():
    memory = bytearray(RANDOM.integers(0, 256, 9 << 20, dtype=np.uint8).tobytes())
    view = memoryview(memory)
    with FullDisk(os.open(os.devnull, os.O_WRONLY), "null") as raw, ZstdSink(raw, workers=1) as sink:
        with pytest.raises(TransportError, match="full") as caught:
            for _ in range(4):
                sink.writev([b"head", view])
        view.release()  # a BufferError if anybody still had a part of it, in the traceback, say
    assert caught.value.__traceback__ is not None


def test_giving_up_halfway_ends_the_threads_on_both_sides():
    with (
        pytest.raises(KeyboardInterrupt),
        FdSink(os.open(os.devnull, os.O_WRONLY), "null") as raw,
        ZstdSink(raw, workers=2, level=19) as sink,
    ):
        for _ in range(4):
            sink.writev([TEXT])
        raise KeyboardInterrupt
    source = decompressed(source_of(written([TEXT] * 100)), workers=2)
    source.read(1)
    source.close()
    source.close()
    assert no_threads_of_ours() == []
