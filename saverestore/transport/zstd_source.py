"""Reading zstd from front to back: any frames, be they `pysave`'s, of `zstd`, or of other tools.

A frame that says how much it holds, up to 8 MiB, is one job: such frames are decompressed at the same time, each at
once. Of any other (`zstd` on a pipe makes a single frame of everything) the blocks are decompressed in turn.

A seek table is held against the frames that came before it. So are the digest of the file and its announcement,
which only our files have; see `zstd_seekable`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import numpy as np
import xxhash
import zstandard

from saverestore.errors import Advice, ErrorName, ImageError, Remedy
from saverestore.transport import zstd_frames
from saverestore.transport.compressed_source import Content, Job
from saverestore.transport.fd import FdSource
from saverestore.transport.read_ahead import ReadAhead
from saverestore.transport.zstd_codec import (
    FRAME_CONTENT_MAX,
    compressed_max,
    decompress_frame,
    decompress_frame_into,
)
from saverestore.transport.zstd_frames import BLOCK_MAX, FrameHeader
from saverestore.transport.zstd_seekable import (
    EMPTY_CHECKSUM,
    OURS_MAX,
    SKIPPABLE_HEADER,
    TABLE_MAGIC,
    TABLE_MAX,
    Frame,
    Mark,
    SeekTable,
    unpack_ours,
)

WINDOW_MAX = 32 << 20
"""Largest window that is decompressed with: up to `zstd -19` 8 MiB. More takes as much memory."""

WINDOW_MIN = 1 << 10
"""What the library wants at least to be allowed."""

BLOCKS_PER_JOB = 16
"""Blocks of a large frame that are decompressed at a time: at most 2 MiB of content."""

SKIP_BYTES = 64 << 10

A_FRAME = "a zstd frame"

LARGE_BYTES = 1 << 20
"""Frames of so much content are decompressed into buffers that are kept: fresh memory costs half as much again."""

BUFFER_BYTES = 4 << 20
"""Length of these buffers, but for larger frames: what a frame of ours holds at most."""

SIZES = struct.Struct("<QQ")  # larger than a table's, so that a frame that fits into none is like none


class _SeenFrames:
    """A running digest of frames' sizes and checksums, to be compared with a table's: the memory of none."""

    def __init__(self) -> None:
        self.count = 0
        self._sizes = xxhash.xxh3_128()
        self._checksums = xxhash.xxh3_128()
        self._has_checksums = True

    def add(self, frame: Frame) -> None:
        """The next frame."""
        self.count += 1
        self._sizes.update(SIZES.pack(frame.compressed_size, frame.content_size))
        if frame.checksum is None:
            self._has_checksums = False
        else:
            self._checksums.update(frame.checksum.to_bytes(4, "little"))

    def agree_with(self, table: SeekTable) -> bool:
        """Whether these are the frames of the table, as far as checksums are known."""
        sizes = np.stack([table.compressed, table.content], axis=1).astype("<u8")
        if len(table) != self.count or xxhash.xxh3_128_digest(sizes.tobytes()) != self._sizes.digest():
            return False
        if table.checksums is None or not self._has_checksums:
            return True
        checksums = xxhash.xxh3_128_digest(table.checksums.astype("<u4").tobytes())
        return checksums == self._checksums.digest()


class ZstdJobs:
    """The jobs of a zstd file: iterate over it. `raw` is read to its end; ImageError for whatever is wrong."""

    def __init__(self, raw: FdSource) -> None:
        self._raw = ReadAhead(raw)
        self._seen = _SeenFrames()
        self._digest = xxhash.xxh3_128()
        self._announced = False
        self._digest_seen = False
        self._table_seen = False
        self._spare: list[np.ndarray[tuple[int], np.dtype[np.uint8]]] = []

    def __iter__(self) -> Iterator[Job]:
        """Read, and give jobs."""
        while self._raw.has_more():
            offset = self._raw.offset
            magic = self._raw.peek(0, zstd_frames.MAGIC_BYTES, A_FRAME)
            if self._table_seen:
                raise ImageError(f"{self._raw.name}: something follows the seek table", offset=offset)
            if zstd_frames.is_skippable(magic):
                yield from self._skippable(offset)
                continue
            if self._digest_seen:
                raise ImageError(
                    f"{self._raw.name}: a frame follows the digest of the compressed file", offset=offset
                )
            header = self._header(magic, offset)
            if header.content_size is not None and header.content_size <= FRAME_CONTENT_MAX:
                yield self._whole_frame(header, header.content_size, offset)
            else:
                yield from self._blocks(header, offset)
        if self._announced and not self._table_seen:
            raise ImageError(
                f"{self._raw.name} is cut short: its seek table is missing",
                offset=self._raw.offset,
                name=ErrorName.IMAGE_TRUNCATED,
            )

    def _take(self, n: int) -> bytes:
        return self._raw.read(n, A_FRAME)

    def _header(self, magic: bytes, offset: int) -> FrameHeader:
        """The head of the frame that comes next; nothing of it is taken."""
        at = len(magic)

        def look(n: int) -> bytes:
            nonlocal at
            part = self._raw.peek(at, n, A_FRAME)
            at += n
            return part

        return zstd_frames.read_header(look, magic, name=self._raw.name, offset=offset)

    def _frame(self, header: FrameHeader, most: int, offset: int) -> bytes:
        """All of the frame that comes next, which may have `most` bytes."""
        length, last = len(header.raw), False
        while not last:
            block = self._raw.peek(length, zstd_frames.BLOCK_HEADER_BYTES, A_FRAME)
            last, body = zstd_frames.block_of(block, name=self._raw.name, offset=offset)
            length += zstd_frames.BLOCK_HEADER_BYTES + body
            if length > most:
                raise ImageError(
                    f"{self._raw.name}: a zstd frame continues after {length} bytes, "
                    f"but declares {header.content_size} of content",
                    offset=offset,
                )
        return self._take(length + (zstd_frames.CHECKSUM_BYTES if header.has_checksum else 0))

    def _whole_frame(self, header: FrameHeader, content_size: int, offset: int) -> Job:
        frame = self._frame(header, compressed_max(content_size), offset)
        length = len(frame)
        self._digest.update(frame)
        checksum = int.from_bytes(frame[-4:], "little") if header.has_checksum else None
        name = self._raw.name

        def check(_: Content) -> None:
            self._seen.add(Frame(length, content_size, checksum))

        if content_size < LARGE_BYTES:
            return Job(lambda: decompress_frame(frame, content_size, name=name, offset=offset), check=check)
        buffer = self._spare.pop() if self._spare else np.empty(BUFFER_BYTES, dtype=np.uint8)
        if len(buffer) < content_size:
            buffer = np.empty(content_size, dtype=np.uint8)

        def work() -> memoryview:
            content = buffer[:content_size].data
            decompress_frame_into(content, frame, name=name, offset=offset)
            return content

        return Job(work, check=check, passed=lambda: self._spare.append(buffer))

    def _blocks(self, header: FrameHeader, offset: int) -> Iterator[Job]:
        """Jobs for the blocks of one large frame."""
        if header.window_size > WINDOW_MAX:
            raise ImageError(
                _about_window(self._raw.name, header.window_size),
                offset=offset,
                name=ErrorName.IMAGE_UNSUPPORTED,
                remedies=[Advice(Remedy.DECOMPRESS, "zstd")],
            )
        frame = _LargeFrame(header, name=self._raw.name, offset=offset)
        self._take(len(header.raw))
        length, last = len(header.raw), b""
        waiting = [header.raw]
        for part in zstd_frames.read_blocks(self._take, header, name=self._raw.name, offset=offset):
            if len(waiting) >= BLOCKS_PER_JOB:
                yield self._piece(frame, b"".join(waiting))
                waiting = []
            length += len(part)
            last = part
            waiting.append(part)
        checksum = int.from_bytes(last[-4:], "little") if header.has_checksum else None

        def check(_: Content) -> None:
            frame.check_end()
            self._seen.add(Frame(length, frame.content_size, checksum))

        yield self._piece(frame, b"".join(waiting), check)

    def _piece(self, frame: _LargeFrame, data: bytes, check: Callable[[Content], None] | None = None) -> Job:
        self._digest.update(data)
        return Job(lambda: frame.decompress(data), in_turn=True, check=check)

    def _skippable(self, offset: int) -> Iterator[Job]:
        head = self._take(SKIPPABLE_HEADER.size)
        number, length = SKIPPABLE_HEADER.unpack(head)
        if number == TABLE_MAGIC:
            yield self._table(length, offset)
            return
        begin = self._take(min(length, OURS_MAX))
        ours = unpack_ours(number, length, begin, name=self._raw.name, offset=offset)
        if self._digest_seen:
            raise ImageError(
                f"{self._raw.name}: a frame follows the digest of the compressed file", offset=offset
            )
        if isinstance(ours, bytes):
            self._digest_seen = True
            if ours != self._digest.digest():
                raise ImageError(
                    f"{self._raw.name} is damaged: the digest of the compressed file does not hold",
                    offset=offset,
                    name=ErrorName.DIGEST_MISMATCH,
                )
        self._announced = self._announced or ours is Mark.ANNOUNCED
        self._digest.update(head + begin)
        left = length - len(begin)
        while left:
            part = self._take(min(left, SKIP_BYTES))
            self._digest.update(part)
            left -= len(part)
        total = len(head) + length
        yield Job(bytes, check=lambda _: self._seen.add(Frame(total, 0, EMPTY_CHECKSUM)))

    def _table(self, length: int, offset: int) -> Job:
        self._table_seen = True
        if self._announced and not self._digest_seen:
            raise ImageError(
                f"{self._raw.name}: the digest of the compressed file is missing before the seek table",
                offset=offset,
            )
        if length > TABLE_MAX:
            raise ImageError(f"{self._raw.name}: a seek table of {length} bytes, too long", offset=offset)
        table = SeekTable.unpack(self._raw.read(length, "the seek table"), name=self._raw.name, offset=offset)

        def check(_: Content) -> None:
            if not self._seen.agree_with(table):
                raise ImageError(
                    f"{self._raw.name}: the seek table is wrong: it does not list the frames before it",
                    offset=offset,
                )

        return Job(bytes, check=check)


class _LargeFrame:
    """One frame being decompressed a few blocks at a time."""

    def __init__(self, header: FrameHeader, *, name: str, offset: int) -> None:
        self.content_size = 0
        self._declared = header.content_size
        self._name = name
        self._offset = offset
        window = max(header.window_size, WINDOW_MIN)
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=window).decompressobj()

    def decompress(self, data: bytes) -> bytes:
        """The content of the next blocks. A block has at most 128 KiB, which the library sees to."""
        try:
            content: bytes = self._decompressor.decompress(data)
        except zstandard.ZstdError as error:
            raise self._damaged(str(error)) from error
        self.content_size += len(content)
        if self._declared is not None and self.content_size > self._declared:
            raise self._damaged(f"more content than the {self._declared} bytes it declares")
        if len(content) > (BLOCKS_PER_JOB + 1) * BLOCK_MAX:
            raise self._damaged(f"{len(content)} bytes of {BLOCKS_PER_JOB} blocks")
        return content

    def check_end(self) -> None:
        """All blocks have been given."""
        if not self._decompressor.eof:
            raise self._damaged("it does not end with its last block")
        if self._declared not in (None, self.content_size):
            raise self._damaged(f"{self.content_size} bytes of content, it declares {self._declared}")

    def _damaged(self, problem: str) -> ImageError:
        return ImageError(f"{self._name}: a zstd frame is damaged: {problem}", offset=self._offset)


def _about_window(name: str, window_size: int) -> str:
    return (
        f"{name}: compressed with a window of {window_size >> 20} MiB, more than the {WINDOW_MAX >> 20} MiB that are "
        "read here"
    )
