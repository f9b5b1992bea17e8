"""Sees that a connection over several links has as many as are wanted: see `links`."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from saverestore.errors import SaveRestoreError, fact_of
from saverestore.interrupts import HEED_S
from saverestore.transport.connection import Connection
from saverestore.transport.link import Opened

LOG = logging.getLogger(__name__)

RETRY_S = 1.0


class Attempt:
    """One try to open a link, which another thread may give up. `number`: which of the links it is to be, from 0 on.

    No other link of this side has that number. If the peer has one, that has broken here, and the new one takes its
    place.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._given_up = threading.Event()
        self._connection: Connection | None = None

    def is_given_up(self) -> bool:
        """Whether nobody wants it any more."""
        return self._given_up.is_set()

    def use(self, connection: Connection) -> None:
        """From now on, who waits for this connection's peer waits no longer when it is given up: PeerTimeout.

        Its `deadline` stays as it is until then, and is over from then on.
        """
        self._connection = connection
        if self._given_up.is_set():
            self.give_up()

    def give_up(self) -> None:
        """Nobody wants it any more. From any thread."""
        self._given_up.set()
        connection = self._connection
        if connection is not None:
            connection.deadline = time.monotonic()


Open = Callable[[Attempt], Opened]
"""Opens one more link to the same peer. SaveRestoreError when it cannot be had now, or was given up."""


class Kept(Protocol):
    """What is known of the connection."""

    peer: str

    @property
    def nr_links(self) -> int:
        """How many links there are now."""

    def free_number(self) -> int:
        """The lowest that no link has."""

    def add(self, opened: Opened, number: int) -> None:
        """One more."""

    def is_over(self) -> bool:
        """Whether no link is of use any more."""

    def waits_for_links(self) -> bool:
        """Without a link: whether one may still come."""


class Keeper:
    """`run` belongs on a thread of its own, and returns when the connection is over. `missing`: set it to have it
    look at once.
    """

    def __init__(self, kept: Kept, open_link: Open, wanted: int) -> None:
        self.open_link = open_link
        self.missing = threading.Event()
        self.missing.set()
        self._kept = kept
        self._wanted = wanted
        self._has_warned = False
        self._attempt: Attempt | None = None

    def give_up(self) -> None:
        """The connection is over: a link that is just being opened is not waited for. From any thread."""
        attempt = self._attempt
        if attempt is not None:
            attempt.give_up()

    def run(self) -> None:
        """Open links as long as any are missing, and try again each second."""
        kept = self._kept
        while not kept.is_over():
            if not self.missing.wait(HEED_S):
                continue
            self.missing.clear()
            while not kept.is_over() and kept.nr_links < self._wanted:
                if not kept.nr_links and not kept.waits_for_links():
                    break
                attempt = self._attempt = Attempt(kept.free_number())
                if kept.is_over():  # since before anybody could give it up
                    return
                try:
                    kept.add(self.open_link(attempt), attempt.number)
                except Exception as error:  # whatever it is: without this thread nobody opens a link any more
                    if kept.is_over():
                        return
                    self._warn(error)
                    end = time.monotonic() + RETRY_S
                    while not kept.is_over() and time.monotonic() < end:
                        time.sleep(HEED_S)

    def _warn(self, error: Exception) -> None:
        """Once; and not of what is to be expected while there is no link at all."""
        nr_links = self._kept.nr_links
        if self._has_warned or (not nr_links and isinstance(error, SaveRestoreError | OSError)):
            return
        self._has_warned = True
        LOG.warning("%d of %d connections to %s: %s", nr_links, self._wanted, self._kept.peer, fact_of(error))
