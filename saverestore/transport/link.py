"""One link of a connection that has several, see `links`: its state, under the connection's lock."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from saverestore.errors import SaveRestoreError, TransportError
from saverestore.transport.connection import Connection

Opened = AbstractContextManager[Connection]


class Link:
    """`opened`: what closes the connection. `to_say`: frames that are not data, which this link sends next."""

    def __init__(self, opened: Opened, connection: Connection, lock: threading.Lock) -> None:
        self.opened = opened
        self.connection = connection
        self.wake = threading.Condition(lock)
        self.to_say: list[bytes] = []
        self.is_synced = False  # the peer has said what is there
        self.has_ended = False  # END was said
        self.is_over = False
        self.is_sending_data = False
        self.threads = 0
        """How many of its two threads run."""

    @property
    def data_bytes(self) -> int:
        """Grows with each byte that it takes of a frame of data. What it says besides does not count."""
        return self.connection.outgoing.offset if self.is_sending_data else 0

    def close(self) -> None:
        """Close the connection, which nobody uses any more."""
        with contextlib.suppress(SaveRestoreError, OSError):
            self.opened.__exit__(None, None, None)
        with contextlib.suppress(SaveRestoreError, OSError):
            self.connection.close()


def started(work: Callable[[], None], name: str) -> threading.Thread:
    """A thread of a link that is running. TransportError when there can be no more threads."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise TransportError(f"no thread for a link: {error}") from error
    return thread
