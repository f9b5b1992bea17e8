"""Links between two ends of a connection that delay, reorder and break at will: real sockets, with relays."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st

from saverestore.migrate.certificate import OwnCertificate
from saverestore.transport import tls_peers
from saverestore.transport.connection import SocketConnection
from saverestore.transport.link_keeper import Attempt
from saverestore.transport.links import LinkedConnection

WINDOW, FRAME = 4000, 500
NEVER = 1 << 60


@dataclass
class Script:
    """What happens to one link: bytes pass `chunk` at a time, `delay_ms` apart; it is cut after so many bytes.

    `silently`: nothing passes any more, and neither side is told. `for_one_side`: nor is the second told, which goes
    on taking it for a link.
    """

    cut_after: int = NEVER
    chunk: int = 1 << 16
    delay_ms: int = 0
    silently: bool = False
    for_one_side: bool = False


class Relay:
    """A link that does as its script says."""

    def __init__(self, script: Script, *, is_under_way: bool = True) -> None:
        """`is_under_way`: whether what passes counts; False during a handshake, which nothing cuts."""
        self.script = script
        self.is_under_way = is_under_way
        self.ends, self._inner = zip(*(socket.socketpair() for _ in range(2)), strict=True)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            self._pass_on(*self._inner)
        if self.script.for_one_side and not self._stopping.is_set():
            self._inner[0].close()
            self._stopping.wait(60)
        for end in self._inner:
            end.close()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        passed = 0
        while not (self.is_under_way and passed >= self.script.cut_after) and not self._stopping.is_set():
            ready, _, _ = select.select([one, other], [], [], 0.01)
            for end in ready:
                data = end.recv(min(self.script.chunk, self.script.cut_after - passed or 1))
                if not data:
                    return
                (other if end is one else one).sendall(data)
                passed += len(data) * self.is_under_way
                time.sleep(self.script.delay_ms / 1000)
        if self.script.silently:
            self._stopping.wait(30)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(30)


def plainly(relay: Relay, timeout_s: float) -> list[SocketConnection]:
    """Both ends of a link as connections."""
    return [SocketConnection(end, "peer", timeout_s=timeout_s) for end in relay.ends]


def by_tls(relay: Relay, timeout_s: float) -> list[SocketConnection]:
    """The same over TLS, by certificates made for it. What breaks the link comes behind the handshake."""
    ours, theirs = OwnCertificate.made("one"), OwnCertificate.made("other")
    (here, _), (there, allowed) = ours.pinned(theirs.text), theirs.pinned(ours.text)
    accepted: list[SocketConnection] = []

    def serve() -> None:
        accepted.append(tls_peers.admitted(relay.ends[1], "peer", there, allowed, timeout_s=timeout_s))

    thread = threading.Thread(target=serve)
    thread.start()
    one = tls_peers.connected(relay.ends[0], "", "peer", here, timeout_s=timeout_s)
    thread.join()
    relay.is_under_way = True
    return [one, *accepted]


class Ends:
    """Two ends of a linked connection. The first opens links, by these scripts; then links that do not break."""

    def __init__(
        self,
        scripts: list[Script],
        wanted: int,
        *,
        resume_for_s: float = 30,
        timeout_s: float = 20,
        over: Callable[[Relay, float], list[SocketConnection]] = plainly,
    ) -> None:
        self._scripts = list(scripts)
        self._over = over
        self._timeout_s = timeout_s
        self.relays: list[Relay] = []
        ours, theirs = self._link()
        more = {
            "timeout_s": timeout_s,
            "resume_for_s": resume_for_s,
            "window_bytes": WINDOW,
            "frame_bytes": FRAME,
        }
        self.other = LinkedConnection(theirs, **more)
        self.one = LinkedConnection(ours, open_link=self._open, wanted=wanted, **more)

    def _link(self) -> tuple[SocketConnection, SocketConnection]:
        script = self._scripts.pop(0) if self._scripts else Script()
        relay = Relay(script, is_under_way=self._over is plainly)
        self.relays.append(relay)
        one, other = self._over(relay, self._timeout_s)
        return one, other

    def _open(self, attempt: Attempt) -> contextlib.AbstractContextManager[SocketConnection]:
        ours, theirs = self._link()
        self.other.add(contextlib.nullcontext(theirs), attempt.number)
        return contextlib.nullcontext(ours)

    def close(self) -> None:
        closing = threading.Thread(target=self.other.close)
        closing.start()
        self.one.close()
        closing.join(30)
        for relay in self.relays:
            relay.stop()


SCRIPTS = st.lists(
    st.builds(
        Script,
        cut_after=st.sampled_from([0, 1, 13, 14, 200, 700, 2000, 5000, 20_000, NEVER]),
        chunk=st.sampled_from([1, 7, 100, 1 << 16]).filter(bool),
        delay_ms=st.sampled_from([0, 0, 1, 3]),
        for_one_side=st.booleans(),
    ).filter(lambda one: one.chunk > 7 or one.delay_ms == 0),
    max_size=8,
)
