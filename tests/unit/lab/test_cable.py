"""The cable is tried with sockets as QEMU has them: each end listens, and takes a connection at a time."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from xenlab import cable, runstate

TIMEOUT_S = 20


class End:
    """What a QEMU is to the cable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.settimeout(TIMEOUT_S)
        self.listener.bind(str(path))
        self.listener.listen()

    def plugged(self) -> socket.socket:
        connection, _ = self.listener.accept()
        connection.settimeout(TIMEOUT_S)
        return connection

    def gone(self) -> None:
        self.listener.close()
        self.path.unlink()


@pytest.fixture
def paths(lab_cache: Path) -> tuple[Path, Path]:
    folder = runstate.run_folder("pair")
    folder.mkdir(parents=True)
    return folder / "a.sock", folder / "b.sock"


@pytest.fixture
def plugged(paths: tuple[Path, Path]) -> Iterator[tuple[Path, Path]]:
    cable.ensure("pair", paths)
    yield paths
    cable.end("pair")


def received(connection: socket.socket, length: int) -> bytes:
    found = b""
    while len(found) < length and (data := connection.recv(length - len(found))):
        found += data
    return found


def test_bytes_go_both_ways(plugged: tuple[Path, Path]) -> None:
    a, b = End(plugged[0]), End(plugged[1])
    at_a, at_b = a.plugged(), b.plugged()
    at_a.sendall(b"to b")
    at_b.sendall(b"to a")
    assert (received(at_b, 4), received(at_a, 4)) == (b"to b", b"to a")


def test_more_than_fits_waits_until_it_is_read(plugged: tuple[Path, Path]) -> None:
    a, b = End(plugged[0]), End(plugged[1])
    at_a, at_b = a.plugged(), b.plugged()
    sent = bytes(range(256)) * 16384
    sender = threading.Thread(target=at_a.sendall, args=(sent,))
    sender.start()
    assert received(at_b, len(sent)) == sent
    sender.join()


def test_a_host_that_is_back_is_connected_again_and_both_begin_with_a_whole_frame(
    plugged: tuple[Path, Path],
) -> None:
    a, b = End(plugged[0]), End(plugged[1])
    at_a, at_b = a.plugged(), b.plugged()
    at_a.sendall(b"half a fra")
    received(at_b, 10)
    at_b.close()
    b.gone()
    assert at_a.recv(1) == b""  # a's QEMU forgets what it had sent in part, and listens again
    b = End(plugged[1])
    at_b = b.plugged()
    at_a = a.plugged()
    while True:  # connections that were tried while b was off have ended
        with contextlib.suppress(OSError):
            at_a.sendall(b"frame")
            if received(at_b, 5) == b"frame":
                return
        at_a = a.plugged()


def test_it_is_started_once_and_ended_once(paths: tuple[Path, Path]) -> None:
    cable.ensure("pair", paths)
    first = runstate.read_process("pair")
    cable.ensure("pair", paths)
    assert runstate.read_process("pair") == first is not None
    cable.end("pair")
    assert runstate.read_process("pair") is None
    cable.end("pair")
