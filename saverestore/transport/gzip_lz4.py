"""Reading gzip and lz4, as somebody's shell pipe made them: each is one stream, decompressed in turn, but ahead.

This thread reads compressed bytes into a short queue and begins jobs; each takes of the queue what it needs for at
most 4 MiB of content. `lz4` is an extra: without its package an image that needs it is refused by name.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterator

from saverestore.errors import Advice, ErrorName, ImageError, Remedy
from saverestore.transport.compressed_source import Job
from saverestore.transport.compression import GZIP_MAGIC, LZ4_MAGIC
from saverestore.transport.fd import FdSource

CONTENT_BYTES = 4 << 20
"""Most content of a job."""

READ_BYTES = 256 << 10
QUEUED_BYTES = 4 << 20
"""Compressed bytes read before they are needed."""

GZIP_WINDOW_BITS = 31  # zlib's way to say: gzip, with its header and checksum


class _Gzip:
    """One gzip member."""

    errors = zlib.error

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(GZIP_WINDOW_BITS)
        self._was_full = False

    def decompress(self, data: bytes, most: int) -> bytes:
        """Content of `data` and what is left of earlier calls, at most `most` bytes."""
        content = self._inner.decompress(self._inner.unconsumed_tail + data, most)
        self._was_full = len(content) == most
        return content

    @property
    def needs_input(self) -> bool:
        """Whether only more input brings more content."""
        return not self._was_full and not self._inner.unconsumed_tail

    @property
    def ended(self) -> bool:
        """Whether it is complete, its checksum compared."""
        return self._inner.eof

    @property
    def rest(self) -> bytes:
        """What came behind its end."""
        return self._inner.unused_data


class _Lz4:
    """One lz4 frame; the same methods."""

    errors = RuntimeError

    def __init__(self) -> None:
        import lz4.frame

        self._inner = lz4.frame.LZ4FrameDecompressor()

    def decompress(self, data: bytes, most: int) -> bytes:
        content: bytes = self._inner.decompress(data, max_length=most)
        return content

    @property
    def needs_input(self) -> bool:
        return bool(self._inner.needs_input)

    @property
    def ended(self) -> bool:
        return bool(self._inner.eof)

    @property
    def rest(self) -> bytes:
        return self._inner.unused_data or b""


def gzip_jobs(raw: FdSource) -> Iterator[Job]:
    """The jobs of a gzip file, of one member or several."""
    return _jobs(raw, "gzip", GZIP_MAGIC, _Gzip)


def lz4_jobs(raw: FdSource) -> Iterator[Job]:
    """The jobs of an lz4 file, of one frame or several. ImageError where there is no lz4 to read it with."""
    try:
        import lz4.frame  # noqa: F401  # that it is there
    except ImportError as error:
        raise ImageError(
            f"{raw.name}: compressed with lz4, which this Python cannot read: install python3-lz4 (pip: lz4)",
            offset=0,
            name=ErrorName.PACKAGE_MISSING,
            remedies=[Advice(Remedy.DECOMPRESS, "lz4")],
        ) from error
    return _jobs(raw, "lz4", LZ4_MAGIC, _Lz4)


def _jobs(raw: FdSource, kind: str, magic: bytes, make: type[_Gzip] | type[_Lz4]) -> Iterator[Job]:
    stream = _Stream(raw.name, kind, magic, make)
    at_end = False
    while not stream.ended:
        while not at_end and stream.queued_bytes < QUEUED_BYTES:
            data = raw.read_some(READ_BYTES)
            at_end = not data
            stream.add(data)
        yield Job(stream.take, in_turn=True)


class _Stream:
    """Members, one after the other. `add` is called on the thread that reads, `take` on one worker."""

    def __init__(self, name: str, kind: str, magic: bytes, make: Callable[[], _Gzip | _Lz4]) -> None:
        self._name = name
        self._kind = kind
        self._magic = magic
        self._make = make
        self._queue: deque[bytes] = deque()
        self._added = 0
        self._taken = 0
        self._member: _Gzip | _Lz4 | None = None
        self._head = b""  # of the next member, before there is enough of it to tell what it is
        self._member_at = 0
        self.ended = False

    @property
    def queued_bytes(self) -> int:
        """Added and not yet taken."""
        return self._added - self._taken

    def add(self, data: bytes) -> None:
        """Put compressed bytes into the queue; no bytes: the end of the file."""
        self._queue.append(data)
        self._added += len(data)

    def take(self) -> bytes:
        """Decompress what is in the queue, at most CONTENT_BYTES of content."""
        parts: list[bytes] = []
        left = CONTENT_BYTES
        while left and not self.ended:
            content = self._decompressed(left)
            if content is None:
                break
            parts.append(content)
            left -= len(content)
        return b"".join(parts)

    def _decompressed(self, most: int) -> bytes | None:
        """Content of one piece of input; None when the queue has no more for now."""
        data = b""
        if self._member is None or self._member.needs_input:
            if not self._queue:
                return None
            data = self._queue.popleft()
            self._taken += len(data)
            if not data:
                self._end_of_file()
                return b""
        if self._member is None:
            self._head += data
            if len(self._head) < len(self._magic) and self._magic.startswith(self._head):
                return b""
            data, self._head = self._head, b""
            self._member_at = self._taken - len(data)
            if not data.startswith(self._magic):
                raise self._damaged(f"{data[:4].hex()} where a {self._kind} header should start")
            self._member = self._make()
        try:
            content = self._member.decompress(data, most)
        except self._member.errors as error:
            raise self._damaged(str(error)) from error
        if self._member.ended:
            if rest := self._member.rest:
                self._queue.appendleft(rest)
                self._taken -= len(rest)
            self._member = None
        return content

    def _end_of_file(self) -> None:
        self.ended = True
        if self._member is not None or self._head:
            raise ImageError(
                f"{self._name} is cut short: it ends inside its {self._kind} data",
                offset=self._taken,
                name=ErrorName.IMAGE_TRUNCATED,
            )

    def _damaged(self, problem: str) -> ImageError:
        return ImageError(
            f"{self._name}: its {self._kind} data are damaged: {problem}", offset=self._member_at
        )
