"""How the other host is reached: by ssh, a socket file, or TCP on a network that both sides trust."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from saverestore.errors import Advice, ErrorName, Remedy, TransportError, UsageError, name_of_errno
from saverestore.interrupts import shield
from saverestore.migrate.channel import SILENCE_S
from saverestore.transport.connection import BrokenPeer, Connection, PipeConnection, SocketConnection

RECEIVE = "pymigrate receive"
"""What ssh is asked to run."""

CONNECT_S = 30.0
CHILD_S = 5.0

# ssh keeps running when Ctrl-C is typed: what becomes of the migration is ours to decide, and to say over it.
DEAF = ("sh", "-c", 'trap "" INT QUIT; exec "$@"', "sh")


class Unreachable(TransportError):
    """There is no connection to the other host, or no program there that answers."""

    name = ErrorName.PEER_UNREACHABLE


@dataclass(frozen=True)
class Address:
    """Where the other host is: as a person gave it, and taken apart. `kind`: "ssh", "unix" or "tcp"."""

    text: str
    kind: str
    host: str = ""
    port: int = 0


def parse(text: str) -> Address:
    """HOST (by ssh), unix:PATH or tcp://HOST:PORT. UsageError when it is none of these."""
    if text.startswith("unix:") and len(text) > len("unix:"):
        return Address(text, "unix", text.removeprefix("unix:"))
    if text.startswith("tcp://"):
        host, _, port = text.removeprefix("tcp://").rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise UsageError(f"{text!r} is not tcp://HOST:PORT")
        return Address(text, "tcp", host.strip("[]"), int(port))
    if "://" in text:
        raise UsageError(f"{text!r}: only ssh, unix:PATH and tcp://HOST:PORT are supported yet")
    if not text or text.startswith("-") or any(char.isspace() for char in text):
        raise UsageError(f"{text!r} is not the name of a host")
    return Address(text, "ssh", text)


def words_of(command: str) -> list[str]:
    """A command line as a person gave it, in words. UsageError when it has none."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"{command!r}: {error}") from error
    if not words:
        raise UsageError("the command for ssh is empty")
    return words


def check_trusted(address: Address, *, trusted: bool) -> None:
    """UsageError for plain TCP that was not called trusted: it passes memory in clear, and lets anybody in."""
    if address.kind == "tcp" and not trusted:
        raise UsageError(
            f"{address.text}: nothing is encrypted there and nobody is asked who they are; the network must be "
            "named as trusted, on both sides",
            remedies=[Advice(Remedy.TRUST_NETWORK)],
        )


@contextmanager
def connected(
    address: Address, *, ssh: Sequence[str] = ("ssh",), timeout_s: float = SILENCE_S
) -> Iterator[Connection]:
    """A connection to the receiver there, inside this block. Unreachable when there is none."""
    if address.kind == "ssh":
        with _by_ssh(address, ssh, timeout_s) as connection:
            yield connection
        return
    try:
        if address.kind == "unix":
            made = socket.socket(socket.AF_UNIX)
            made.settimeout(CONNECT_S)
            made.connect(address.host)
        else:
            made = socket.create_connection((address.host, address.port), CONNECT_S)
            notice_dead_links(made, timeout_s)
    except OSError as error:
        raise Unreachable(f"{address.text} cannot be reached: {error.strerror or error}") from error
    with SocketConnection(made, address.text, timeout_s=timeout_s) as connection:
        yield connection


def notice_dead_links(made: socket.socket, timeout_s: float) -> None:
    """Let the kernel give up a TCP connection on which nothing is acknowledged for so long."""
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(timeout_s * 1000))
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


@contextmanager
def _by_ssh(address: Address, ssh: Sequence[str], timeout_s: float) -> Iterator[Connection]:
    ours, theirs = socket.socketpair()
    command = [*DEAF, *ssh, address.host, RECEIVE]
    try:
        with shield(), theirs:
            child = subprocess.Popen(command, stdin=theirs.fileno(), stdout=theirs.fileno())
    except OSError as error:
        ours.close()
        raise Unreachable(f"{ssh[0]} could not be started: {error.strerror}") from error
    connection = SocketConnection(ours, address.host, timeout_s=timeout_s)
    try:
        try:
            yield connection
        except BrokenPeer as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if (code := child.wait(CHILD_S)) and not connection.incoming.offset:
                    raise Unreachable(
                        f"{address.host} cannot be reached, or has no {RECEIVE.split()[0]}: "
                        f"{shlex.join(ssh)} ended with exit code {code}"
                    ) from error
            raise
    finally:
        with shield():
            connection.close()
            _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    """It ends by itself, as its connection is closed; or else is made to."""
    for ask in (None, child.terminate, child.kill):
        if ask is not None:
            ask()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(CHILD_S)
            return


def of_standard_streams(peer: str, *, timeout_s: float = SILENCE_S) -> Connection:
    """Whoever started this process, by its standard input and output. What is printed from now on goes nowhere."""
    try:
        incoming, outgoing = os.dup(0), os.dup(1)
        nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(nowhere, 0)
        os.dup2(nowhere, 1)
        os.close(nowhere)
    except OSError as error:
        raise TransportError(
            f"standard input and output: {error.strerror}", name=name_of_errno(error.errno)
        ) from error
    return PipeConnection(incoming, outgoing, peer, timeout_s=timeout_s)


@contextmanager
def listening(address: Address, *, timeout_s: float = SILENCE_S) -> Iterator[Connection]:
    """Wait for one connection at a socket file or port, and take it. TransportError when it cannot listen there."""
    try:
        if address.kind == "unix":
            server = socket.socket(socket.AF_UNIX)
            server.bind(address.host)
            Path(address.host).chmod(0o600)
            server.listen(1)
        elif address.kind == "tcp":
            server = socket.create_server((address.host, address.port), backlog=1)
        else:
            raise UsageError(f"{address.text}: one listens at unix:PATH or tcp://HOST:PORT")
    except OSError as error:
        raise TransportError(
            f"{address.text}: cannot listen there: {error.strerror}", name=name_of_errno(error.errno)
        ) from error
    try:
        made, whence = server.accept()
    finally:
        server.close()
        if address.kind == "unix":
            with contextlib.suppress(OSError):
                Path(address.host).unlink()
    if address.kind == "tcp":
        notice_dead_links(made, timeout_s)
    peer = whence[0] if address.kind == "tcp" else address.text
    with SocketConnection(made, peer, timeout_s=timeout_s) as connection:
        yield connection
