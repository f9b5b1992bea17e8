"""Which address, interface and class connections leave by."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from saverestore.cli.arguments import dscp
from saverestore.errors import TransportError, UsageError
from saverestore.migrate.certificate import OwnCertificate
from saverestore.transport import congestion, tcp_info
from saverestore.transport.sockets import Address, Unreachable, Way, connect


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def address_of(server: socket.socket, way: Way) -> Address:
    return Address("tcp://b", "tcp", "127.0.0.1", server.getsockname()[1], way=way)


def test_a_connection_leaves_from_the_address_that_was_chosen(server):
    with connect(address_of(server, Way(source="127.0.0.2")), timeout_s=5):
        made, whence = server.accept()
        made.close()
    assert whence[0] == "127.0.0.2"


def test_a_connection_leaves_by_the_interface_and_with_the_class_that_were_chosen(server):
    with connect(address_of(server, Way(interface="lo", dscp=dscp("af11"))), timeout_s=5) as connection:
        ours = connection._socket
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"
        assert ours.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 10 << 2


def test_by_ipv6_too():
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        address = Address("tcp://b", "tcp", "::1", server.getsockname()[1], way=Way("::1", dscp=8))
        with connect(address, timeout_s=5) as connection:
            assert connection._socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) == 8 << 2
            assert connection.local_host == "::1"


def test_a_connection_has_the_congestion_control_that_was_chosen_and_says_so(server):
    with connect(address_of(server, Way(congestion="reno")), timeout_s=5) as connection:
        assert connection._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).startswith(
            b"reno"
        )
        assert connection.congestion == "reno"


def test_a_congestion_control_that_the_kernel_lacks_is_named(server):
    with pytest.raises(UsageError, match="this kernel has no TCP congestion control 'renno'"):
        connect(address_of(server, Way(congestion="renno")), timeout_s=5)


@pytest.mark.parametrize(
    ("round_trip_us", "found"),
    [(9_999, "usual"), (10_000, "reno"), (None, "usual")],
    ids=["near", "far", "unknown"],
)
def test_a_long_link_gets_the_one_for_long_links(server, monkeypatch, round_trip_us, found):
    usual = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    other = "reno" if usual != "reno" else "cubic"
    monkeypatch.setattr(congestion, "FOR_LONG_LINKS", other)  # a kernel may lack bbr
    monkeypatch.setattr(congestion, "round_trip_us", lambda _: round_trip_us)
    with connect(address_of(server, Way()), timeout_s=5) as connection:
        assert connection.congestion == (other if found == "reno" else usual)
    with connect(address_of(server, Way(congestion=usual)), timeout_s=5) as connection:
        assert connection.congestion == usual  # a person's choice stays


def test_where_the_kernel_lacks_it_the_usual_one_stays(server, monkeypatch):
    monkeypatch.setattr(congestion, "FOR_LONG_LINKS", "bbbr")
    monkeypatch.setattr(congestion, "LONG_US", 0)
    with connect(address_of(server, Way()), timeout_s=5) as connection:
        assert connection.congestion not in ("", "bbbr")


def test_how_long_a_packet_takes_there_and_back_is_known(server):
    with connect(address_of(server, Way()), timeout_s=5) as connection:
        assert 0 < tcp_info.round_trip_us(connection._socket) < 1_000_000


@pytest.mark.parametrize(
    ("way", "why"),
    [
        (Way(source="192.0.2.1"), "by 192.0.2.1: Cannot assign requested address"),
        (Way(interface="none0"), "by none0: No such device"),
        (Way(source="not an address"), "by not an address: "),
    ],
)
def test_a_way_that_is_none_is_named(server, way, why):
    before = threading.active_count()
    with pytest.raises(Unreachable, match=f"tcp://b cannot be reached {why}"):
        connect(address_of(server, way), timeout_s=5)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("63", 63), ("EF", 46), ("cs1", 8), ("af43", 38), ("le", 1)]
)
def test_classes_have_numbers_and_names(text, number):
    assert dscp(text) == number


@contextlib.contextmanager
def full():
    """A port whose queue is full: who connects gets no answer."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as made, contextlib.ExitStack() as stack:
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(made.getsockname())
        time.sleep(0.1)
        yield made


def given_up_after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def test_connecting_takes_no_longer_than_it_may():
    with full() as server:
        begun = time.monotonic()
        with pytest.raises(Unreachable, match="cannot be reached: Connection timed out"):
            connect(address_of(server, Way()), timeout_s=20, connect_s=0.3)
        assert 0.2 < time.monotonic() - begun < 3


def test_connecting_ends_soon_after_it_was_given_up():
    with full() as server:
        begun = time.monotonic()
        with pytest.raises(Unreachable):
            connect(address_of(server, Way()), timeout_s=20, is_given_up=given_up_after(0.3))
        assert 0.2 < time.monotonic() - begun < 2


def test_so_does_a_handshake(server):
    pytest.importorskip("cryptography")
    own = OwnCertificate.made("a")
    tls, _ = own.pinned(own.text)
    address = replace(address_of(server, Way()), kind="tls", tls=tls)
    begun = time.monotonic()
    with pytest.raises(TransportError):
        connect(address, timeout_s=20, is_given_up=given_up_after(0.3))
    assert 0.2 < time.monotonic() - begun < 2


def test_who_is_refused_is_told_why_and_the_error_is_of_its_kind(server):
    address = address_of(server, Way())
    server.close()
    with pytest.raises(Unreachable, match="cannot be reached: Connection refused") as caught:
        connect(address, timeout_s=5)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def test_a_host_without_ipv6_is_reached_by_ipv4_where_the_name_has_both(monkeypatch):
    """With ipv6.disable=1 there are no such sockets, and names are looked up as everywhere."""

    class WithoutIpv6(socket.socket):
        def __init__(self, family=socket.AF_INET, *given, **more) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *given, **more)

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        monkeypatch.setattr(socket, "socket", WithoutIpv6)
        with connect(Address("b", "tcp", "b", port), timeout_s=5) as one:
            assert one.remote_host == "127.0.0.1"
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found[:1])
        with pytest.raises(Unreachable, match="Address family not supported"):
            connect(Address("b", "tcp", "b", port), timeout_s=5)
