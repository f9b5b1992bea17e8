"""The digest of a libxc stream: made while it is written, held against IMAGE_DIGEST while it is read.

It covers every byte from the image header to the end of the record before IMAGE_DIGEST. What an image's PROVENANCE
adds, so that each byte of the file is covered and a reader knows in time what to compute:

    "integrity": {
        "digest": "xxh3",                            an IMAGE_DIGEST of this algorithm ends the stream
        "before": {"bytes": 2345, "xxh3": "…"}       XXH3-128 of the file before the image header
    }

A page is digested where it has just been read to, before anything is made of it. On the other side what is digested
must be what is written: the caller of a writer with a digest gives it memory that does not change meanwhile.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import xxhash

from saverestore.errors import ErrorName, UsageError
from saverestore.interrupts import shield
from saverestore.kernels.xxh3 import Hasher, xxh3_128
from saverestore.stream.errors import BadRecord
from saverestore.stream.layout import RecordType
from saverestore.stream.records import ImageDigest, Provenance
from saverestore.transport.base import ByteSink, ByteSource

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

BESIDE_BYTES = 256 << 10
"""Writes of this much are digested on a thread of their own, while the sink writes them."""

SKIP_BYTES = 1 << 20


class DigestAlgorithm(IntEnum):
    """Algorithms of IMAGE_DIGEST, by their number on the wire."""

    XXH3 = 1
    SHA256 = 2
    BLAKE3 = 3

    @property
    def option(self) -> str:
        """The name that options, settings and PROVENANCE have for it."""
        return self.name.lower()

    @property
    def title(self) -> str:
        """The name for people."""
        return {1: "XXH3-128", 2: "SHA-256", 3: "BLAKE3"}[self]


NO_DIGEST = "none"
DIGEST_OPTIONS = (*(one.option for one in DigestAlgorithm), NO_DIGEST)


class MissingPackage(Exception):
    """An algorithm whose package is not installed; the text names it."""


class _Blake3:
    """blake3 takes buffers of bytes only."""

    def __init__(self, inner: Hasher) -> None:
        self._inner = inner

    def update(self, data: ReadableBuffer, /) -> None:
        with memoryview(data) as view:
            if view.nbytes:
                self._inner.update(view.cast("B"))

    def digest(self) -> bytes:
        return self._inner.digest()


def new_hasher(algorithm: DigestAlgorithm) -> Hasher:
    """A fresh one. MissingPackage where blake3 is not installed."""
    if algorithm is DigestAlgorithm.XXH3:
        return xxh3_128()
    if algorithm is DigestAlgorithm.SHA256:
        return hashlib.sha256()
    try:
        from blake3 import blake3
    except ImportError as error:
        raise MissingPackage(
            "BLAKE3 needs a package that is not installed: python3-blake3 (pip: blake3)"
        ) from error
    return _Blake3(blake3())


def algorithm_for_writing(option: str) -> DigestAlgorithm | None:
    """The algorithm that an option names, None for "none". UsageError for one that cannot be had here."""
    if option == NO_DIGEST:
        return None
    if option not in DIGEST_OPTIONS:
        raise UsageError(f"no digest is called {option!r}; there are {', '.join(DIGEST_OPTIONS)}")
    algorithm = DigestAlgorithm[option.upper()]
    try:
        new_hasher(algorithm)
    except MissingPackage as error:
        raise UsageError(f"{error}; nothing was done", name=ErrorName.PACKAGE_MISSING) from error
    return algorithm


@dataclass(frozen=True)
class Before:
    """Length and XXH3-128 (as hex) of a file's bytes before the image header."""

    length_bytes: int
    xxh3: str


def integrity_fields(algorithm: DigestAlgorithm, before: Before | None) -> dict[str, Any]:
    """What PROVENANCE says under "integrity"."""
    fields: dict[str, Any] = {"digest": algorithm.option}
    if before is not None:
        fields["before"] = {"bytes": before.length_bytes, "xxh3": before.xxh3}
    return fields


class WrittenDigest:
    """Computes a digest while a stream is written: large writes on a thread of its own.

    A context manager: its thread has ended when the block has.
    """

    def __init__(self, algorithm: DigestAlgorithm) -> None:
        self.algorithm = algorithm
        self._hasher = new_hasher(algorithm)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="digest")

    @contextmanager
    def beside(self, buffers: Sequence[ReadableBuffer]) -> Iterator[None]:
        """Take these bytes while the block does something else with them; it does not end before they are taken."""
        taken: Future[None] | None = None
        if sum(memoryview(buffer).nbytes for buffer in buffers) < BESIDE_BYTES:
            self._take(buffers)
            yield
            return
        try:
            with shield():  # what was begun must be waited for: the buffers are the caller's
                taken = self._pool.submit(self._take, buffers)
            yield
        finally:
            if taken is not None:
                with shield():
                    taken.result()

    def _take(self, buffers: Sequence[ReadableBuffer]) -> None:
        for buffer in buffers:
            self._hasher.update(buffer)

    def record(self) -> ImageDigest:
        """IMAGE_DIGEST for all so far."""
        return ImageDigest(self.algorithm, self._hasher.digest())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with shield():
            self._pool.shutdown(wait=True)


class DigestingSink:
    """A `ByteSink` that writes to another one and has all of it digested."""

    def __init__(self, sink: ByteSink, digest: WrittenDigest) -> None:
        self._sink = sink
        self._digest = digest
        self.name = sink.name

    @property
    def offset(self) -> int:
        """That of the other sink."""
        return self._sink.offset

    def write(self, data: ReadableBuffer) -> None:
        """Write and digest one buffer."""
        self.writev((data,))

    def writev(self, buffers: Sequence[ReadableBuffer]) -> None:
        """Write and digest several, in their order."""
        with self._digest.beside(buffers):
            self._sink.writev(buffers)

    def close(self) -> None:
        """Close the other sink."""
        self._sink.close()


class BeforeSink:
    """A `ByteSink` for what comes before the image header, that knows at its end what it was."""

    def __init__(self, sink: ByteSink) -> None:
        self._sink = sink
        self._hasher = xxhash.xxh3_128()
        self._length_bytes = 0
        self.name = sink.name

    @property
    def offset(self) -> int:
        """That of the other sink."""
        return self._sink.offset

    def write(self, data: ReadableBuffer) -> None:
        """Write one buffer."""
        self.writev((data,))

    def writev(self, buffers: Sequence[ReadableBuffer]) -> None:
        """Write several, in their order."""
        for buffer in buffers:
            self._hasher.update(buffer)
            self._length_bytes += memoryview(buffer).nbytes
        self._sink.writev(buffers)

    def close(self) -> None:
        """Close the other sink."""
        self._sink.close()

    def before(self) -> Before:
        """Of all bytes that were written through it so far."""
        return Before(self._length_bytes, self._hasher.hexdigest())


class DigestingSource:
    """A `ByteSource` that reads from another one and gives all that comes to `update`, as soon as it is there."""

    def __init__(self, source: ByteSource, update: Callable[[ReadableBuffer], object]) -> None:
        self._inner = source
        self._update = update
        self.name = source.name

    @property
    def offset(self) -> int:
        """That of the other source."""
        return self._inner.offset

    def readinto(self, view: WriteableBuffer, what: str = "data") -> None:
        """Fill one buffer."""
        self._inner.readinto(view, what)
        self._update(view)

    def readv(self, views: Sequence[WriteableBuffer], what: str = "data") -> None:
        """Fill several buffers, in their order."""
        self._inner.readv(views, what)
        for view in views:
            self._update(view)

    def read(self, n: int, what: str = "data") -> bytes:
        """Return exactly `n` bytes."""
        data = self._inner.read(n, what)
        self._update(data)
        return data

    def skip(self, n: int, what: str = "data") -> None:
        """Pass over `n` bytes, which are read all the same."""
        buffer = bytearray(min(n, SKIP_BYTES))
        while n:
            some = min(n, len(buffer))
            with memoryview(buffer)[:some] as part:
                self.readinto(part, what)
            n -= some

    def at_end(self) -> bool:
        """Whether nothing follows."""
        return self._inner.at_end()

    def close(self) -> None:
        """Close the other source."""
        self._inner.close()


class BeforeSource(DigestingSource):
    """Reads what comes before the image header, and knows at its end what it was."""

    def __init__(self, source: ByteSource) -> None:
        self._hasher = xxhash.xxh3_128()
        self._length_bytes = 0
        super().__init__(source, self._count)

    def _count(self, data: ReadableBuffer) -> None:
        self._hasher.update(data)
        self._length_bytes += memoryview(data).nbytes

    def before(self) -> Before:
        """Of all bytes that have come through it so far."""
        return Before(self._length_bytes, self._hasher.hexdigest())


class DigestCheck:
    """Follows a stream that is being read, and holds it against what it says of itself.

    `source` digests all that is read through it. `checked`: the algorithm of an IMAGE_DIGEST that was found to hold.
    One that is not `enabled` does nothing: `source` is the one that was given, so that skipping costs no reading.
    """

    def __init__(
        self,
        source: ByteSource,
        prefix: bytes,
        before: Before | None,
        *,
        required: bool = False,
        enabled: bool = True,
    ) -> None:
        """`prefix`: bytes of the stream that have been taken before. `before`: None where that is not known."""
        self._enabled = enabled
        self._inner = source
        self._begin = source.offset - len(prefix)
        self._before = before
        self._required = required
        self._algorithm = DigestAlgorithm.XXH3
        self._hasher = new_hasher(self._algorithm)
        # Which digest there will be is told by the first record: up to there all is kept, 1 MiB at most.
        self._kept: bytearray | None = bytearray()
        self._announced = False
        self._made = b""
        self.checked: DigestAlgorithm | None = None
        self.source: ByteSource = DigestingSource(source, self._take) if enabled else source
        # A record's header is digested only by `begin`, as that of IMAGE_DIGEST is not.
        self.header_source: ByteSource = DigestingSource(source, self._hold) if enabled else source
        self._header = b""
        self._take(prefix)

    def _take(self, data: ReadableBuffer) -> None:
        if self._kept is not None:
            self._kept += memoryview(data)
        self._hasher.update(data)

    @property
    def announced(self) -> DigestAlgorithm | None:
        """The algorithm that PROVENANCE told of, if it did."""
        return self._algorithm if self._announced else None

    def _hold(self, data: ReadableBuffer) -> None:
        self._header = bytes(data)

    def begin(self, type: int) -> None:
        """A record of this type begins, whose header has been read from `header_source`."""
        if not self._enabled:
            return
        if type == RecordType.IMAGE_DIGEST:
            self._made = self._hasher.digest()
        if type != RecordType.PROVENANCE:
            self._kept = None
        self._take(self._header)

    def take(self, record: object, offset: int) -> None:
        """A record that began at `offset` has been read. BadRecord when it says what does not hold."""
        if not self._enabled:
            return
        if isinstance(record, Provenance):
            self._announce(record.fields.get("integrity"), offset)
            self._kept = None
        elif isinstance(record, ImageDigest):
            self._compare(record, offset)

    def end(self, offset: int) -> None:
        """END has been read: a digest that was announced, or is required, must have come."""
        if self.checked is not None or not self._enabled:
            return
        name = self._inner.name
        if self._announced:
            raise _bad(
                f"{name} is damaged: it says that it has a {self._algorithm.title} digest, but none came",
                offset,
            )
        if self._required:
            raise _bad(f"{name} has no digest, as was required", offset, name=ErrorName.DIGEST_MISSING)

    def _announce(self, fields: object, offset: int) -> None:
        if not isinstance(fields, dict) or "digest" not in fields:
            return
        option = fields["digest"]
        if option not in DIGEST_OPTIONS or option == NO_DIGEST:
            raise _bad(
                f"the image has a digest called {option!r}: it needs a newer version of this program",
                offset,
                name=ErrorName.IMAGE_UNSUPPORTED,
            )
        algorithm = DigestAlgorithm[option.upper()]
        if self._announced and algorithm is not self._algorithm:
            raise _bad("the image announces two digests of different algorithms", offset)
        self._announced, self._algorithm = True, algorithm
        if self._algorithm is not DigestAlgorithm.XXH3:
            if self._kept is None:
                raise _bad("the image tells too late of which algorithm its digest is", offset)
            self._hasher = self._new_hasher(offset)
            self._hasher.update(self._kept)
        told = fields.get("before")
        if self._before is not None and told is not None:
            found = {"bytes": self._before.length_bytes, "xxh3": self._before.xxh3}
            if told != found:
                raise _bad(
                    f"{self._inner.name} is damaged before the image header: its digest there does not hold",
                    offset,
                    name=ErrorName.DIGEST_MISMATCH,
                )

    def _new_hasher(self, offset: int) -> Hasher:
        try:
            return new_hasher(self._algorithm)
        except MissingPackage as error:
            raise _bad(
                f"the image's digest cannot be checked: {error}", offset, name=ErrorName.PACKAGE_MISSING
            ) from error

    def _compare(self, record: ImageDigest, offset: int) -> None:
        name = self._inner.name
        try:
            algorithm = DigestAlgorithm(record.algorithm)
        except ValueError:
            raise _bad(
                f"the image's digest is of algorithm {record.algorithm}: it needs a newer version of this program",
                offset,
                name=ErrorName.IMAGE_UNSUPPORTED,
            ) from None
        if algorithm is not self._algorithm:
            if self._announced:
                raise _bad(
                    f"{name} is damaged: it says that it has a {self._algorithm.title} digest, "
                    f"but this one is {algorithm.title}",
                    offset,
                )
            self._algorithm = algorithm
            self._made = self._read_again(offset)
        if record.digest != self._made:
            raise _bad(
                f"{name} is damaged: its {algorithm.title} digest is {record.digest.hex()}, "
                f"that of what was read {self._made.hex()}",
                offset,
                name=ErrorName.DIGEST_MISMATCH,
            )
        self.checked = algorithm

    def _read_again(self, offset: int) -> bytes:
        """The digest by an algorithm that nothing told of beforehand: a second pass over a regular file."""
        hasher = self._new_hasher(offset)
        again = getattr(self._inner, "read_again", None)
        parts = None if again is None else again(self._begin, offset - self._begin)
        if parts is None:
            raise _bad(
                f"the image's {self._algorithm.title} digest cannot be checked on the way, as the image does not "
                "tell of it at its beginning: give it as an uncompressed file",
                offset,
                name=ErrorName.NOT_RANDOM_ACCESS,
            )
        for part in parts:
            hasher.update(part)
        return hasher.digest()


def _bad(problem: str, offset: int, name: ErrorName | None = None) -> BadRecord:
    return BadRecord(problem, offset=offset, type=RecordType.IMAGE_DIGEST, name=name)
