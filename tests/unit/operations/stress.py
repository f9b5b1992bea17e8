"""What the stress tests share: one fault or signal at a random place, and what must hold after each run."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import saverestore
from pyxc import XenError
from saverestore.errors import DomainError, Interrupted, TransportError
from saverestore.interrupts import handled

PACKAGE = str(Path(saverestore.__file__).parent)
FAKES = str(Path(PACKAGE, "testing"))
"""A signal halfway through what the in-memory domain does to itself would be a thing that no real domain meets."""


@contextmanager
def seeded(seed: int) -> Iterator[random.Random]:
    """Chance that can be had again: whatever fails inside says which it was."""
    chance = random.Random(seed)
    try:
        yield chance
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise


class Fault:
    """Fails at the n-th call of whatever it is put into: once, and with an error that is known again."""

    def __init__(self, chance: random.Random, *, of_the_system: bool) -> None:
        errors: list[Callable[[], BaseException]] = [
            lambda: OSError(errno.EIO, "Input/output error"),
            lambda: OSError(errno.ENOSPC, "No space left on device"),
        ]
        if not of_the_system:
            errors += [
                lambda: DomainError("the domain did it"),
                lambda: TransportError("the disk did it"),
                lambda: XenError("xc_call", errno.EFAULT, domid=7),
                lambda: MemoryError(),
                lambda: ValueError("nobody thought of this"),
                lambda: Interrupted("interrupted by Ctrl-C"),
            ]
        self.error = chance.choice(errors)()
        self._left = chance.choice([0, 0, 1, 2, chance.randrange(12)])
        self._lock = threading.Lock()
        self.raised = False

    def reached(self) -> None:
        """The n-th time, fail."""
        with self._lock:
            self._left -= 1
            now = self._left == -1
            self.raised |= now
        if now:
            raise self.error

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, failing before it does anything, at its n-th call."""

        def failing(*args: Any, **kwargs: Any) -> Any:
            self.reached()
            return function(*args, **kwargs)

        return failing

    def after(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, failing when it has done all that it does."""

        def failing(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            self.reached()
            return result

        return failing

    def is_the_reason_of(self, error: BaseException | None) -> bool:
        """Whether that is what was raised, as it was or as the cause of what is told instead."""
        while error is not None:
            if error is self.error:
                return True
            error = error.__cause__
        return False


class Lines:
    """Counts the lines of this package that the main thread runs, and sends a signal at one of them."""

    def __init__(self, send_at: int = -1, number: int = signal.SIGINT) -> None:
        self.count = 0
        self.where = ""
        self._send_at = send_at
        self._number = number

    def _enter(self, frame: Any, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        return self._line if name.startswith(PACKAGE) and not name.startswith(FAKES) else None

    def _line(self, frame: Any, event: str, _: Any) -> Any:
        if event == "line":
            if self.count == self._send_at:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                os.kill(os.getpid(), self._number)
            self.count += 1
        return self._line

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside this block, as a command would run it."""
        with handled():
            before = sys.gettrace()
            sys.settrace(self._enter)
            try:
                yield
            finally:
                sys.settrace(before)


def descriptors() -> dict[str, str]:
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the listing itself
            found[path.name] = str(path.readlink())
    return found


@contextmanager
def nothing_is_left(*, but_for: Path | None = None) -> Iterator[None]:
    """No thread and no descriptor is there after the block that was not before.

    `but_for`: a folder in which a file may still be open for reading: a signal may come when open(2) has returned
    and nobody has its result yet.
    """
    threads, open_before = set(threading.enumerate()), descriptors()
    yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=5)  # one that was told to end may not have got round to it
    left = [thread.name for thread in threading.enumerate() if thread not in threads]
    assert left == [], f"threads left: {left}"
    still_open = [where for fd, where in descriptors().items() if open_before.get(fd) != where]
    still_open = [where for where in still_open if but_for is None or Path(where).parent != but_for]
    assert still_open == [], f"descriptors left: {still_open}"


def forget(error: BaseException | None) -> None:
    """What a traceback holds lives as long as it does, and nobody looks at it any more: arrays, generators."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


@contextmanager
def patched() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch
