"""The digest of a libxc stream, made while it is written: it ends in the record IMAGE_DIGEST.

It covers every byte from the image header to the end of the record before IMAGE_DIGEST. What is digested must be what
is written: the caller of a writer with a digest gives it memory that does not change meanwhile. The counterpart, for
reading, is `digest_checked`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from saverestore.interrupts import shield
from saverestore.stream.digest_algorithms import DigestAlgorithm, new_hasher
from saverestore.stream.records import ImageDigest
from saverestore.transport.base import ByteSink
from saverestore.transport.passing import PassingSink

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

BESIDE_BYTES = 256 << 10
"""Writes of this much are digested on a thread of their own, while the sink writes them."""


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


class DigestingSink(PassingSink[ByteSink]):
    """A `ByteSink` that writes to another one and has all of it digested."""

    def __init__(self, sink: ByteSink, digest: WrittenDigest) -> None:
        super().__init__(sink)
        self._digest = digest

    def writev(self, buffers: Sequence[ReadableBuffer]) -> None:
        """Write and digest several, in their order."""
        with self._digest.beside(buffers):
            super().writev(buffers)
