"""Writing an image as seekable zstd: frames of at most 4 MiB, compressed on all cores, written in order.

    writev ─► copy into a frame ─► worker: one compressor a thread, kept ─┐
                 next frame     ─► worker                                 ├─► this thread writes, in order
                      at most workers + 2 of them begun and not written  ─┘

What is given in one large `writev` is a batch of pages: it begins a frame, and its frames are cut counted from its
end, so that no page lies in two frames. Small writes before, after and between are gathered in frames of their own;
the very first has one to itself, and behind it our announcement of what ends the file.

Source of the format: `zstd_seekable`. The file is whole only after `finish`.
"""

from __future__ import annotations

import threading
from array import array
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import xxhash
import zstandard

from saverestore.interrupts import result_of, shield
from saverestore.transport.base import ImageSink
from saverestore.transport.cores import usable_cores
from saverestore.transport.fd import nbytes_of
from saverestore.transport.zstd_seekable import (
    ANNOUNCEMENT,
    EMPTY_CHECKSUM,
    SeekTable,
    pack_digest,
)

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

FRAME_BYTES = 4 << 20
"""Most content of a frame."""

BATCH_BYTES = 256 << 10
"""A `writev` of this much or more is a batch of pages, with frames of its own."""

AHEAD = 2
"""Frames begun beyond one for each worker."""

TABLE_LOG_MAX = 20
"""Bounds the compressor's tables to 4 MiB each: higher levels would take 50 MiB for each worker."""

DEFAULT_LEVEL = 1

FOR_LEVEL_1 = {"min_match": 6, "hash_log": 15, "window_log": 22}
"""Instead of the library's 7, 14 and 19: on images of memory 2 to 3% smaller, at some 5% more time. See
docs/explanation/compression.md."""


class ZstdSink:
    """An `ImageSink` that compresses into another one. `offset` counts what was given to it, uncompressed.

    What was given has been copied when a call returns; it reaches the other sink later, by `finish` at the last.
    After an error it is of no use. Leaving the block ends all its threads, whatever happened, and neither finishes
    the file nor closes the other sink; `finish` finishes both.
    """

    def __init__(
        self,
        sink: ImageSink,
        *,
        level: int = DEFAULT_LEVEL,
        workers: int | None = None,
        frame_bytes: int = FRAME_BYTES,
        batch_bytes: int = BATCH_BYTES,
    ) -> None:
        """`frame_bytes`: most content of a frame; `batch_bytes`: a `writev` of so much has frames of its own."""
        self._sink = sink
        self.name = sink.name
        self.offset = 0
        self._workers = workers or usable_cores()
        self._frame_bytes = frame_bytes
        self._batch_bytes = batch_bytes
        self._parameters = _parameters(level, frame_bytes)
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="zstd")
        self._of_thread = threading.local()
        self._frame = np.empty(self._frame_bytes, dtype=np.uint8)
        self._filled = 0
        self._spare: list[np.ndarray[tuple[int], np.dtype[np.uint8]]] = []
        self._begun: deque[tuple[np.ndarray[tuple[int], np.dtype[np.uint8]], int, Future[bytes]]] = deque()
        self._table = (array("I"), array("I"), array("I"))
        self._is_first_call = True
        self._zero_frame = b""
        self._digest = xxhash.xxh3_128()

    @property
    def leaves_holes(self) -> bool:
        """See ImageSink: they are compressed, which takes next to nothing."""
        return False

    @property
    def stored_bytes(self) -> int:
        """How many bytes the other sink had to store."""
        return self._sink.stored_bytes

    def write(self, data: ReadableBuffer) -> None:
        """Take one buffer."""
        self.writev((data,))

    def writev(self, buffers: Sequence[ReadableBuffer]) -> None:
        """Take several buffers, in their order. A large call is a batch of pages, see above."""
        total = sum(nbytes_of(buffer) for buffer in buffers)
        is_batch = total >= self._batch_bytes
        if is_batch:
            self._end_frame()
        # Where the first frame of a batch ends; all others are full.
        full = self._frame_bytes
        room = total % full or full if is_batch else full
        for buffer in buffers:
            length, at = nbytes_of(buffer), 0
            while at < length:
                at += self._copy(buffer, at, room - self._filled)
                if self._filled == room:
                    self._end_frame()
                    room = full
        if is_batch or self._is_first_call:
            # The announcement follows the first frame: so that cannot be all there is.
            self._end_frame()
            self._is_first_call = False

    def _copy(self, buffer: ReadableBuffer, at: int, most: int) -> int:
        """Put some of a buffer, from `at` on, into the frame: how many bytes. Holds nothing of it afterwards."""
        with memoryview(buffer) as whole, whole.cast("B") as flat:
            nr_bytes = min(most, len(flat) - at)
            # numpy lets other threads work while it copies.
            self._frame[self._filled : self._filled + nr_bytes] = np.frombuffer(flat, np.uint8, nr_bytes, at)
        self._filled += nr_bytes
        self.offset += nr_bytes
        return nr_bytes

    def _end_frame(self) -> None:
        """Have the frame compressed, if there is anything in it, and write those that are done."""
        if not self._filled:
            return
        with shield():  # a frame that was begun must also be in the queue
            future = self._pool.submit(self._compress, self._frame[: self._filled])
            self._begun.append((self._frame, self._filled, future))
            self._filled = 0
        while len(self._begun) >= self._workers + AHEAD or self._first_is_done():
            self._write_first()
        self._frame = self._spare.pop() if self._spare else np.empty(self._frame_bytes, dtype=np.uint8)

    def _compress(self, content: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> bytes:
        compressor = getattr(self._of_thread, "compressor", None)
        if compressor is None:
            compressor = zstandard.ZstdCompressor(compression_params=self._parameters)
            self._of_thread.compressor = compressor
        if (
            len(content) == self._frame_bytes
            and not content[0]
            and not np.bitwise_or.reduce(content.view(np.uint64))
        ):
            # Of memory that was never used. It is always the same frame, so it is made once (or by each worker once).
            self._zero_frame = self._zero_frame or compressor.compress(content.data)
            return self._zero_frame
        frame: bytes = compressor.compress(content.data)
        return frame

    def _first_is_done(self) -> bool:
        with shield():  # no signal amid the future's lock, see `interrupts`
            return bool(self._begun) and self._begun[0][2].done()

    def _write_first(self) -> None:
        """Wait for the frame that was begun first, and write it."""
        buffer, content_size, future = self._begun[0]
        frame = result_of(future)
        self._begun.popleft()
        self._spare.append(buffer)
        is_first = not self._table[0]
        self._put(frame, content_size, int.from_bytes(frame[-4:], "little"))
        if is_first:
            self._put(ANNOUNCEMENT, 0, EMPTY_CHECKSUM)

    def _put(self, frame: bytes, content_size: int, checksum: int) -> None:
        self._sink.write(frame)
        self._digest.update(frame)
        for column, value in zip(self._table, (len(frame), content_size, checksum), strict=True):
            column.append(value)

    def finish(self) -> None:
        """Everything has been given: write what is left, the digest of the file and the seek table."""
        self._end_frame()
        while self._begun:
            self._write_first()
        self._put(pack_digest(self._digest.digest()), 0, EMPTY_CHECKSUM)
        self._sink.write(SeekTable(*(np.array(column, dtype=np.uint32) for column in self._table)).pack())
        self._sink.finish()

    def close(self) -> None:
        """End the threads; what has not been written by `finish` is lost. A second time does nothing."""
        with shield():
            for _, _, future in self._begun:
                future.cancel()
            self._pool.shutdown(wait=True)
            self._begun.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def compressor(level: int) -> zstandard.ZstdCompressor:
    """What a `ZstdSink` of this level compresses each of its frames with."""
    return zstandard.ZstdCompressor(compression_params=_parameters(level, FRAME_BYTES))


def _parameters(level: int, frame_bytes: int) -> zstandard.ZstdCompressionParameters:
    """Those of the level for frames of our size, with bounded tables, content size and checksum."""
    usual = zstandard.ZstdCompressionParameters.from_level(level, source_size=frame_bytes)
    ours = {
        "hash_log": min(usual.hash_log, TABLE_LOG_MAX),
        "chain_log": min(usual.chain_log, TABLE_LOG_MAX),
        **(FOR_LEVEL_1 if level == 1 else {}),
    }
    return zstandard.ZstdCompressionParameters.from_level(
        level, source_size=frame_bytes, write_content_size=True, write_checksum=True, **ours
    )
