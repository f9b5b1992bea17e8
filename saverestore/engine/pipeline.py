"""Work on batches ahead of the one being written: bounded, and in order.

The caller's thread takes results one by one and does the writing: so a signal reaches it at once, and order
on the wire needs no further thought. Workers map, normalise, copy and digest; those calls release the GIL.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar


class Closeable(Protocol):
    """A result that holds something until it is closed."""

    def close(self) -> None:
        """Give it back."""


Item = TypeVar("Item")
Result = TypeVar("Result", bound=Closeable)


@contextmanager
def ahead(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], *, depth: int
) -> Iterator[Iterator[Result]]:
    """Results of `work` on each item, in order, at most `depth` of them begun and not yet taken.

    An exception of `work` is raised where its result would have been taken. However the block ends, all
    results that were begun and not taken have been closed when it has ended.
    """
    pending: deque[Future[Result]] = deque()

    def results() -> Iterator[Result]:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) >= depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    try:
        yield results()
    finally:
        for future in pending:
            future.cancel()
        for future in pending:
            if not future.cancelled() and future.exception() is None:
                future.result().close()
