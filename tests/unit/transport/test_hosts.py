"""Addresses that are valid on one interface only: what is said of them, and connections by them."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from tls_sites import Site

from saverestore.transport.connection import SocketConnection
from saverestore.transport.door import Door
from saverestore.transport.hosts import host_in, listening_at, on_our_interface, without_interface
from saverestore.transport.sockets import Address, Unreachable, Way, accepted, connect
from saverestore.transport.tls_peers import first_admitted, parse_allowed

LINK_LOCAL, TENTATIVE = 0x20, 0x40


def link_local() -> str:
    """One of this machine."""
    table = Path("/proc/net/if_inet6")
    for line in table.read_text().splitlines() if table.exists() else []:
        number, _, _, scope, flags, name = line.split()
        if int(scope, 16) == LINK_LOCAL and not int(flags, 16) & TENTATIVE:
            return f"{socket.inet_ntop(socket.AF_INET6, bytes.fromhex(number))}%{name}"
    pytest.skip("no interface of this machine has a link-local IPv6 address")


def test_the_interface_is_part_of_an_address_that_is_valid_on_one_only():
    assert host_in(("192.0.2.1", 5)) == "192.0.2.1"
    assert host_in(("2001:db8::1", 5, 0, 0)) == "2001:db8::1"
    name = socket.if_indextoname(1)
    assert host_in(("fe80::1", 5, 0, 1)) == f"fe80::1%{name}"
    assert host_in(("fe80::1", 5, 0, 99999)) == "fe80::1%99999"
    assert without_interface("fe80::1%eth0") == "fe80::1"


@pytest.mark.parametrize(
    ("told", "reached", "interface", "used"),
    [
        ("192.0.2.1", "host2", "", "192.0.2.1"),
        ("2001:db8::1", "fe80::2%eth1", "eth1", "2001:db8::1"),
        ("fe80::2%there0", "fe80::2%eth1", "", "fe80::2%eth1"),
        ("fe80::2%there0", "host2", "eth1", "fe80::2%eth1"),
        ("fe80::2%there0", "host2", "", "fe80::2%there0"),
    ],
)
def test_an_address_of_another_host_is_used_on_an_interface_of_this_one(told, reached, interface, used):
    assert on_our_interface(told, reached, interface) == used


def test_a_connection_by_a_link_local_address_says_by_which_interface_on_both_sides():
    host = link_local()
    with listening_at(host, 0) as server:
        address = Address("b", "tcp", host, server.getsockname()[1], way=Way(source=host))
        with connect(address, timeout_s=5) as one:
            with SocketConnection(server.accept()[0], "a", timeout_s=5) as other:
                assert (one.remote_host, one.local_host) == (host, host)
                assert (other.remote_host, other.local_host) == (host, host)
            with connect(replace(address, found=one.remote_host), timeout_s=5):
                pass


def test_a_door_and_a_receiver_listen_at_a_link_local_address():
    host = link_local()
    heard = threading.Event()
    with Door(host, lambda one: heard.set() or one.close(), tls=None, timeout_s=5) as door:
        with connect(Address("b", "tcp", host, door.port), timeout_s=5) as one:
            one.outgoing.write(b"x")
            assert heard.wait(10)
        port = door.port
    address = Address("b", "tcp", host, port)
    found: list[str] = []

    def serve() -> None:
        with accepted(address, timeout_s=5) as one:
            found.append(one.local_host)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    while not found:
        try:
            connect(address, timeout_s=5).close()
        except Unreachable:  # until it listens
            assert thread.is_alive()
        thread.join(0.05)
    assert found == [host]


def test_a_certificate_has_a_link_local_address_without_the_interface(tmp_path):
    """Which interface it is, is each host's own affair."""
    host, site = link_local(), Site(tmp_path / "site")
    address = Address("b", "tls", host, tls=site.host("a"))
    there = site.host("b", without_interface(host))
    allowed = parse_allowed("a", "list")
    found: list[str] = []

    def serve() -> None:
        with first_admitted(server, there, allowed, timeout_s=5) as one:
            found.append(one.local_host)

    with listening_at(host, 0) as server:
        server.setblocking(False)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with connect(replace(address, port=server.getsockname()[1]), timeout_s=5):
            thread.join(10)
    assert found == [host]
