"""Links whose own threads fail, which cannot be started, and which come too late."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from saverestore.errors import TransportError
from saverestore.migrate.certificate import OwnCertificate
from saverestore.transport import tls_peers
from saverestore.transport.connection import Connection, PeerTimeout, SocketConnection
from saverestore.transport.link_keeper import Attempt
from saverestore.transport.links import LinkedConnection
from saverestore.transport.window import HEADER, Frame, Kind, Spares

LONG_S = 20.0
FRAME, WINDOW = 500, 4000
DATA = bytes(range(250)) * 200


def connected() -> tuple[SocketConnection, SocketConnection]:
    return tuple(SocketConnection(end, "peer", timeout_s=LONG_S) for end in socket.socketpair())  # type: ignore


def linked(first: Connection, **more: Any) -> LinkedConnection:
    return LinkedConnection(
        first, timeout_s=LONG_S, resume_for_s=LONG_S, window_bytes=WINDOW, frame_bytes=FRAME, **more
    )


@contextlib.contextmanager
def ends(wanted: int = 2, wrap: Callable[[Connection], Any] = contextlib.nullcontext) -> Iterator[Any]:
    """Two ends, the first of which opens links; both are closed behind the block."""
    ours, theirs = connected()
    other = linked(theirs)

    def open_link(attempt: Attempt) -> Any:
        ours, theirs = connected()
        other.add(contextlib.nullcontext(theirs), attempt.number)
        return wrap(ours)

    one = linked(ours, open_link=open_link, wanted=wanted)
    try:
        wait_for(lambda: one.nr_links == wanted)
        yield one, other
    finally:
        closing = threading.Thread(target=other.close)
        closing.start()
        one.close()
        closing.join(LONG_S)


def wait_for(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def once(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, error: BaseException, when: Any
) -> list[Any]:
    """Let one call of this raise an error, the first for which `when` holds; the list has what it was called with."""
    real = getattr(where, name)
    failed: list[Any] = []

    def failing(*given: Any) -> Any:
        if not failed and when(*given):
            failed.append(given)
            raise error
        return real(*given)

    monkeypatch.setattr(where, name, failing)
    return failed


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("a mistake"), SystemExit()])
@pytest.mark.parametrize("what", ["receiving", "sending"])
def test_all_bytes_arrive_also_when_a_thread_of_a_link_fails_in_an_unexpected_way(monkeypatch, what, error):
    with ends() as (one, other):
        if what == "receiving":
            failed = once(
                monkeypatch, Spares, "take", error, lambda spares, _length: spares is other._inbox.spares
            )
        else:
            failed = once(monkeypatch, Frame, "parts", error, lambda _frame: True)
        writer = threading.Thread(target=one.outgoing.write, args=(DATA,), daemon=True)
        writer.start()
        one.deadline = other.deadline = time.monotonic() + LONG_S
        assert other.incoming.read(len(DATA)) == DATA
        writer.join(LONG_S)
        assert len(failed) == 1


@pytest.mark.parametrize("which", ["link-sender", "link-receiver"])
def test_a_link_whose_threads_cannot_be_started_is_closed_and_another_one_is_opened(monkeypatch, which):
    opened: list[Connection] = []
    error = RuntimeError("can't start new thread")

    def is_of_second(thread: threading.Thread) -> bool:
        return thread.name == which and len(opened) == 1

    def wrap(connection: Connection) -> Any:
        opened.append(connection)
        return contextlib.nullcontext(connection)

    failed = once(monkeypatch, threading.Thread, "start", error, is_of_second)
    with ends(wrap=wrap) as (one, other):
        assert (len(opened), len(failed)) == (2, 1)
        wait_for(lambda: opened[0].fileno() < 0)  # type: ignore[attr-defined]
        wait_for(lambda: other.nr_links == 2)
        assert (one.most_links, one.breaks.mended) == (2, 0)
        one.outgoing.write(b"here")
        assert other.incoming.read(4) == b"here"


def test_a_first_link_whose_threads_cannot_be_started_is_an_error_and_closed(monkeypatch):
    ours, theirs = connected()
    error = RuntimeError("can't start new thread")
    once(monkeypatch, threading.Thread, "start", error, lambda thread: thread.name == "link-receiver")
    with pytest.raises(TransportError, match="can't start new thread"):
        linked(ours)
    wait_for(lambda: ours.fileno() < 0)
    theirs.close()


def test_opening_a_link_is_tried_again_whatever_it_failed_with(caplog):
    ours, theirs = connected()
    other = linked(theirs)
    tries = []

    def open_link(_attempt: Attempt) -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise LookupError("a mistake")
        ours, theirs = connected()
        other.add(contextlib.nullcontext(theirs), 1)
        return contextlib.nullcontext(ours)

    one = linked(ours, open_link=open_link, wanted=2)
    wait_for(lambda: one.nr_links == 2)
    assert "1 of 2 connections to peer: LookupError: a mistake" in caplog.text
    closing = threading.Thread(target=other.close)
    closing.start()
    one.close()
    closing.join(LONG_S)


def test_a_link_that_comes_when_all_is_closed_is_closed():
    ours, theirs = connected()
    one = linked(ours)
    theirs.close()
    one.close()
    late, peer = connected()
    one.add(contextlib.nullcontext(late), 1)
    peer.deadline = time.monotonic() + 1
    assert peer.incoming.at_end()
    peer.close()


def test_what_is_said_as_a_link_ends_leaves_by_another_at_once():
    with ends() as (one, other):
        wait_for(lambda: len(one._idle) == 2 and all(link.is_synced for link in one._idle))
        with one._lock:  # so that the link's own threads find out later
            one._end_link(next(iter(one._idle)))
            one._outbox.put(bytearray(b"here"), 4)
            one._wake_one()
            assert not one._idle
        begun = time.monotonic()
        other.deadline = begun + LONG_S
        assert other.incoming.read(4) == b"here"
        assert time.monotonic() - begun < LONG_S / 6


def half_dead() -> tuple[SocketConnection, SocketConnection, Callable[[], None]]:
    """Two ends of a link, and what breaks it for the first alone: the second hears nothing of that."""
    (ours, inner), (outer, theirs) = socket.socketpair(), socket.socketpair()

    def pass_on(whence: socket.socket, where: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := whence.recv(1 << 16):
                where.sendall(data)

    for way in ((inner, outer), (outer, inner)):
        threading.Thread(target=pass_on, args=way, daemon=True).start()
    ends = (SocketConnection(end, "peer", timeout_s=LONG_S) for end in (ours, theirs))
    return *ends, lambda: inner.shutdown(socket.SHUT_RDWR)  # type: ignore[return-value]


@pytest.mark.parametrize("nr_broken", [1, 2])
def test_a_link_that_is_opened_anew_takes_the_place_of_the_one_of_which_the_peer_has_not_seen_that_it_broke(
    nr_broken,
):
    breaking: list[Callable[[], None]] = []
    broken: list[Connection] = []
    numbers: list[int] = []

    def link() -> tuple[SocketConnection, SocketConnection]:
        if len(breaking) == 2:
            return connected()
        ours, theirs, breaks = half_dead()
        breaking.append(breaks)
        broken.append(theirs)
        return ours, theirs

    def open_link(attempt: Attempt) -> Any:
        numbers.append(attempt.number)
        ours, theirs = link()
        other.add(contextlib.nullcontext(theirs), attempt.number)
        return contextlib.nullcontext(ours)

    ours, theirs = link()
    other = linked(theirs)
    other.resume_for_s = 0  # it would not wait for another link
    one = linked(ours, open_link=open_link, wanted=2)
    wait_for(lambda: one.nr_links == 2)
    begun = time.monotonic()
    for breaks in breaking[:nr_broken]:
        breaks()
    wait_for(lambda: len(numbers) == 1 + nr_broken and one.nr_links == 2)
    wait_for(lambda: all(end.fileno() < 0 for end in broken[:nr_broken]))  # type: ignore[attr-defined]
    assert other.nr_links == 2
    assert sorted(numbers[1:]) == [0, 1][:nr_broken]
    assert (other.breaks.mended, other.most_links) == (0, 2)
    for whence, where in ((one, other), (other, one)):
        where.deadline = begun + LONG_S
        writer = threading.Thread(target=whence.outgoing.write, args=(DATA,), daemon=True)
        writer.start()
        assert where.incoming.read(len(DATA)) == DATA
        writer.join(LONG_S)
    assert time.monotonic() - begun < LONG_S / 3  # nobody has waited for the silence
    closing = threading.Thread(target=other.close)
    closing.start()
    one.close()
    closing.join(LONG_S)


# ---- closing -----------------------------------------------------------------------------------------

SILENCE_S = 0.5


def slow_link(chunk: int, pause_s: float) -> tuple[SocketConnection, SocketConnection]:
    """Two ends of a link that takes so many bytes of the first at a time; what the other says comes at once."""
    (ours, inner), (outer, theirs) = socket.socketpair(), socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least that the kernel allows

    def pass_on(whence: socket.socket, where: socket.socket, most: int, pause_s: float) -> None:
        with contextlib.suppress(OSError):
            while data := whence.recv(most):
                where.sendall(data)
                time.sleep(pause_s)
            where.shutdown(socket.SHUT_WR)

    for way in ((inner, outer, chunk, pause_s), (outer, inner, 1 << 16, 0.0)):
        threading.Thread(target=pass_on, args=way, daemon=True).start()
    return tuple(SocketConnection(end, "peer", timeout_s=SILENCE_S) for end in (ours, theirs))  # type: ignore


@pytest.mark.parametrize(
    ("frame_bytes", "nr_frames", "chunk"),
    [(500, 8, 100), (1 << 17, 1, 1 << 16)],
    ids=["many frames of which the peer uses none", "one long frame"],
)
def test_closing_lasts_as_long_as_what_was_written_goes_on_arriving(frame_bytes, nr_frames, chunk):
    ours, theirs = slow_link(chunk, pause_s=0.03)
    one, other = (
        LinkedConnection(
            end, timeout_s=SILENCE_S, window_bytes=nr_frames * frame_bytes, frame_bytes=frame_bytes
        )
        for end in (ours, theirs)
    )
    data = DATA[:100] * (nr_frames * frame_bytes // 100)
    one.outgoing.write(data)
    begun = time.monotonic()
    one.close()
    assert time.monotonic() - begun > SILENCE_S
    other.deadline = time.monotonic() + LONG_S
    assert other.incoming.read(len(data)) == data
    assert other.incoming.at_end()
    other.close()


def slow_tcp(chunk: int, pause_s: float) -> tuple[socket.socket, socket.socket]:
    """Two ends of a link whose kernel takes all at once, and gets it to the other side as slowly as that."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the least that the kernel allows
        server.bind(("127.0.0.1", 0))
        server.listen()
        ours = socket.create_connection(server.getsockname())
        inner, _ = server.accept()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    outer, theirs = socket.socketpair()

    def pass_on(whence: socket.socket, where: socket.socket, most: int, pause_s: float) -> None:
        with contextlib.suppress(OSError):
            while data := whence.recv(most):
                where.sendall(data)
                time.sleep(pause_s)
            where.shutdown(socket.SHUT_WR)

    for way in ((inner, outer, chunk, pause_s), (outer, inner, 1 << 16, 0.0)):
        threading.Thread(target=pass_on, args=way, daemon=True).start()
    return ours, theirs


@pytest.mark.parametrize("by_tls", [False, True])
def test_closing_lasts_as_long_as_what_the_kernel_has_taken_goes_on_arriving(by_tls):
    ours, theirs = slow_tcp(1 << 12, pause_s=0.03)
    if by_tls:
        pytest.importorskip("cryptography")
        one, other = tls_ends(ours, theirs)
    else:
        one, other = (SocketConnection(end, "peer", timeout_s=SILENCE_S) for end in (ours, theirs))
    frame = 1 << 18
    sender, receiver = (
        LinkedConnection(end, timeout_s=SILENCE_S, window_bytes=frame, frame_bytes=frame)
        for end in (one, other)
    )
    sender.outgoing.write(bytes(frame))
    begun = time.monotonic()
    sender.close()
    assert time.monotonic() - begun > 2 * SILENCE_S
    receiver.deadline = time.monotonic() + LONG_S
    assert receiver.incoming.read(frame) == bytes(frame)
    assert receiver.incoming.at_end()
    receiver.close()


def tls_ends(ours: socket.socket, theirs: socket.socket) -> list[SocketConnection]:
    """Both ends of a link over TLS, by certificates made for it."""
    own, peers = OwnCertificate.made("one"), OwnCertificate.made("other")
    (here, _), (there, allowed) = own.pinned(peers.text), peers.pinned(own.text)
    accepted: list[SocketConnection] = []

    def serve() -> None:
        accepted.append(tls_peers.admitted(theirs, "peer", there, allowed, timeout_s=SILENCE_S))

    thread = threading.Thread(target=serve)
    thread.start()
    one = tls_peers.connected(ours, "", "peer", here, timeout_s=SILENCE_S)
    thread.join(LONG_S)
    return [one, *accepted]


def test_closing_ends_within_the_silence_where_the_peer_lives_and_takes_nothing():
    ours, theirs = connected()
    one = LinkedConnection(ours, timeout_s=SILENCE_S, window_bytes=WINDOW, frame_bytes=FRAME)
    theirs.outgoing.write(HEADER.pack(Kind.SYNCED, 0, 0))
    is_over = threading.Event()

    def live() -> None:
        while not is_over.wait(SILENCE_S / 5):
            with contextlib.suppress(TransportError):  # closed
                theirs.outgoing.write(HEADER.pack(Kind.PING, 0, 0))

    living = threading.Thread(target=live, daemon=True)
    living.start()
    one.outgoing.write(DATA[:1000])
    begun = time.monotonic()
    one.close()
    assert SILENCE_S / 2 < time.monotonic() - begun < 4 * SILENCE_S + 1
    is_over.set()
    living.join(LONG_S)
    theirs.close()


def test_closing_gives_up_a_link_that_is_being_opened():
    ours, theirs = connected()
    opening = threading.Event()

    def open_link(attempt: Attempt) -> Any:
        silent, peer = connected()
        with silent, peer:
            silent.deadline = time.monotonic() + LONG_S
            attempt.use(silent)
            opening.set()
            silent.incoming.read(1)

    one = linked(ours, open_link=open_link, wanted=2)
    assert opening.wait(LONG_S)
    theirs.outgoing.close()
    begun = time.monotonic()
    one.close()
    theirs.close()
    wait_for(lambda: "link-keeper" not in [thread.name for thread in threading.enumerate()])
    assert time.monotonic() - begun < 1.5


def test_an_attempt_that_was_given_up_before_it_has_a_connection_does_not_wait_for_that():
    attempt = Attempt(3)
    assert (attempt.number, attempt.is_given_up()) == (3, False)
    attempt.give_up()
    ours, theirs = connected()
    with ours, theirs:
        attempt.use(ours)
        assert attempt.is_given_up()
        with pytest.raises(PeerTimeout):
            ours.incoming.read(1)


def test_nothing_is_said_of_a_link_that_was_given_up_by_closing(caplog):
    ours, theirs = connected()
    opening = threading.Event()

    def open_link(attempt: Attempt) -> Any:
        opening.set()
        wait_for(attempt.is_given_up)
        raise TransportError("given up")

    one = linked(ours, open_link=open_link, wanted=2)
    assert opening.wait(LONG_S)
    theirs.outgoing.close()
    one.close()
    theirs.close()
    assert "connections to peer" not in caplog.text


# ---- how long there was no link ----------------------------------------------------------------------

RESUME_S = 0.4


def broken(resume_for_s: float, may_resume: Callable[[], bool] = lambda: True) -> LinkedConnection:
    """A connection whose only link has broken."""
    ours, theirs = connected()
    one = LinkedConnection(ours, timeout_s=LONG_S, resume_for_s=resume_for_s, may_resume=may_resume)
    theirs.close()
    wait_for(lambda: not one.nr_links)
    return one


def test_the_time_in_which_a_link_was_waited_for_in_vain_counts_as_broken_until_it_was_given_up():
    one = broken(RESUME_S)
    with pytest.raises(TransportError, match="cannot be reached any more"):
        one.incoming.read(1)
    time.sleep(RESUME_S)
    one.close()
    assert one.breaks.mended == 0
    assert one.breaks.seconds == pytest.approx(RESUME_S, abs=0.15)


def test_the_time_until_the_connection_was_closed_counts_as_broken():
    one = broken(LONG_S)
    time.sleep(RESUME_S)
    assert RESUME_S <= one.breaks.seconds < LONG_S / 2
    one.close()
    seconds = one.breaks.seconds
    time.sleep(0.05)
    assert one.breaks.seconds == seconds


def test_a_link_that_nobody_waits_for_is_given_up_at_once():
    one = broken(LONG_S, may_resume=lambda: False)
    time.sleep(0.05)
    assert one.breaks.seconds == 0
    one.close()


def test_breaks_that_were_made_good_are_added_up_and_count_no_more_when_all_is_closed():
    one = broken(LONG_S)
    for nr in (1, 2):
        time.sleep(RESUME_S / 2)
        ours, theirs = connected()
        one.add(contextlib.nullcontext(ours), 0)
        assert one.breaks.mended == nr
        seconds = one.breaks.seconds
        assert nr * RESUME_S / 2 <= seconds < LONG_S / 2
        time.sleep(0.05)
        assert one.breaks.seconds == seconds
        if nr == 1:
            theirs.close()
            wait_for(lambda: not one.nr_links)
    theirs.outgoing.write(HEADER.pack(Kind.END, 0, 0))
    wait_for(lambda: not one.nr_links)
    one.close()
    assert one.breaks.seconds == seconds
    theirs.close()
