"""Data over TLS beside ssh: who may connect, what is done where they cannot, and what ssh is still for."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)
pytest.importorskip("cryptography")

from table_host import Pair

from saverestore.engine.progress import Silence
from saverestore.errors import TransportError, UsageError
from saverestore.migrate import certificate, protocol, source_link
from saverestore.migrate.addresses import Address, parse, ssh_arrived_at
from saverestore.migrate.certificate import OwnCertificate
from saverestore.migrate.linking import OpenDoor, Opened, door_beside_ssh
from saverestore.migrate.messages import Join, ProtocolError
from saverestore.migrate.source import migrate_domain
from saverestore.migrate.source_link import LinkOptions
from saverestore.transport import sockets, tls_peers
from saverestore.transport.connection import Connection
from saverestore.transport.route import Route
from saverestore.transport.tls import NotTrusted

FAKE_SSH = (sys.executable, str(Path(__file__).with_name("fake_ssh.py")))
LOOPBACK = "127.0.0.1"


@pytest.fixture
def pair(tmp_path) -> Pair:
    pair = Pair(tmp_path)
    pair.open_door = door_beside_ssh(LOOPBACK)
    return pair


def migrate(pair: Pair, **options) -> None:
    pair.migrate(destination=parse("b"), link=LinkOptions(**({"silence_s": 5.0} | options)))
    pair.join()
    assert (pair.a.table(), pair.b.table()) == ({}, {"web1": "running"})
    assert pair.states() == (["DONE"], ["RUNNING"])
    restored = pair.b.restored.domain
    pfns = pair.a.memory.data_pfns()
    assert (restored.read(pfns) == pair.a.memory.read(pfns)).all()


def nothing_is_left() -> bool:
    names = [one.name for one in threading.enumerate()]
    return not [name for name in names if name.startswith(("link-", "migration-"))]


def eventually(is_so) -> None:
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


# ---- through a program that is called as ssh is


def migrate_by_ssh(pair: Pair, tmp_path: Path, **options) -> None:
    host = str(tmp_path / "b")
    request = pair.request(destination=Address(host, "ssh", host), ssh=FAKE_SSH, link=LinkOptions(**options))
    migrate_domain(request, Silence(), host=pair.a, journals=pair.a.journals, link_report=pair.link_report)
    assert (pair.a.table(), pair.b.table()) == ({}, {"web1": "running"})


@pytest.fixture
def by_ssh(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setenv("SSH_CONNECTION", f"192.0.2.7 40000 {LOOPBACK} 22")
    return monkeypatch


def test_data_goes_by_tls_to_the_address_at_which_ssh_arrived(pair, tmp_path, by_ssh, caplog):
    migrate_by_ssh(pair, tmp_path, streams=2)
    report = pair.link_report
    assert (report.over, report.fallback, report.streams) == ("tls", "", 2)
    assert report.cipher.startswith("TLS_")
    assert report.ktls in (True, False)
    assert caplog.text == ""


def test_without_the_address_at_which_ssh_arrived_all_goes_over_ssh(pair, tmp_path, by_ssh, caplog):
    by_ssh.delenv("SSH_CONNECTION")
    migrate_by_ssh(pair, tmp_path)
    assert pair.link_report.over == "ssh"
    assert "not known there at which address ssh arrived" in pair.link_report.fallback
    assert caplog.text.count("everything goes over ssh") == 1


@pytest.mark.parametrize(
    ("said", "address"),
    [
        ("192.0.2.7 40000 10.0.0.2 22", "10.0.0.2"),
        ("2001:db8::7 40000 2001:db8::2 22", "2001:db8::2"),
        ("", ""),
        ("nonsense", ""),
    ],
)
def test_the_address_at_which_ssh_arrived_is_the_third_word_of_what_sshd_says(said, address):
    assert ssh_arrived_at({"SSH_CONNECTION": said}) == address
    assert ssh_arrived_at({}) == ""


# ---- what ssh is for


def test_ssh_may_break_when_tls_has_taken_its_place(pair, caplog):
    ssh: list[socket.socket] = []

    def sockets_() -> tuple[socket.socket, socket.socket]:
        ssh.extend(socket.socketpair())
        return ssh[0], ssh[1]

    pair.sockets = sockets_
    save_guest = pair.a.save_guest

    def cutting_guest(*given):
        guest = save_guest(*given)
        guest.moments.on("suspend", 0, lambda: ssh[0].shutdown(socket.SHUT_RDWR))
        return guest

    pair.a.save_guest = cutting_guest
    migrate(pair, streams=2)
    assert pair.link_report.reconnects == 0
    assert caplog.text == ""
    eventually(nothing_is_left)


def test_a_receiver_that_is_gone_is_not_waited_for(pair, tmp_path, by_ssh):
    save_guest = pair.a.save_guest

    def killing_guest(*given):
        guest = save_guest(*given)
        guest.moments.on("read_pages", 3, lambda: kill_children())
        return guest

    pair.a.save_guest = killing_guest
    begun = time.monotonic()
    with pytest.raises(TransportError):
        migrate_by_ssh(pair, tmp_path, streams=2, resume_for_s=120)
    assert time.monotonic() - begun < 60
    assert pair.a.table() == {"web1": "running"}


def kill_children() -> None:
    """What this process has started as ssh."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, _, rest = stat.read_text().partition(" ")
            if (
                rest.rpartition(")")[2].split()[1] == str(os.getpid())
                and "fake_ssh" in (stat.parent / "cmdline").read_text()
            ):
                os.kill(int(pid), signal.SIGKILL)


def test_what_is_asked_to_go_over_ssh_does_and_no_port_is_opened(pair, caplog):
    opened = []
    inner = pair.open_door
    pair.open_door = lambda *given: opened.append(1) or inner(*given)
    migrate(pair, over_ssh=True)
    assert (pair.link_report.over, pair.link_report.fallback, opened) == ("ssh", "", [])
    assert caplog.text == ""


def test_by_which_interface_connections_leave_is_in_the_report_and_in_the_log(pair, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    hosts: list[str] = []

    def route_to(host: str, _way: sockets.Way) -> Route:
        hosts.append(host)
        return Route("eth7", members=("eth1", "eth2"))

    monkeypatch.setattr(source_link, "route_to", route_to)
    migrate(pair, streams=2)
    assert (hosts, pair.link_report.route) == ([LOOPBACK], Route("eth7", members=("eth1", "eth2")))
    assert "connections to b leave by eth7, bond of eth1 and eth2" in caplog.text


def test_of_what_goes_over_ssh_no_interface_is_told(pair, monkeypatch):
    monkeypatch.setattr(source_link, "route_to", lambda *_given: pytest.fail("it was asked for"))
    migrate(pair, over_ssh=True)
    assert pair.link_report.route is None


# ---- where the port cannot be reached


def test_a_firewall_that_refuses_has_all_go_over_ssh_and_one_line_says_so(pair, caplog):
    migrate(pair, streams=4, data_address="127.0.0.2")  # where nobody listens
    report = pair.link_report
    assert (report.over, report.streams) == ("ssh", 1)
    assert report.fallback.startswith("127.0.0.2, port ") and "Connection refused" in report.fallback
    (line,) = [one for one in caplog.records if one.name == source_link.__name__]
    assert line.levelno == logging.WARNING
    assert "everything goes over ssh" in line.getMessage()
    assert "cannot reach this host's port" in caplog.text  # the destination's line
    eventually(nothing_is_left)


def test_what_swallows_everything_is_noticed_within_seconds(pair, monkeypatch):
    monkeypatch.setattr(source_link, "HANDSHAKE_S", 0.5)
    with socket.create_server((LOOPBACK, 0)) as silent:
        port = silent.getsockname()[1]
        pair.open_link = lambda address, _port, *more: source_link.open_link(address, port, *more)
        begun = time.monotonic()
        migrate(pair)
        assert time.monotonic() - begun < 15
    assert "did not complete the TLS handshake" in pair.link_report.fallback


def test_a_name_that_does_not_resolve_has_all_go_over_ssh(pair):
    migrate(pair, data_address="no-such-host.invalid")
    assert "no-such-host.invalid" in pair.link_report.fallback


@pytest.mark.parametrize("where", ["here", "there"])
def test_without_the_package_for_certificates_all_goes_over_ssh(pair, where, monkeypatch):
    inner, calls = OwnCertificate.made, []

    def made(host: str) -> OwnCertificate:
        calls.append(1)
        if len(calls) == (1 if where == "here" else 2):
            raise UsageError("making certificates needs the Python package cryptography")
        return inner(host)

    monkeypatch.setattr(certificate.OwnCertificate, "made", made)
    migrate(pair)
    assert "needs the Python package cryptography" in pair.link_report.fallback


# ---- who may connect


def intruding(pair: Pair, intrude) -> list[BaseException | None]:
    """At the moment at which the source connects, somebody else does first: what that came to."""
    met: list[BaseException | None] = []

    def open_link(address: Address, port: int, timeout_s: float, *more) -> Connection:
        if not met:
            met.append(None)
            try:
                intrude(address, port)
            except TransportError as error:
                met[0] = error
        return source_link.open_link(address, port, timeout_s, *more)

    pair.open_link = open_link
    return met


def connected_with(own: OwnCertificate, der: bytes, port: int) -> Connection:
    """A connection to the port by TLS, of who has this certificate, and takes the other side for what it is."""
    import base64

    tls, _ = own.pinned(base64.b64encode(der).decode())
    return sockets.connect(Address("b", "tls", LOOPBACK, port, tls), timeout_s=5)


def test_another_certificate_is_refused_and_the_migration_is_not_disturbed(pair, caplog):
    def intrude(address: Address, port: int) -> None:
        with connected_with(OwnCertificate.made("mallory"), address.tls.peer, port):
            pytest.fail("it was admitted")

    met = intruding(pair, intrude)
    migrate(pair, streams=2)
    assert isinstance(met[0], NotTrusted)
    assert "does not accept this host's certificate: it is not the one that was agreed on" in str(met[0])
    assert (
        "refused: 127.0.0.1 is not trusted: its certificate is not the one that was agreed on" in caplog.text
    )
    assert pair.link_report.over == "tls"


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.0\r\n\r\n", b"\x50\x4d\x00\x12\x00\x00\x00\x02{}"])
def test_who_does_not_speak_tls_is_turned_away(pair, said):
    def intrude(_address: Address, port: int) -> None:
        # It may be turned away amid that.
        with socket.create_connection((LOOPBACK, port)) as stranger, contextlib.suppress(OSError):
            stranger.sendall(said)
            stranger.shutdown(socket.SHUT_WR)
            while part := stranger.recv(1000):
                assert b"PM" not in part

    intruding(pair, intrude)
    migrate(pair, streams=2)
    assert pair.link_report.over == "tls"


def test_the_right_certificate_without_the_secret_does_not_join(pair, caplog):
    def intrude(address: Address, port: int) -> None:
        tls = address.tls
        with sockets.connect(Address("b", "tls", LOOPBACK, port, tls), timeout_s=5) as made:
            (log,) = pair.a.journals.all()
            made.outgoing.write(protocol.pack(Join(log.head.migration, "0" * 64)))
            assert made.incoming.at_end()

    met = intruding(pair, intrude)
    migrate(pair, streams=2)
    assert met == [None]
    assert "is not the source of migration" in caplog.text
    assert pair.link_report.over == "tls"


@contextmanager
def impostor(*_given):
    """A port at which somebody else listens, with a certificate of their own."""
    theirs = OwnCertificate.made("mallory")
    with socket.create_server((LOOPBACK, 0)) as server:
        closing = threading.Event()

        def serve() -> None:
            tls, allowed = theirs.pinned(theirs.text)
            tls_peers.first_admitted(server, tls, allowed, timeout_s=5, is_closing=closing.is_set)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        closing.set()
        thread.join()


def test_a_destination_that_shows_another_certificate_gets_nothing_by_tls(pair):
    with impostor() as port:
        pair.open_link = lambda address, _port, *more: source_link.open_link(address, port, *more)
        migrate(pair)
    assert "its certificate is not the one that was agreed on" in pair.link_report.fallback
    assert pair.link_report.over == "ssh"


def test_what_is_no_certificate_is_refused_by_both_sides(pair, caplog):
    own = OwnCertificate.made("a")
    for text in ("", "AAAA", "not base64", "ü"):
        with pytest.raises((ProtocolError, NotTrusted), match="as its certificate is none"):
            own.pinned(text)
    inner = pair.open_door

    def spoilt(which: str) -> OpenDoor:
        @contextmanager
        def open_door(*given):
            with inner(*given) as opened:
                yield Opened(opened.port, opened.host, which)

        return open_door

    pair.open_door = spoilt("AAAA")
    migrate(pair)
    assert "as its certificate is none" in pair.link_report.fallback


@pytest.mark.parametrize("host", ["a..b", "a b", "-x", "\0", "ü", "x" * 300])
def test_an_address_that_is_none_has_all_go_over_ssh(pair, host):
    inner = pair.open_door

    @contextmanager
    def open_door(*given):
        with inner(*given) as opened:
            yield Opened(opened.port, host, opened.certificate)

    pair.open_door = open_door
    migrate(pair)
    assert pair.link_report.over == "ssh"
    assert pair.link_report.fallback.isprintable()


def test_the_port_is_closed_when_the_migration_is_over(pair):
    ports = []
    inner = source_link.open_link

    def open_link(address: Address, port: int, timeout_s: float, *more) -> Connection:
        ports.append(port)
        return inner(address, port, timeout_s, *more)

    pair.open_link = open_link
    migrate(pair)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((LOOPBACK, ports[0]))
    eventually(nothing_is_left)


# ---- keys


def test_a_key_is_in_no_text_of_what_holds_it():
    own = OwnCertificate.made("host1")
    tls, _ = own.pinned(OwnCertificate.made("host2").text)
    assert b"PRIVATE" in own.key
    for shown in (repr(own), str(own), repr(tls), str(Address("b", "tls", LOOPBACK, 1, tls)), own.text):
        assert "PRIVATE" not in shown
        assert own.key.decode().splitlines()[1] not in shown


def test_no_file_system_ever_has_the_key(monkeypatch):
    names: list[str] = []
    import ssl

    inner = ssl.SSLContext.load_cert_chain
    monkeypatch.setattr(
        ssl.SSLContext,
        "load_cert_chain",
        lambda self, path: names.append(str(Path(path).readlink())) or inner(self, path),
    )
    before = set(Path("/proc/self/fd").iterdir())
    tls, _ = OwnCertificate.made("a").pinned(OwnCertificate.made("b").text)
    tls.for_listening()
    assert names == ["/memfd:pysave (deleted)"] * 2
    assert set(Path("/proc/self/fd").iterdir()) == before
