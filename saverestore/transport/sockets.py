"""Sockets by their address: connecting to one, and waiting at one for a peer. Unix sockets, TCP, TLS."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saverestore.errors import ErrorName, TransportError, name_of_errno
from saverestore.interrupts import HEED_S, shield
from saverestore.transport import congestion
from saverestore.transport.connection import SocketConnection
from saverestore.transport.hosts import listening_at, to_bind

if TYPE_CHECKING:
    from saverestore.transport.tls import Proof
    from saverestore.transport.tls_peers import Allowed

CONNECT_S = 30.0

TLS_PORT = 8701
"""Of tls:// without a port."""


class Unreachable(TransportError):
    """There is no connection to the other host, or no program there that answers."""

    name = ErrorName.PEER_UNREACHABLE


@dataclass(frozen=True)
class Way:
    """How connections to another host leave this one. `source`: the address of this host that they have;
    `interface`: the one that they leave by, whatever the routes are; "": as the kernel chooses. `dscp`: 0 to 63, how
    routers are to treat what this host sends. `congestion`: the kernel's congestion control; "": see `congestion`.
    """

    source: str = ""
    interface: str = ""
    dscp: int | None = None
    congestion: str = ""


@dataclass(frozen=True)
class Address:
    """Where the other host is: as a person gave it, and taken apart. `kind`: "unix", "tcp" or "tls"; for migrations
    also "ssh".

    `tls`: what proves who this host is; None: the files where they usually are. `way`: of TCP and TLS. `found`: the
    address that `host` is known to have; "": it is looked up each time.
    """

    text: str
    kind: str
    host: str = ""
    port: int = 0
    tls: Proof | None = None
    way: Way = Way()
    found: str = ""


def host_and_port(text: str, port: int) -> tuple[str, int]:
    """HOST, HOST:PORT or [IPV6]:PORT taken apart. The host is empty, or the port 0, where it is not valid."""
    found = re.fullmatch(r"(?:\[(?P<six>[^][\s]+)\]|(?P<name>[^][:\s/]+))(?::(?P<port>[0-9]{1,5}))?", text)
    if found is None:
        return "", 0
    return found["six"] or found["name"], port if found["port"] is None else int(found["port"])


def connect(
    address: Address,
    *,
    timeout_s: float,
    connect_s: float = CONNECT_S,
    handshake_s: float | None = None,
    is_given_up: Callable[[], bool] = lambda: False,
) -> SocketConnection:
    """A connection to who listens there. Unreachable when nobody does; NotTrusted, and UsageError, as `tls_peers`.

    `connect_s`: how long each of the host's addresses is tried. `handshake_s`: how long TLS may take; None: as usual.
    `is_given_up`: asked ten times a second; once it is true, an error ends the wait. Looking up a name is not ended.
    """
    try:
        if address.kind == "unix":
            made = socket.socket(socket.AF_UNIX)
            made.settimeout(CONNECT_S)
            made.connect(address.host)
        else:
            made = _connected(address, connect_s, is_given_up)
            notice_dead_links(made, timeout_s)
    except (OSError, UnicodeError) as error:  # which is what names end with that cannot be names
        way = address.way.interface or address.way.source
        by = f" by {way}" if way else ""
        why = getattr(error, "strerror", None) or error
        raise Unreachable(f"{address.text} cannot be reached{by}: {why}") from error
    return _over(made, address, timeout_s, handshake_s, is_given_up)


def _connected(address: Address, connect_s: float, is_given_up: Callable[[], bool]) -> socket.socket:
    """A TCP connection to the first of the host's addresses that takes one. OSError of the last one that does not."""
    failure: OSError | None = None
    for family, kind, protocol, _, where in socket.getaddrinfo(
        address.found or address.host, address.port, type=socket.SOCK_STREAM
    ):
        try:
            made = socket.socket(family, kind, protocol)
        except OSError as error:  # this kernel has no IPv6, for example
            failure = error
            continue
        try:
            _leave_by(made, address.way)
            _connect_within(made, where, connect_s, is_given_up)
            if not address.way.congestion:
                congestion.suit(made)
        except OSError as error:
            made.close()
            failure = error
        except BaseException:
            made.close()
            raise
        else:
            return made
    assert failure is not None
    raise failure


def _connect_within(
    made: socket.socket, where: Any, connect_s: float, is_given_up: Callable[[], bool]
) -> None:
    """Connect a socket, which is non-blocking from then on. OSError when that fails, takes longer, or is given up."""
    made.setblocking(False)
    failed = made.connect_ex(where)
    if failed == errno.EINPROGRESS:
        poll = select.poll()
        poll.register(made, select.POLLOUT)
        end = time.monotonic() + connect_s
        while not poll.poll(HEED_S * 1000):
            if is_given_up():
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            if time.monotonic() > end:
                raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        failed = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failed:
        raise OSError(failed, os.strerror(failed))


def _leave_by(made: socket.socket, way: Way) -> None:
    if way.interface:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, way.interface.encode() + b"\0")
    if way.dscp is not None:
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, way.dscp << 2)
        else:
            made.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, way.dscp << 2)
    if way.congestion:
        congestion.choose(made, way.congestion)
    if way.source:
        made.bind(to_bind(way.source, 0))


def _over(
    made: socket.socket,
    address: Address,
    timeout_s: float,
    handshake_s: float | None,
    is_given_up: Callable[[], bool],
) -> SocketConnection:
    if address.kind != "tls":
        return SocketConnection(made, address.text, timeout_s=timeout_s)
    from saverestore.transport import tls_peers
    from saverestore.transport.tls import Credentials

    credentials = address.tls or Credentials()
    return tls_peers.connected(
        made,
        address.host,
        address.text,
        credentials,
        timeout_s=timeout_s,
        handshake_s=handshake_s or tls_peers.HANDSHAKE_S,
        is_given_up=is_given_up,
    )


def notice_dead_links(made: socket.socket, timeout_s: float) -> None:
    """Let the kernel give up a TCP connection on which nothing is acknowledged for so long."""
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(timeout_s * 1000))
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def accepted(address: Address, *, allowed: Allowed | None = None, timeout_s: float) -> SocketConnection:
    """Wait for one connection at a socket file or port, and take it. TransportError when it cannot listen there.

    For TLS, of who is `allowed`: it waits until such a peer has come. A socket file is removed again in any case.
    """
    server = None
    try:
        with shield():
            server = _listening(address, timeout_s)
        return _first(server, address, allowed, timeout_s)
    finally:
        if server is not None:
            server.close()
            if address.kind == "unix":
                with contextlib.suppress(OSError):
                    Path(address.host).unlink()


def _listening(address: Address, timeout_s: float) -> socket.socket:
    try:
        if address.kind == "unix":
            server = socket.socket(socket.AF_UNIX)
            server.bind(address.host)
            Path(address.host).chmod(0o600)
            server.listen(1)
        else:
            server = listening_at(address.host, address.port)
            notice_dead_links(server, timeout_s)  # what it accepts has these options, too
    except OSError as error:
        raise TransportError(
            f"{address.text}: cannot listen there: {error.strerror or error}", name=name_of_errno(error.errno)
        ) from error
    return server


def _first(
    server: socket.socket, address: Address, allowed: Allowed | None, timeout_s: float
) -> SocketConnection:
    if address.kind == "tls":
        from saverestore.transport import tls_peers
        from saverestore.transport.tls import Credentials

        assert allowed is not None
        credentials = address.tls or Credentials()
        found = tls_peers.first_admitted(server, credentials, allowed, timeout_s=timeout_s)
        assert found is not None
        return found
    made, whence = server.accept()
    return SocketConnection(made, whence[0] if whence else address.text, timeout_s=timeout_s)
