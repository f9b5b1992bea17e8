"""Both ends of a conversation, in one process."""

from __future__ import annotations

import socket
import threading

from saverestore.migrate.channel import Channel
from saverestore.migrate.messages import Hello
from saverestore.transport.connection import SocketConnection

NAP_S = 0.02


def channels(timeout_s: float = 20.0) -> tuple[Channel, Channel]:
    one, other = socket.socketpair()
    return tuple(
        Channel(SocketConnection(end, "b", timeout_s=timeout_s), keepalive_s=NAP_S) for end in (one, other)
    )  # type: ignore


def greet_both(one: Channel, other: Channel) -> list[Hello]:
    heard = []
    thread = threading.Thread(target=lambda: heard.append(other.greet("bbbb", "2", "b")))
    thread.start()
    heard.append(one.greet("aaaa", "1", "a"))
    thread.join()
    return heard
