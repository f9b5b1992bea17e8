"""How the other host is reached: by ssh, TLS, a socket file, or TCP on a network that both sides trust."""

from __future__ import annotations

import errno
import os
import shlex
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from saverestore.errors import Advice, Remedy, TransportError, UsageError, name_of_errno
from saverestore.interrupts import shield
from saverestore.migrate.channel import SILENCE_S
from saverestore.migrate.ssh_child import RECEIVE, Begun, SshChild, is_host
from saverestore.transport.connection import BrokenPeer, Connection, PipeConnection, SocketConnection
from saverestore.transport.sockets import (
    TLS_PORT,
    Address,
    Unreachable,
    accepted,
    connect,
    host_and_port,
    notice_dead_links,
)
from saverestore.transport.tls import Credentials

if TYPE_CHECKING:
    from saverestore.transport.tls_peers import Allowed


SSH_FAILED, NOT_FOUND = 255, 127
"""Exit codes of ssh: for all failures of its own, and that of the shell there."""


def parse(text: str, *, tls: Credentials | None = None) -> Address:
    """HOST (by ssh), tls://HOST[:PORT], unix:PATH or tcp://HOST:PORT. UsageError when it is none of these."""
    if text.startswith("unix:") and len(text) > len("unix:"):
        return Address(text, "unix", text.removeprefix("unix:"))
    if text.startswith(("tcp://", "tls://")):
        kind = text[:3]
        host, port = host_and_port(text[6:], TLS_PORT if kind == "tls" else 0)
        if not host or not 0 < port < 1 << 16:
            raise UsageError(f"{text!r} is not {'tls://HOST[:PORT]' if kind == 'tls' else 'tcp://HOST:PORT'}")
        return Address(text, kind, host, port, tls if kind == "tls" else None)
    if "://" in text:
        raise UsageError(f"{text!r}: only ssh, tls://HOST, unix:PATH and tcp://HOST:PORT are supported")
    if not is_host(text):
        raise UsageError(f"{text!r} is not the name of a host")
    return Address(text, "ssh", text)


def parse_listening(text: str, *, tls: Credentials | None = None) -> Address:
    """The same, of an address to listen at."""
    address = parse(text, tls=tls)
    if address.kind == "ssh":
        raise UsageError(f"{text}: one listens at tls://ADDRESS, unix:PATH or tcp://ADDRESS:PORT")
    return address


def ssh_arrived_at(environment: Mapping[str, str]) -> str:
    """The address of this host to which ssh has connected, of a process that sshd has started; "" if not known."""
    words = environment.get("SSH_CONNECTION", "").split()
    return words[2] if len(words) == 4 else ""


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
    address: Address,
    *,
    ssh: Sequence[str] = ("ssh",),
    timeout_s: float = SILENCE_S,
    command: str = RECEIVE,
    begun: Begun | None = None,
) -> Iterator[SocketConnection]:
    """A connection to the receiver there, inside this block. Unreachable when there is none.

    `command`: what ssh is asked to run. `begun`: ssh that was started for it before.
    """
    if address.kind == "ssh":
        with _by_ssh(address, ssh, timeout_s, command, begun) as connection:
            yield connection
        return
    with connect(address, timeout_s=timeout_s) as connection:
        yield connection


@contextmanager
def _by_ssh(
    address: Address, ssh: Sequence[str], timeout_s: float, command: str, begun: Begun | None
) -> Iterator[SocketConnection]:
    child: SshChild | None = None
    connection: SocketConnection | None = None
    try:
        try:
            with shield():  # whoever is interrupted has a child to end, or none
                child = begun.taken(address.host, ssh, command) if begun is not None else None
                child = child or SshChild(address.host, ssh, command)
                connection = SocketConnection(child.connected, address.host, timeout_s=timeout_s)
        except OSError as error:
            raise Unreachable(f"{ssh[0]} could not be started: {error.strerror}") from error
        yield connection
    except BrokenPeer as error:
        has_heard_nothing = connection is not None and not connection.incoming.offset
        if child is not None and has_heard_nothing and (code := child.ended_with()):
            program = command.split()[0]
            why = {SSH_FAILED: "cannot be reached by ssh", NOT_FOUND: f"has no {program}"}
            raise Unreachable(
                f"{address.host} {why.get(code, f'did not answer, nor did {program} there')}: "
                f"{shlex.join(ssh)} ended with exit code {code}",
                remedies=[Advice(Remedy.TRY_SSH, shlex.join([*ssh, address.host]))]
                if code == SSH_FAILED
                else (),
            ) from error
        raise
    finally:
        with shield():
            if connection is not None:
                connection.close()
            if child is not None:
                child.end()


@contextmanager
def standard_streams(peer: str, *, timeout_s: float = SILENCE_S) -> Iterator[PipeConnection]:
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
    with PipeConnection(incoming, outgoing, peer, timeout_s=timeout_s) as connection:
        yield connection


@contextmanager
def standard_input(
    credentials: Credentials, allowed: Allowed, *, timeout_s: float = SILENCE_S
) -> Iterator[Connection]:
    """The peer whose connection standard input is, as systemd or inetd passes it: by TLS. UsageError when it is none,
    BrokenPeer when who has connected is gone again.

    Errors are those of `tls_peers.admitted`. What is read from standard input from now on is nothing.
    """
    from saverestore.transport import tls_peers

    try:
        made = socket.socket(fileno=os.dup(0))
        if made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
    except OSError as error:
        raise UsageError("standard input is not a connection: systemd or inetd has to start this") from error
    try:
        whence = made.getpeername()
    except OSError as error:
        made.close()
        raise BrokenPeer("the peer", "has closed the connection before it was looked at") from error
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(nowhere, 0)
    os.close(nowhere)
    if made.family != socket.AF_UNIX:
        notice_dead_links(made, timeout_s)
    source = str(whence[0]) if whence else "a peer"
    with tls_peers.admitted(made, source, credentials, allowed, timeout_s=timeout_s) as connection:
        yield connection


@contextmanager
def listening(
    address: Address, *, allowed: Allowed | None = None, timeout_s: float = SILENCE_S
) -> Iterator[Connection]:
    """Wait for one connection at a socket file or port, and take it: see `sockets.accepted`."""
    with accepted(address, allowed=allowed, timeout_s=timeout_s) as connection:
        yield connection
