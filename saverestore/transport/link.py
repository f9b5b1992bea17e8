"""One link of a connection that has several, see `links`, and the times without any: under the connection's lock."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from saverestore.errors import SaveRestoreError, TransportError, fact_of
from saverestore.interrupts import shield
from saverestore.transport.connection import BrokenPeer, Connection
from saverestore.transport.window import BadFrame

LOG = logging.getLogger(__name__)

Opened = AbstractContextManager[Connection]


class Link:
    """`opened`: what closes the connection. `number`: which one it is, for both sides. `to_say`: frames that are not
    data, which this link sends next.
    """

    def __init__(self, opened: Opened, connection: Connection, number: int, lock: threading.Lock) -> None:
        self.opened = opened
        self.connection = connection
        self.number = number
        self.wake = threading.Condition(lock)
        self.to_say: list[bytes] = []
        self.is_synced = False  # the peer has said what is there
        self.has_ended = False  # END was said
        self.is_over = False
        self.is_sending_data = False
        self._data_end = 0  # of what TCP has sent, where the last frame of data ends
        self.threads = 0
        """How many of its two threads run."""

    def sent_data(self) -> None:
        """A frame of data was given to the kernel, all of it."""
        if (passed := self.connection.passed()) is not None:
            self._data_end = sum(passed)
            self.is_sending_data = False

    @property
    def data_bytes(self) -> int:
        """Grows with each byte of a frame of data that the peer's kernel gets, or, where nobody knows that, this one.

        What it says besides does not count: a peer that lives, and uses nothing, gets that all the same.
        """
        passed = self.connection.passed()
        if passed is None:
            return self.connection.outgoing.offset if self.is_sending_data else 0
        return passed[0] if self.is_sending_data else min(passed[0], self._data_end)

    def close(self) -> None:
        """Close the connection, which nobody uses any more."""
        with contextlib.suppress(SaveRestoreError, OSError):
            self.opened.__exit__(None, None, None)
        with contextlib.suppress(SaveRestoreError, OSError):
            self.connection.close()


class Breaks:
    """How often and how long there was no link, under the connection's lock. `mended`: how often there was one again;
    `since`: when the last break began.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self.mended = 0
        self.since = 0.0
        self._lock = lock
        self._mended_s = 0.0
        self._ends_at = 0.0

    @property
    def seconds(self) -> float:
        """How long there was none, in all; of one that is not waited for any more, until it was given up."""
        with shield(), self._lock:
            return self._mended_s + self._lasted_s()

    def _lasted_s(self) -> float:
        """0 of one that is mended."""
        return min(time.monotonic(), self._ends_at) - self.since

    def begin(self) -> None:
        """The last link has broken; `wait` where another one is waited for."""
        self.since = self._ends_at = time.monotonic()

    def wait(self, most_s: float, peer: str, error: BaseException) -> None:
        """Another one is waited for, so long at most; that is logged."""
        self._ends_at = self.since + most_s
        LOG.warning(
            "the link to %s is broken (%s); waiting up to %.0f s for a new one", peer, fact_of(error), most_s
        )

    def give_up(self) -> None:
        """No other one is waited for any more. Where there is a link, this does nothing."""
        self._ends_at = min(self._ends_at, time.monotonic())

    def mend(self) -> float:
        """There is a link again: after how many seconds."""
        self.mended += 1
        lasted_s = time.monotonic() - self.since
        self._mended_s += lasted_s
        self._ends_at = self.since
        return lasted_s


def started(work: Callable[[], None], name: str) -> threading.Thread:
    """A thread of a link that is running. TransportError when there can be no more threads."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise TransportError(f"no thread for a link: {error}") from error
    return thread


def broken(peer: str, failure: BaseException | None) -> TransportError:
    """The error of a connection that has no link any more, from what the last one ended by."""
    if isinstance(failure, BadFrame):
        return BadFrame(f"{peer}: {failure}")
    return BrokenPeer(peer, "cannot be reached any more" + (f": {fact_of(failure)}" if failure else ""))


def delivery_rate(links: Sequence[Link]) -> int | None:
    """See Connection: of all of them together; None where one does not know, or there is none."""
    rates = [link.connection.delivery_rate() for link in links]
    known = [rate for rate in rates if rate is not None]
    return sum(known) if known and len(known) == len(rates) else None


def share_rate(links: Sequence[Link], rate: int | None) -> bool:
    """Give each its share of a rate, see Connection's `pace`. False where one of them cannot hold to that."""
    share = None if rate is None else max(1, rate // max(1, len(links)))
    paced = [link.connection.pace(share) for link in links]  # every one, also behind one that cannot
    return all(paced)
