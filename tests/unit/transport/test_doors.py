"""A port at which further connections arrive."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import threading
import time
from collections.abc import Callable

import pytest

from saverestore.errors import TransportError
from saverestore.migrate.certificate import OwnCertificate
from saverestore.transport import door as door_module
from saverestore.transport import tls_peers
from saverestore.transport.connection import Connection, SocketConnection
from saverestore.transport.door import Door
from saverestore.transport.sockets import Address, connect


@pytest.mark.parametrize("host", ["127.0.0.1", "::ffff:127.0.0.1"])
def test_who_connects_is_handed_on_also_where_the_first_came_by_ipv4_to_a_socket_for_both(host):
    came: list[Connection] = []
    heard = threading.Event()

    def arrived(connection: Connection) -> None:
        came.append(connection)
        heard.set()

    with Door(host, arrived, tls=None, timeout_s=5) as door:
        with socket.create_connection(("127.0.0.1", door.port)) as made:
            made.sendall(b"x")
            assert heard.wait(10)
        assert came[0].incoming.read(1) == b"x"
        came[0].close()
    assert not door._thread.is_alive()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", door.port))


def test_one_that_is_refused_does_not_keep_the_next_away(caplog):
    seen = threading.Semaphore(0)

    def arrived(connection: Connection) -> None:
        connection.close()
        seen.release()
        raise TransportError("a stranger")

    with Door("127.0.0.1", arrived, tls=None, timeout_s=5) as door:
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", door.port)) as made:
                made.sendall(b"x")
                assert made.recv(1) == b""
            assert seen.acquire(timeout=10)
    assert caplog.text.count("a further connection was refused: a stranger") == 2


def test_an_address_that_is_not_this_hosts_is_an_error():
    with pytest.raises(TransportError, match=r"192\.0\.2\.1: cannot listen there"):
        Door("192.0.2.1", lambda _connection: None, tls=None, timeout_s=5)


def two_free_ports() -> tuple[int, int]:
    """Two ports that follow one another, and are free."""
    for port in range(20000, 30000, 2):
        try:
            with socket.create_server(("127.0.0.1", port)), socket.create_server(("127.0.0.1", port + 1)):
                return port, port + 1
        except OSError:
            continue
    raise AssertionError("no port is free")


def test_it_listens_at_the_first_free_port_of_a_range_and_says_when_none_is_free():
    ports = two_free_ports()

    def door() -> Door:
        return Door("127.0.0.1", lambda _connection: None, tls=None, timeout_s=5, ports=ports)

    with door() as one, door() as other:
        assert (one.port, other.port) == ports
        with pytest.raises(
            TransportError, match=rf"cannot listen there at port {ports[0]} to {ports[1]}: .* in use"
        ):
            door()
    with door() as again:
        assert again.port == ports[0]


def test_whatever_one_connection_ends_with_the_next_is_served(monkeypatch, caplog):
    tries: list[int] = []
    refused: list[int] = []
    seen = threading.Semaphore(0)

    def first_admitted(server, *_given, is_closing, **_more):
        tries.append(1)
        if len(tries) == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        if not select.select([server], [], [], 0.1)[0]:
            return None
        made, _ = server.accept()
        return SocketConnection(made, "peer", timeout_s=5)

    def arrived(connection: Connection) -> None:
        connection.close()
        seen.release()
        if not refused:
            refused.append(1)
            raise LookupError("a mistake")

    monkeypatch.setattr(tls_peers, "first_admitted", first_admitted)
    with Door("127.0.0.1", arrived, tls=(object(), object()), timeout_s=5) as door:  # type: ignore[arg-type]
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", door.port)):
                assert seen.acquire(timeout=10)
    assert "Too many open files" in caplog.text
    assert "LookupError: a mistake" in caplog.text


@pytest.mark.parametrize("by_tls", [False, True])
def test_strangers_who_say_nothing_keep_nobody_away(by_tls):
    there = here = None
    if by_tls:
        pytest.importorskip("cryptography")
        ours, theirs = OwnCertificate.made("one"), OwnCertificate.made("other")
        there, (here, _) = theirs.pinned(ours.text), ours.pinned(theirs.text)
    said: list[bytes] = []
    heard = threading.Event()

    def arrived(connection: Connection) -> None:
        connection.deadline = time.monotonic() + 10  # as for JOIN
        with connection:
            said.append(connection.incoming.read(5))
        heard.set()

    with Door("127.0.0.1", arrived, tls=there, timeout_s=10) as door, contextlib.ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(socket.create_connection(("127.0.0.1", door.port)))
        address = Address("there", "tls" if by_tls else "tcp", "127.0.0.1", door.port, here)
        with connect(address, timeout_s=10, handshake_s=8) as connection:
            connection.outgoing.write(b"hello")
            assert heard.wait(8)
    assert said == [b"hello"]


def test_a_stranger_who_says_nothing_is_turned_away_in_the_end(monkeypatch):
    monkeypatch.setattr(door_module, "FIRST_WORD_S", 0.1)
    with (
        Door("127.0.0.1", lambda _connection: None, tls=None, timeout_s=5) as door,
        socket.create_connection(("127.0.0.1", door.port)) as made,
    ):
        made.settimeout(10)
        assert made.recv(1) == b""


def test_those_who_wait_to_be_heard_are_closed_with_the_door():
    with Door("127.0.0.1", lambda _connection: None, tls=None, timeout_s=5) as door:
        made = socket.create_connection(("127.0.0.1", door.port))
        end = time.monotonic() + 10
        while not door._silent:
            assert time.monotonic() < end
            time.sleep(0.01)
    with made:
        made.settimeout(10)
        assert made.recv(1) == b""


def test_that_no_connection_can_be_accepted_is_logged_and_not_tried_without_a_pause(monkeypatch, caplog):
    tries: list[int] = []

    def accept(_server: socket.socket) -> None:
        tries.append(1)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket.socket, "accept", accept)
    with (
        Door("127.0.0.1", lambda _connection: None, tls=None, timeout_s=5) as door,
        socket.create_connection(("127.0.0.1", door.port)),
    ):
        time.sleep(0.5)
    assert 1 <= len(tries) < 10
    assert "cannot accept a connection: Too many open files" in caplog.text


def test_a_door_for_which_there_is_no_thread_is_an_error_and_closed(monkeypatch):
    door = Door("127.0.0.1", lambda _connection: None, tls=None, timeout_s=5)

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(TransportError, match="no thread to listen there: can't start new thread"):
        door.__enter__()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", door.port))


@pytest.mark.parametrize("by_tls", [False, True])
def test_one_that_begins_to_join_and_stalls_holds_up_nobody(by_tls):
    there = here = None
    if by_tls:
        pytest.importorskip("cryptography")
        ours, theirs = OwnCertificate.made("one"), OwnCertificate.made("other")
        there, (here, _) = theirs.pinned(ours.text), ours.pinned(theirs.text)
    said: list[bytes] = []
    heard = threading.Event()

    def arrived(connection: Connection) -> None:
        connection.deadline = time.monotonic() + 10  # as for JOIN
        with connection:
            said.append(connection.incoming.read(5))
        heard.set()

    with Door("127.0.0.1", arrived, tls=there, timeout_s=10) as door, contextlib.ExitStack() as stack:
        address = Address("there", "tls" if by_tls else "tcp", "127.0.0.1", door.port, here)
        for _ in range(2):
            stalled = stack.enter_context(connect(address, timeout_s=10, handshake_s=8))
            stalled.outgoing.write(b"he")
        if by_tls:  # and one amid the handshake
            amid = stack.enter_context(socket.create_connection(("127.0.0.1", door.port)))
            amid.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        with connect(address, timeout_s=10, handshake_s=8) as connection:
            connection.outgoing.write(b"hello")
            assert heard.wait(5)
    assert said == [b"hello"]


def test_of_too_many_that_stall_amid_joining_the_oldest_is_turned_away(monkeypatch, caplog):
    monkeypatch.setattr(door_module, "MOST_JOINING", 2)
    came: list[Connection] = []

    def arrived(connection: Connection) -> None:
        came.append(connection)
        with connection:
            connection.incoming.read(5)

    with Door("127.0.0.1", arrived, tls=None, timeout_s=30) as door, contextlib.ExitStack() as stack:
        for nr in range(3):
            made = stack.enter_context(socket.create_connection(("127.0.0.1", door.port)))
            made.sendall(b"h")
            eventually(lambda nr=nr: len(came) == nr + 1)
        eventually(lambda: came[0].fileno() < 0)  # type: ignore[attr-defined]
        assert "had not joined before too many others came" in caplog.text
        assert [one.fileno() >= 0 for one in came[1:]] == [True, True]  # type: ignore[attr-defined]


def test_a_door_closes_at_once_also_on_those_who_stall_amid_joining():
    begun = threading.Event()

    def arrived(connection: Connection) -> None:
        begun.set()
        with connection:
            connection.incoming.read(5)

    with Door("127.0.0.1", arrived, tls=None, timeout_s=30) as door:
        made = socket.create_connection(("127.0.0.1", door.port))
        made.sendall(b"h")
        assert begun.wait(10)
        closing_since = time.monotonic()
    assert time.monotonic() - closing_since < 3
    assert not [one for one in threading.enumerate() if one.name.startswith("link-")]
    made.close()


def test_one_for_whom_there_is_no_thread_is_closed_and_the_next_is_served(monkeypatch, caplog):
    seen = threading.Event()
    failed: list[int] = []
    start = threading.Thread.start

    def failing(thread: threading.Thread) -> None:
        if thread.name == "link-joining" and not failed:
            failed.append(1)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", failing)

    def arrived(connection: Connection) -> None:
        connection.close()
        seen.set()

    with Door("127.0.0.1", arrived, tls=None, timeout_s=5) as door:
        with socket.create_connection(("127.0.0.1", door.port)) as made:
            made.settimeout(10)
            made.sendall(b"x")
            assert made.recv(1) == b""
        with socket.create_connection(("127.0.0.1", door.port)) as made:
            made.sendall(b"x")
            assert seen.wait(10)
    assert "can't start new thread" in caplog.text


def eventually(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)
