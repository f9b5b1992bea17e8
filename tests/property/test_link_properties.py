"""Several links that delay, reorder and break at will: each byte arrives once, in order; no older page over a newer.

Real sockets: each link passes through a relay, which holds bytes back and cuts it amid a frame.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saverestore.errors import TransportError
from saverestore.migrate.certificate import OwnCertificate
from saverestore.transport import tls_peers
from saverestore.transport.connection import SocketConnection
from saverestore.transport.links import LinkedConnection

WINDOW, FRAME = 4000, 500
NEVER = 1 << 60


@dataclass
class Script:
    """What happens to one link: bytes pass `chunk` at a time, `delay_ms` apart; it is cut after so many bytes.

    `silently`: nothing passes any more, and neither side is told.
    """

    cut_after: int = NEVER
    chunk: int = 1 << 16
    delay_ms: int = 0
    silently: bool = False


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

    def _open(self) -> contextlib.AbstractContextManager[SocketConnection]:
        ours, theirs = self._link()
        self.other.add(contextlib.nullcontext(theirs))
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
    ).filter(lambda one: one.chunk > 7 or one.delay_ms == 0),
    max_size=8,
)
PAGES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 900)), max_size=60)
"""A write each: which page, and how many bytes."""
ROW = struct.Struct("<III")


def write_pages(connection: LinkedConnection, pages: list[tuple[int, int]]) -> None:
    for version, (page, size) in enumerate(pages):
        connection.outgoing.writev([ROW.pack(page, version, size), bytes([version % 256]) * size])


def read_pages(connection: LinkedConnection, nr: int, newest: dict[int, int]) -> None:
    for version in range(nr):
        page, found, size = ROW.unpack(connection.incoming.read(ROW.size))
        assert found == version > newest.get(page, -1)
        newest[page] = found
        assert connection.incoming.read(size) == bytes([version % 256]) * size


LINKS = given(scripts=SCRIPTS, wanted=st.sampled_from([1, 2, 4]), there=PAGES, back=PAGES)


@LINKS
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_links_do_no_older_page_comes_behind_a_newer_one_and_none_is_lost(
    scripts, wanted, there, back
):
    check_order(Ends(scripts, wanted), there, back)


@LINKS
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_same_holds_over_tls_with_certificates_made_for_it(scripts, wanted, there, back):
    pytest.importorskip("cryptography")
    check_order(Ends(scripts, wanted, over=by_tls), there, back)


def check_order(ends: Ends, there: list[tuple[int, int]], back: list[tuple[int, int]]) -> None:
    """Write these pages in both directions, and see what arrives."""
    failures: list[BaseException] = []
    newest: list[dict[int, int]] = [{}, {}]

    def run(work, *given) -> threading.Thread:
        def inner() -> None:
            try:
                work(*given)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=inner, daemon=True)
        thread.start()
        return thread

    threads = [
        run(write_pages, ends.one, there),
        run(write_pages, ends.other, back),
        run(read_pages, ends.other, len(there), newest[0]),
        run(read_pages, ends.one, len(back), newest[1]),
    ]
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert failures == []
    assert newest == [{page: version for version, (page, _) in enumerate(pages)} for pages in (there, back)]
    ends.close()


@pytest.mark.parametrize("wanted", [1, 4])
def test_a_link_that_passes_nothing_any_more_is_noticed_within_the_silence(wanted):
    ends = Ends([Script(cut_after=3000, silently=True)], wanted, timeout_s=0.5)
    pages = [(n % 5, 700) for n in range(40)]
    newest: dict[int, int] = {}
    writer = threading.Thread(target=write_pages, args=(ends.one, pages))
    begun = time.monotonic()
    writer.start()
    read_pages(ends.other, len(pages), newest)
    writer.join()
    assert time.monotonic() - begun < 20  # nothing else ends it: the relay waits for 30 s
    assert 0 < ends.one.resent_bytes <= WINDOW
    ends.close()


def test_without_a_new_link_in_time_both_sides_give_up():
    ends = Ends([Script(cut_after=300)], 1, resume_for_s=0.3)
    ends.one._open_link = lambda: (_ for _ in ()).throw(TransportError("no way"))
    begun = time.monotonic()
    with pytest.raises(TransportError, match="cannot be reached any more"):
        ends.one.outgoing.write(bytes(50_000))
    with pytest.raises(TransportError, match="cannot be reached any more"):
        ends.other.incoming.read(50_000)
    assert 0.2 < time.monotonic() - begun < 20
    ends.close()
