"""Images of which any part can be read without the rest: plain files and seekable zstd files.

    offset in the image ──► seek table ──► frame ──► decompressed whole, checked ──► kept for the next ones

Offsets are those of the image, decompressed or not; so whoever reads does not see the difference.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from saverestore.errors import Advice, ErrorName, ImageError, Remedy, TransportError, name_of_errno
from saverestore.transport import zstd_frames
from saverestore.transport.base import EndOfStream
from saverestore.transport.compression import FIRST_BYTES, Compression, compression_of
from saverestore.transport.fd import STDIN, FdSource
from saverestore.transport.zstd_codec import FRAME_CONTENT_MAX, compressed_max, decompress_frame
from saverestore.transport.zstd_seekable import (
    FOOTER,
    SKIPPABLE_HEADER,
    TABLE_MAGIC,
    TABLE_MAX,
    SeekTable,
    table_bytes,
)

FRAMES_KEPT = 4
"""Decompressed frames that are kept, the last ones used: at most 32 MiB."""


class RandomAccess(Protocol):
    """An image of which any part can be read, from any thread."""

    @property
    def name(self) -> str:
        """File name, for messages."""

    @property
    def size(self) -> int:
        """Length of the image in bytes, decompressed."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset` on. `length` is allocated: the caller bounds it.

        `EndOfStream` when the image is not so long, `ImageError` for damage, `TransportError` when reading fails.
        """

    def close(self) -> None:
        """Give it up; a second time does nothing."""


class _File:
    """A regular file with random access; the descriptor's own position is left alone."""

    def __init__(self, source: FdSource) -> None:
        self._source = source
        self.name = source.name
        self.file_size = os.fstat(source.fileno()).st_size

    def pread(self, offset: int, length: int, what: str) -> bytes:
        """Exactly `length` bytes of the file as it is."""
        data = bytearray(length)
        view = memoryview(data)
        done = 0
        while done < length:
            try:
                got = os.preadv(self._source.fileno(), [view[done:]], offset + done)
            except OSError as error:
                raise TransportError(
                    f"{self.name}: reading failed at byte {offset + done:#x} = {offset + done}: {error.strerror}",
                    name=name_of_errno(error.errno),
                ) from error
            if got == 0:
                end = max(self.file_size, offset + done)
                raise EndOfStream(self.name, offset=end, missing_bytes=length - done, what=what)
            done += got
        return bytes(data)

    def close(self) -> None:
        """Close the descriptor."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class PlainFile(_File):
    """An image that is not compressed. See RandomAccess."""

    @property
    def size(self) -> int:
        """Length of the file."""
        return self.file_size

    def read_at(self, offset: int, length: int) -> bytes:
        """See RandomAccess."""
        return self.pread(offset, length, "the image")


class SeekableZstdFile(_File):
    """An image in seekable zstd. See RandomAccess; only the frames that are needed are decompressed.

    Each frame is held against the seek table: its length, the content it declares and has, and its checksum.
    """

    def __init__(self, source: FdSource, table: SeekTable) -> None:
        """Use `open_random_access`, which reads the table."""
        super().__init__(source)
        self._table = table
        self._begins = np.concatenate(([0], np.cumsum(table.compressed, dtype=np.int64)))
        self._offsets = np.concatenate(([0], np.cumsum(table.content, dtype=np.int64)))
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Length of the image, as the seek table has it."""
        return int(self._offsets[-1])

    def read_at(self, offset: int, length: int) -> bytes:
        """See RandomAccess."""
        if length == 0:
            return b""
        if offset + length > self.size:
            missing = min(length, offset + length - self.size)
            raise EndOfStream(self.name, offset=self.size, missing_bytes=missing, what="the image")
        # Of frames without content none is ever the last that begins at or before an offset.
        index = int(np.searchsorted(self._offsets, offset, side="right")) - 1
        parts: list[bytes] = []
        left = length
        while left:
            content = self._content(index)
            start = offset + length - left - int(self._offsets[index])
            parts.append(content[start : start + left])
            left -= len(parts[-1])
            index += 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _content(self, index: int) -> bytes:
        with self._lock:
            content = self._kept.get(index)
            if content is not None:
                self._kept.move_to_end(index)
                return content
        content = self._read_frame(index)
        with self._lock:
            self._kept[index] = content
            while len(self._kept) > FRAMES_KEPT:
                self._kept.popitem(last=False)
        return content

    def _read_frame(self, index: int) -> bytes:
        row, begin = self._table.frame(index), int(self._begins[index])
        if row.content_size == 0:
            return b""
        if row.content_size > FRAME_CONTENT_MAX or row.compressed_size > compressed_max(row.content_size):
            raise ImageError(
                f"{self.name}: a zstd frame of {row.compressed_size} bytes for {row.content_size}, too large to be "
                f"read by itself (at most {FRAME_CONTENT_MAX} of content)",
                offset=begin,
                name=ErrorName.NOT_RANDOM_ACCESS,
                remedies=[Advice(Remedy.DECOMPRESS_TO_FILE)],
            )
        frame = self.pread(begin, row.compressed_size, "a zstd frame")
        self._check_frame(frame, row.content_size, row.checksum, begin)
        return decompress_frame(frame, row.content_size, name=self.name, offset=begin)

    def _check_frame(self, frame: bytes, content_size: int, checksum: int | None, begin: int) -> None:
        """The bytes are one frame, to the last, and it says the same of itself as the table does."""
        at = 0

        def take(n: int) -> bytes:
            nonlocal at
            part = frame[at : at + n]
            at += n
            if len(part) < n:
                raise ImageError(
                    f"{self.name}: a zstd frame is longer than the {len(frame)} bytes that the seek table gives it",
                    offset=begin,
                )
            return part

        header = zstd_frames.read_header(take, take(zstd_frames.MAGIC_BYTES), name=self.name, offset=begin)
        if header.content_size not in (None, content_size):
            raise ImageError(
                f"{self.name}: a zstd frame declares {header.content_size} bytes of content, "
                f"the seek table {content_size}",
                offset=begin,
            )
        for _ in zstd_frames.read_blocks(take, header, name=self.name, offset=begin):
            pass
        if at != len(frame):
            raise ImageError(
                f"{self.name}: a zstd frame of {at} bytes, {len(frame)} in the seek table", offset=begin
            )
        if checksum is not None and header.has_checksum and frame[-4:] != checksum.to_bytes(4, "little"):
            raise ImageError(
                f"{self.name}: the checksum of a zstd frame is not that of the seek table", offset=begin
            )


def read_seek_table(pread: Callable[[int, int, str], bytes], file_size: int, name: str) -> SeekTable | None:
    """The table at the end of a file; None where there is none. ImageError for one that cannot be true."""
    if file_size < SKIPPABLE_HEADER.size + FOOTER.size:
        return None
    length = table_bytes(pread(file_size - FOOTER.size, FOOTER.size, "the seek table"))
    if length is None:
        return None
    begin = file_size - length
    if begin < 0 or length > TABLE_MAX:
        raise ImageError(
            f"{name}: the seek table claims {length} bytes, of a file of {file_size}",
            offset=file_size - FOOTER.size,
        )
    frame = pread(begin, length, "the seek table")
    magic, body_bytes = SKIPPABLE_HEADER.unpack_from(frame)
    if magic != TABLE_MAGIC or body_bytes != length - SKIPPABLE_HEADER.size:
        raise ImageError(f"{name}: the seek table does not start where its end says", offset=begin)
    table = SeekTable.unpack(frame[SKIPPABLE_HEADER.size :], name=name, offset=begin)
    if table.compressed_bytes != begin:
        raise ImageError(
            f"{name}: the seek table is wrong: its frames take {table.compressed_bytes} bytes, "
            f"before it there are {begin}",
            offset=begin,
        )
    return table


def open_random_access(image: str) -> PlainFile | SeekableZstdFile | None:
    """Open an image for random access; None where there is none: a pipe, a device, otherwise compressed.

    What it is is told by its first bytes, never by its name. Errors are those of `FdSource.open`, and ImageError for
    a seek table that lies.
    """
    if image == STDIN or _is_special(image):
        return None
    source = FdSource.open(image)
    try:
        plain = PlainFile(source)
        first = plain.pread(0, min(FIRST_BYTES, plain.file_size), "the image")
        compression = compression_of(first)
        if compression is Compression.ZSTD:
            table = read_seek_table(plain.pread, plain.file_size, plain.name)
            if table is not None:
                return SeekableZstdFile(source, table)
        elif compression is Compression.NONE:
            return plain
        source.close()
        return None
    except BaseException:
        source.close()
        raise


def _is_special(image: str) -> bool:
    """Whether it is a device, a pipe or the like: not even opened, as a pipe's writer would lose its reader again."""
    try:
        mode = Path(image).stat().st_mode
    except OSError:
        return False  # told when it is opened
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
