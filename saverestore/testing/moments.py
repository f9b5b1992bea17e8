"""Moments at which a test acts: each call of a port is one."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Moments:
    """Port calls as they come: recorded in `calls`, with callbacks that may write pages or raise.

    Moments are named after the port's methods ("read_pages", "log_dirty.take" …); also "suspended": the
    guest has stopped and `suspend` is about to return. Callbacks run on the thread of the call, one at a time.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._lock = threading.RLock()
        self._at: dict[tuple[str, int], list[Callable[[], None]]] = {}
        self._always: list[Callable[[str, int], None]] = []

    def on(self, name: str, number: int, do: Callable[[], None]) -> None:
        """Call `do` at the moment `name` for the `number`-th time, counted from 0."""
        self._at.setdefault((name, number), []).append(do)

    def on_every(self, do: Callable[[str, int], None]) -> None:
        """Call `do(name, total)` at every moment; `total` counts them all, from 0."""
        self._always.append(do)

    def fail(self, name: str, number: int, error: BaseException) -> None:
        """Raise `error` there."""

        def raise_it() -> None:
            raise error

        self.on(name, number, raise_it)

    def reached(self, name: str) -> None:
        """For the ports: this moment has come."""
        with self._lock:
            number, total = self.calls.count(name), len(self.calls)
            self.calls.append(name)
            for always in self._always:
                always(name, total)
            for do in self._at.get((name, number), ()):
                do()
