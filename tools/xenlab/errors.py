"""What the lab raises, and what it says while it works."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


class LabError(Exception):
    """The lab could not do what was asked; the message is one line and says what to do next."""

    def __init__(self, message: str, tail: str = "") -> None:
        super().__init__(message)
        self.tail = tail
        """Last lines of the log that shows the cause; may be empty."""


class Interrupted(BaseException):
    """SIGTERM or SIGHUP arrived: clean up on the way out, as for KeyboardInterrupt."""


def raise_on_signals() -> None:
    """From now on SIGTERM and SIGHUP raise Interrupted, so that what was started is ended. For each `main`."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted


def say(text: str) -> None:
    """Write one line of progress to stderr."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Announce a step and, when it ends well, how long it took."""
    say(f"{text} ...")
    start = time.monotonic()
    yield
    say(f"{text}: done in {time.monotonic() - start:.1f} s")


def tail_of(path: Path, lines: int = 25) -> str:
    """Return the last `lines` lines of a log file that may be absent or hold any bytes."""
    try:
        text = path.read_bytes()[-65536:].decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(line.rstrip("\r") for line in text.splitlines()[-lines:])
