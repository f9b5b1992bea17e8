"""A byte source that decompresses another one: ahead of whoever reads, in order, on workers.

    this thread:  read compressed bytes ─► job ─► worker ─┐
                  read more             ─► job ─► worker  ├─► this thread copies the content out, in order
                       at most workers + 2 jobs begun ────┘

Reading is this thread's, as it is the one that signals reach: no worker ever waits for a pipe. Which jobs there are
is the format's to say: `zstd_source` makes one of each frame, so that they are decompressed at the same time;
`gzip_lz4` makes jobs that come one after the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias

import numpy as np

from saverestore.interrupts import result_of, shield
from saverestore.transport.base import EndOfStream, RegularFile
from saverestore.transport.cores import usable_cores
from saverestore.transport.fd import FdSource, nbytes_of

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

AHEAD = 2
"""Jobs begun beyond one for each worker."""


Content: TypeAlias = "bytes | memoryview"
"""Of bytes; a view is of memory that the job gets back when it is `passed`."""


@dataclass(frozen=True)
class Job:
    """A part of the content to be made. `work` returns it, at most 8 MiB, on a worker.

    `in_turn`: not before the job before it that is so is done. `check` is called with the content on the thread
    that reads, in the order of the jobs; `passed` when nothing of it is needed any more.
    """

    work: Callable[[], Content]
    in_turn: bool = False
    check: Callable[[Content], None] | None = None
    passed: Callable[[], None] | None = None


class DecompressedSource:
    """An `ImageSource` of what `jobs` make of a compressed source, which it closes with itself.

    `offset` and `total_bytes` (None where it is not known beforehand) are of the image, decompressed; the offset of
    an error about the compressed file is that in the file. `may_continue` is false: nothing may follow the image.
    Reading to the end (`at_end`, `skip_to_end`) checks all that the format has to be checked.
    """

    def __init__(
        self,
        raw: FdSource,
        jobs: Iterator[Job],
        *,
        total_bytes: int | None = None,
        workers: int | None = None,
    ) -> None:
        self.name = raw.name
        self.offset = 0
        self.total_bytes = total_bytes
        self.may_continue = False
        self.may_stay_open = raw.may_stay_open
        self.regular_file: RegularFile | None = None
        self._raw = raw
        self._jobs = jobs
        self._has_more_jobs = True
        workers = workers or usable_cores()
        self._depth = workers + AHEAD
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="unpack")
        self._in_turn = ThreadPoolExecutor(1, thread_name_prefix="unpack-in-turn")
        self._begun: deque[tuple[Job, Future[Content]]] = deque()
        self._content: Content = b""
        self._passed: Callable[[], None] | None = None
        self._at = 0

    def readinto(self, view: WriteableBuffer, what: str = "data") -> None:
        """Fill `view` completely."""
        self.readv((view,), what)

    def readv(self, views: Sequence[WriteableBuffer], what: str = "data") -> None:
        """Fill all of `views` completely, in their order."""
        left = sum(nbytes_of(view) for view in views)
        for view in views:
            with memoryview(view) as whole, whole.cast("B") as flat:
                at = 0
                while at < len(flat):
                    if not self._has_content():
                        raise self._end(left - at, what)
                    nr_bytes = min(len(flat) - at, len(self._content) - self._at)
                    # numpy lets other threads work while it copies.
                    np.frombuffer(flat, dtype=np.uint8, count=nr_bytes, offset=at)[:] = np.frombuffer(
                        self._content, dtype=np.uint8, count=nr_bytes, offset=self._at
                    )
                    self._pass(nr_bytes)
                    at += nr_bytes
                left -= at

    def read(self, n: int, what: str = "data") -> bytes:
        """Return exactly `n` bytes."""
        data = bytearray(n)
        self.readv((data,), what)
        return bytes(data)

    def read_some(self, n: int) -> bytes:
        """Return the next bytes, as many as are at hand and at most `n`; none at the end only, which is checked."""
        if not self._has_content():
            return b""
        part = bytes(self._content[self._at : self._at + n])
        self._pass(len(part))
        return part

    def splice(self, pipe: int, n: int) -> int:
        """See Spliceable: none, as the bytes are made here."""
        return 0

    def skip(self, n: int, what: str = "data") -> None:
        """Pass over `n` bytes; they are decompressed all the same."""
        while n:
            if not self._has_content():
                raise self._end(n, what)
            nr_bytes = min(n, len(self._content) - self._at)
            self._pass(nr_bytes)
            n -= nr_bytes

    def skip_to_end(self) -> int:
        """Pass over everything that is left, and return how many bytes that was."""
        before = self.offset
        while self._has_content():
            self._pass(len(self._content) - self._at)
        return self.offset - before

    def at_end(self) -> bool:
        """Whether nothing follows; then the compressed file, too, has been read to its end and is whole."""
        return not self._has_content()

    def close(self) -> None:
        """End the threads and close the compressed source; a second time does nothing."""
        try:
            with shield():
                for _, future in self._begun:
                    future.cancel()
                self._pool.shutdown(wait=True)
                self._in_turn.shutdown(wait=True)
                self._begun.clear()
                self._has_more_jobs = False
                self._content = b""
                self._at = 0
        finally:
            self._raw.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _pass(self, n: int) -> None:
        self._at += n
        self.offset += n

    def _end(self, missing_bytes: int, what: str) -> EndOfStream:
        name = f"{self.name}, decompressed,"
        return EndOfStream(name, offset=self.offset, missing_bytes=missing_bytes, what=what)

    def _has_content(self) -> bool:
        """Have some content at hand, if there is any more: whether there is."""
        while self._at == len(self._content):
            if self._passed is not None:
                self._content, self._at = b"", 0
                self._passed()
                self._passed = None
            self._start_jobs()
            if not self._begun:
                return False
            job, future = self._begun[0]
            content = result_of(future)
            self._begun.popleft()
            if job.check is not None:
                job.check(content)
            self._content, self._at, self._passed = content, 0, job.passed
        return True

    def _start_jobs(self) -> None:
        while self._has_more_jobs and len(self._begun) < self._depth:
            job = next(self._jobs, None)
            if job is None:
                self._has_more_jobs = False
                return
            with shield():  # a job that was begun must also be in the queue
                pool = self._in_turn if job.in_turn else self._pool
                self._begun.append((job, pool.submit(job.work)))
