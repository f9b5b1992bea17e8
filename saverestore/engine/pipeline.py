"""Work on batches ahead of the one being written: bounded, and in order.

The caller's thread takes results one by one and does the writing: so a signal reaches it at once, and order
on the wire needs no further thought. Workers map, normalise, copy and digest; those calls release the GIL.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Protocol, TypeVar

from saverestore.interrupts import result_of, shield


class Closeable(Protocol):
    """A result that holds something until it is closed."""

    def close(self) -> None:
        """Give it back. Twice is fine."""


Item = TypeVar("Item")
Result = TypeVar("Result", bound=Closeable)


@contextmanager
def workers(nr: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Threads that have ended when the block has."""
    pool = ThreadPoolExecutor(nr, thread_name_prefix=name)
    try:
        yield pool
    finally:
        with shield():
            pool.shutdown(wait=True)


@contextmanager
def ahead(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], *, depth: int
) -> Iterator[Iterator[Result]]:
    """Results of `work` on each item, in order, at most `depth` of them begun and not yet done with.

    The caller is done with a result when it asks for the next. An exception of `work` is raised where its result
    would have been taken. However the block ends, all results that were begun have been closed when it has
    ended, but for those the caller was done with.
    """
    pending: deque[Future[Result]] = deque()

    def first() -> Iterator[Result]:
        # It stays in `pending` until the caller comes back: a signal may come while it is waited for, and
        # before the caller has it in hand.
        yield result_of(pending[0])
        pending.popleft()

    def results() -> Iterator[Result]:
        for item in items:
            with shield():  # what was submitted must also be in `pending`
                pending.append(pool.submit(work, item))
            if len(pending) >= depth:
                yield from first()
        while pending:
            yield from first()

    try:
        yield results()
    finally:
        with shield(), ExitStack() as closing:
            for future in pending:
                future.cancel()
            for future in pending:
                if not future.cancelled():
                    closing.callback(_close, future)


def _close(future: Future[Result]) -> None:
    """Wait for it, and close what came of it, if anything did."""
    if future.exception() is None:
        future.result().close()
