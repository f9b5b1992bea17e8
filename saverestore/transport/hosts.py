"""Addresses of hosts as texts, those that are valid on one interface only included: IPv6 link-local, fe80::1%eth0."""

from __future__ import annotations

import contextlib
import socket
from typing import Any


def host_in(where: Any) -> str:
    """The host in what a socket says of itself or its peer. Python leaves out on which interface that address is."""
    host = str(where[0])
    if len(where) < 4 or not where[3] or "%" in host:
        return host
    interface = str(where[3])
    with contextlib.suppress(OSError):  # it is gone
        interface = socket.if_indextoname(where[3])
    return f"{host}%{interface}"


def without_interface(host: str) -> str:
    """The address alone, as it is in a certificate."""
    return host.partition("%")[0]


def on_our_interface(host: str, reached: str, interface: str = "") -> str:
    """An address that another host gives as its own: with the interface of this host, not of that one.

    `reached`: the address by which this host has reached it, which says on which interface; `interface`: the one that
    connections are to leave by. Where neither says it, the other host's: both may call it the same.
    """
    address, has_one, theirs = host.partition("%")
    return f"{address}%{reached.partition('%')[2] or interface or theirs}" if has_one else host


def to_bind(host: str, port: int) -> Any:
    """What to give to `bind` for this address. OSError where the interface in it is none."""
    if "%" not in host:
        return host, port  # Python looks that up
    return socket.getaddrinfo(host, port, socket.AF_INET6, socket.SOCK_STREAM)[0][4]


def listening_at(host: str, port: int, backlog: int | None = None) -> socket.socket:
    """A TCP socket that listens at this address. OSError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server(to_bind(host, port), family=family, backlog=backlog)
