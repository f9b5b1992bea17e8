"""Any part of an image without the rest: plain files, seekable zstd, and tables that lie."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import zstandard

from saverestore.errors import ImageError, UsageError
from saverestore.transport.base import EndOfStream
from saverestore.transport.random_access import PlainFile, SeekableZstdFile, open_random_access
from saverestore.transport.zstd_seekable import EMPTY_CHECKSUM, FOOTER, Frame, SeekTable, pack_digest

FRAME = 1000
CONTENT = np.random.default_rng(1).integers(0, 4, 4321, dtype=np.uint8).tobytes()


def compressed(part, **options):
    return zstandard.ZstdCompressor(level=1, write_checksum=True, **options).compress(part)


def entry(frame, part):
    return Frame(len(frame), len(part), int.from_bytes(frame[-4:], "little"))


def parts_of(content):
    return [content[i : i + FRAME] for i in range(0, len(content), FRAME)]


def seekable(content=CONTENT, change=lambda frames: frames, make=compressed):
    """A seekable file; `change` may make its table lie."""
    made = [make(part) for part in parts_of(content)]
    entries = [entry(frame, part) for frame, part in zip(made, parts_of(content), strict=True)]
    return b"".join(made) + SeekTable.of(change(entries)).pack()


@pytest.fixture
def opened(tmp_path):
    """Opens a file with these bytes; closes it afterwards."""
    files = []

    def open_bytes(data):
        path = tmp_path / f"{len(files)}.img"
        path.write_bytes(data)
        file = open_random_access(str(path))
        if file is not None:
            files.append(file)
        return file

    yield open_bytes
    for file in files:
        file.close()
        file.close()


@pytest.mark.parametrize("offset", [0, 1, 999, 1000, 1001, 2500, 4320, 4321])
@pytest.mark.parametrize("length", [0, 1, 500, 1000, 2001])
def test_any_part_is_what_was_compressed(opened, offset, length):
    file = opened(seekable())
    assert isinstance(file, SeekableZstdFile)
    assert file.size == len(CONTENT)
    length = min(length, len(CONTENT) - offset)
    assert file.read_at(offset, length) == CONTENT[offset : offset + length]


def test_a_plain_file_reads_the_same_way(opened):
    file = opened(CONTENT)
    assert isinstance(file, PlainFile)
    assert (file.size, file.read_at(1234, 56)) == (len(CONTENT), CONTENT[1234:1290])


def test_only_frames_that_are_needed_are_decompressed_and_the_last_ones_are_kept(opened, monkeypatch):
    file = opened(seekable())
    seen, real = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: seen.append(at) or real(fd, views, at))
    file.read_at(1500, 100)
    file.read_at(1600, 900)
    file.read_at(1100, 10)
    assert len(seen) == 2


def test_reading_past_the_end_is_an_end_of_stream(opened):
    for data in (seekable(), CONTENT):
        with pytest.raises(EndOfStream, match="ends after 4321 bytes: 10 more bytes"):
            opened(data).read_at(4311, 20)


def test_many_threads_may_read_at_once(opened):
    file = opened(seekable())
    wrong = []

    def read(seed):
        for offset in np.random.default_rng(seed).integers(0, 4000, 50):
            if file.read_at(int(offset), 300) != CONTENT[offset : offset + 300]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_frames_without_declared_size_and_skippable_ones_are_read(opened):
    parts = parts_of(CONTENT)
    made = [compressed(part, write_content_size=False) for part in parts]
    entries = [entry(frame, part) for frame, part in zip(made, parts, strict=True)]
    digest = pack_digest(bytes(16))
    entries.insert(2, Frame(len(digest), 0, EMPTY_CHECKSUM))
    made.insert(2, digest)
    file = opened(b"".join(made) + SeekTable.of(entries).pack())
    assert file.read_at(0, len(CONTENT)) == CONTENT


@pytest.mark.parametrize("data", [compressed(CONTENT), b"\x1f\x8b\x08\0 gzip", b"\x04\x22\x4d\x18 lz4"])
def test_a_file_that_cannot_be_read_at_any_place_is_none(opened, data):
    assert opened(data) is None


def test_a_pipe_cannot_be_read_at_any_place(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    # It would wait here for a writer if the pipe were opened.
    assert open_random_access(str(tmp_path / "pipe")) is None
    assert open_random_access("-") is None
    with pytest.raises(UsageError, match="a directory"):
        open_random_access(str(tmp_path))
    with pytest.raises(UsageError, match="no such file"):
        open_random_access(str(tmp_path / "missing"))


def replaced(frames, index, **values):
    return [
        Frame(**{**vars(frame), **(values if number == index else {})}) for number, frame in enumerate(frames)
    ]


def test_a_table_whose_frames_do_not_end_where_it_begins_is_refused(opened):
    def change(frames):
        return replaced(frames, 1, compressed_size=frames[1].compressed_size + 1)

    with pytest.raises(ImageError, match=r"the seek table is wrong: its frames take .* \(at byte"):
        opened(seekable(change=change))


def test_a_table_that_moves_a_frames_end_is_refused_when_it_is_read(opened):
    def change(frames):
        one, two = frames[1].compressed_size, frames[2].compressed_size
        return replaced(replaced(frames, 1, compressed_size=one - 1), 2, compressed_size=two + 1)

    file = opened(seekable(change=change))
    assert file.read_at(0, 100) == CONTENT[:100]
    with pytest.raises(ImageError, match=r"longer than the .* bytes that the seek table gives it .*at byte"):
        file.read_at(1500, 1)
    with pytest.raises(ImageError, match="where a zstd frame should start"):
        file.read_at(2500, 1)


@pytest.mark.parametrize("content_size", [999, 1001])
def test_a_table_that_claims_other_content_is_refused_when_it_is_read(opened, content_size):
    file = opened(seekable(change=lambda frames: replaced(frames, 1, content_size=content_size)))
    with pytest.raises(ImageError, match=f"declares 1000 bytes of content, the seek table {content_size}"):
        file.read_at(1500, 1)


@pytest.mark.parametrize("content_size", [999, 1001])
def test_a_frame_that_expands_to_other_than_the_table_says_is_refused(opened, content_size):
    data = seekable(
        change=lambda frames: replaced(frames, 1, content_size=content_size),
        make=lambda part: compressed(part, write_content_size=False),
    )
    with pytest.raises(ImageError, match=r"zstd frame (is damaged|holds 1000 bytes where 1001)"):
        opened(data).read_at(1500, 1)


def test_a_table_with_another_checksum_is_refused_when_it_is_read(opened):
    file = opened(seekable(change=lambda frames: replaced(frames, 1, checksum=1)))
    with pytest.raises(ImageError, match="checksum of a zstd frame is not that of the seek table"):
        file.read_at(1500, 1)


def test_a_frame_too_large_for_memory_is_refused_before_it_is_read(opened):
    file = opened(seekable(change=lambda frames: replaced(frames, 1, content_size=0xFFFFFFFF)))
    with pytest.raises(ImageError, match="too large to be read by itself"):
        file.read_at(1500, 1)


def test_a_table_longer_than_the_file_is_refused_before_allocation(opened):
    data = seekable()
    with pytest.raises(ImageError, match="the seek table claims"):
        opened(data[: -FOOTER.size] + FOOTER.pack(0xFFFFFFFF, 0x80, 0x8F92EAB1))


def test_every_byte_of_the_table_matters(opened):
    data = seekable(CONTENT[:1500])
    begin = len(data) - 8 - 2 * 12 - FOOTER.size
    for place in range(begin, len(data)):
        changed = bytearray(data)
        changed[place] ^= 0x41
        try:
            file = opened(bytes(changed))
        except ImageError:
            continue
        if file is not None:  # else: no table, and whoever reads it from front to back meets the rest of it
            with pytest.raises(ImageError):
                file.read_at(0, 1500)
