"""Migrations over one link and over four, which break at chosen moments; over TCP and TLS on loopback."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from table_host import Pair, tcp_sockets

from saverestore import interrupts
from saverestore.engine.policy import Limits, OnStall
from saverestore.engine.progress import SaveReport
from saverestore.errors import Interrupted, TransportError
from saverestore.migrate import linking, source, source_link
from saverestore.migrate.addresses import parse
from saverestore.migrate.linking import door_beside_ssh, door_of
from saverestore.migrate.messages import Join, KeepAlive
from saverestore.migrate.peers import MigrationAborted
from saverestore.migrate.source_link import LinkOptions
from saverestore.transport.connection import Connection
from saverestore.transport.sockets import Address, Unreachable

PAUSED_S = 0.2


@dataclass
class Links:
    """The links of one migration, from outside: each as the source's socket."""

    first: list[socket.socket]
    further: list[Connection]
    is_cut: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def cut(self, which: slice = slice(None)) -> None:
        """Break the links that there are, as a firewall's RST does."""
        with self.lock:
            for one in [*self.first, *self.further][which]:
                if one.fileno() >= 0:  # type: ignore[attr-defined]
                    other = socket.socket(fileno=one.fileno())  # type: ignore[attr-defined]
                    other.shutdown(socket.SHUT_RDWR)
                    other.detach()

    @property
    def nr(self) -> int:
        return len(self.first) + len(self.further)


@pytest.fixture(params=["tcp", "ssh"])
def way(request) -> str:
    if request.param == "ssh":
        pytest.importorskip("cryptography")
    return request.param


@pytest.fixture
def pair(tmp_path, way) -> Pair:
    pair = Pair(tmp_path)
    pair.way = way
    return pair


def over_links(pair: Pair) -> Links:
    """By TCP, where the first connection is a link; or by TLS, beside the first one, which is ssh's."""
    links = Links([], [])

    def sockets() -> tuple[socket.socket, socket.socket]:
        if pair.way == "ssh":
            return socket.socketpair()
        ours, theirs = tcp_sockets()
        links.first.append(ours)
        return ours, theirs

    def open_link(address: Address, port: int, timeout_s: float, *more) -> Connection:
        if links.is_cut:
            raise Unreachable("the link is cut")
        made = source_link.open_link(address, port, timeout_s, *more)
        with links.lock:
            if not links.is_cut:
                links.further.append(made)
                return made
        made.close()  # cut while it was opened: none is left over that nobody has cut
        raise Unreachable("the link is cut")

    pair.sockets, pair.open_link = sockets, open_link
    pair.open_door = door_of(None) if pair.way == "tcp" else door_beside_ssh("127.0.0.1")
    return links


def migrate(
    pair: Pair, streams: int, limits: Limits | None = None, host: str = "127.0.0.1", **changes
) -> SaveReport:
    options = LinkOptions(streams=streams, silence_s=5.0)
    destination = parse(f"tcp://{host}:1" if pair.way == "tcp" else "b")
    migrated = pair.migrate(
        destination=destination, link=replace(options, **changes), limits=limits or Limits()
    )
    pair.join()
    assert (pair.a.table(), pair.b.table()) == ({}, {"web1": "running"})
    assert pair.states() == (["DONE"], ["RUNNING"])
    restored = pair.b.restored.domain
    pfns = pair.a.memory.data_pfns()
    assert (restored.read(pfns) == pair.a.memory.read(pfns)).all()
    return migrated.report


def at(pair: Pair, moment: str, work: Callable[[], None], *, turn: int = 0) -> None:
    """Do this once, as the source's guest is asked for something."""
    save_guest = pair.a.save_guest
    done = []

    def disturbed(*given):
        guest = save_guest(*given)
        inner = getattr(guest, moment)
        calls = []

        def outer(*more, **named):
            calls.append(1)
            if len(calls) > turn and not done:
                done.append(1)
                work()
            return inner(*more, **named)

        setattr(guest, moment, outer)
        return guest

    pair.a.save_guest = disturbed


def eventually(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("streams", [1, 4])
def test_a_domain_moves_over_links_and_all_of_them_are_used(pair, streams):
    links = over_links(pair)
    at(pair, "read_pages", lambda: eventually(lambda: links.nr == streams), turn=1)
    migrate(pair, streams)
    assert pair.link_report.streams == streams
    assert (pair.link_report.reconnects, pair.link_report.resent_pages) == (0, 0)
    eventually(
        lambda: not [one for one in threading.enumerate() if one.name.startswith(("link-", "migration-"))]
    )


@pytest.mark.parametrize("streams", [1, 4])
def test_a_source_that_knows_of_links_moves_a_domain_to_a_host_that_does_not(pair, streams, caplog):
    over_links(pair)
    pair.open_door = None
    migrate(pair, streams)
    assert ("takes one connection only" in caplog.text) == (streams > 1 or pair.way == "ssh")


BY_TCP = pytest.mark.parametrize("way", ["tcp"], indirect=True)


@BY_TCP
def test_one_connection_that_is_not_to_be_resumed_is_no_link(pair):
    over_links(pair)
    seen: list[str] = []
    at(pair, "end_records", lambda: seen.extend(one.name for one in threading.enumerate()))
    migrate(pair, 1, resume_for_s=0.0)
    assert "migration-listener" in seen
    assert not [name for name in seen if name.startswith("link-")]


def test_a_destination_that_cannot_listen_takes_one_connection(pair, caplog):
    over_links(pair)

    def fail(*_given):
        raise TransportError("cannot listen there")

    pair.open_door = fail
    migrate(pair, 4)
    assert "there is one connection only: cannot listen there" in caplog.text
    if pair.way == "ssh":
        assert "no TLS connection to b (cannot listen there); everything goes over ssh" in caplog.text
        assert (pair.link_report.over, pair.link_report.fallback) == ("ssh", "cannot listen there")


def test_a_source_that_does_not_know_of_links_moves_a_domain_to_a_host_that_does(pair):
    over_links(pair)
    pair.migrate(link=LinkOptions(over_ssh=True))
    pair.join()
    assert pair.b.table() == {"web1": "running"}


def are_joined(streams: int) -> bool:
    """Whether both sides have that many links."""
    return [one.name for one in threading.enumerate()].count("link-sender") == 2 * streams


@pytest.mark.parametrize("streams", [1, 4])
def test_when_all_links_break_while_the_domain_runs_the_migration_resumes_where_it_was(pair, streams, caplog):
    links = over_links(pair)

    def cut() -> None:
        eventually(lambda: are_joined(streams))  # one that is just joining would break a second time
        links.is_cut = True
        links.cut()
        threading.Timer(PAUSED_S, lambda: setattr(links, "is_cut", False)).start()

    at(pair, "read_pages", cut, turn=3)
    migrate(pair, streams)
    assert pair.link_report.reconnects == 1
    assert pair.link_report.broken_s > PAUSED_S / 2
    # At most all that had been sent until then; the bytes of headers count as pages, rounded up.
    assert pair.link_report.resent_pages <= pair.a.batch_pfns * 4 + 1
    assert caplog.text.count("the link to b is broken") == 1
    assert "is back after" in caplog.text
    assert pair.a.guest.moments.calls.count("suspend") == 1


@pytest.mark.parametrize("on_stall", [OnStall.STOP, OnStall.ABORT])
def test_what_a_domain_writes_while_all_links_are_broken_is_sent_before_it_is_suspended(
    pair, on_stall, caplog
):
    links, plain = over_links(pair), pair.a.memory.data_pfns()

    def cut() -> None:
        eventually(lambda: are_joined(1))
        links.is_cut = True
        links.cut()
        pair.a.memory.write(plain[:200], 2)
        threading.Timer(PAUSED_S, lambda: setattr(links, "is_cut", False)).start()
        eventually(lambda: "the link to b is back after" in caplog.text)

    at(pair, "check_layout", lambda: pair.a.memory.write(plain[:100], 1))
    at(pair, "check_layout", cut, turn=1)
    rounds = migrate(pair, 1, Limits(on_stall=on_stall)).rounds
    assert [one.sent_pages for one in rounds[1:]] == [100, 200, 0]
    assert [one.was_broken for one in rounds] == [False, True, False, False]
    assert [one.final for one in rounds] == [False, False, False, True]
    assert pair.link_report.reconnects == 1


@pytest.mark.parametrize("streams", [1, 4])
def test_links_that_break_while_what_was_sent_arrives_are_waited_for_before_the_domain_is_suspended(
    pair, streams, monkeypatch
):
    links = over_links(pair)
    monkeypatch.setattr(source, "CATCH_UP_S", PAUSED_S / 4)

    def cut() -> KeepAlive:
        monkeypatch.setattr(source, "KeepAlive", KeepAlive)  # the link breaks once
        eventually(lambda: are_joined(streams))
        links.is_cut = True
        links.cut()
        threading.Timer(PAUSED_S, lambda: setattr(links, "is_cut", False)).start()
        return KeepAlive()

    monkeypatch.setattr(source, "KeepAlive", cut)
    rounds = migrate(pair, streams).rounds
    assert [one.final for one in rounds] == [False, False, True]
    assert pair.link_report.reconnects == 1
    assert pair.a.guest.moments.calls.count("suspend") == 1


class Relay:
    """Passes connections on to a port. `break_here`: those that there are end for who connected; who listens there
    hears nothing of that, then or later.
    """

    def __init__(self, port: int) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.server.getsockname()[1]
        self._to = port
        self._ends: list[tuple[socket.socket, socket.socket]] = []
        self._kept: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ours = self.server.accept()[0]
                theirs = socket.create_connection(("127.0.0.1", self._to))
                self._ends.append((ours, theirs))
                for ends in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, whence: socket.socket, where: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := whence.recv(1 << 16):
                where.sendall(data)
            if not self._is_broken(whence):
                where.shutdown(socket.SHUT_WR)

    def _is_broken(self, one: socket.socket) -> bool:
        return all(one not in ends for ends in self._ends)

    def break_here(self) -> None:
        broken, self._ends = self._ends, []
        self._kept += broken  # open, for the port
        for ours, _ in broken:
            ours.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()


@pytest.mark.parametrize("streams", [1, 2])
def test_links_that_have_broken_for_the_source_alone_are_replaced_before_the_destination_notices(
    pair, streams, monkeypatch, caplog
):
    monkeypatch.setattr(linking, "MOST_STREAMS", streams)
    over_links(pair)
    inner, sockets = pair.open_link, pair.sockets
    relays: list[Relay] = []

    def relayed() -> tuple[socket.socket, socket.socket]:
        if pair.way == "ssh":
            return sockets()
        with socket.create_server(("127.0.0.1", 0)) as server:
            relays.append(Relay(server.getsockname()[1]))
            return socket.create_connection(("127.0.0.1", relays[-1].port)), server.accept()[0]

    opened: list[Connection] = []

    def open_link(address: Address, port: int, *more) -> Connection:
        if len(relays) < (2 if pair.way == "tcp" else 1):
            relays.append(Relay(port))
        opened.append(inner(address, relays[-1].port, *more))
        return opened[-1]

    begun: list[float] = []

    def cut() -> None:
        eventually(lambda: are_joined(streams))
        before = len(opened)
        begun.append(time.monotonic())
        for relay in relays:
            relay.break_here()
        # Perhaps one after the other: the first may be replaced before the last has broken.
        eventually(lambda: len(opened) >= before + streams)
        eventually(lambda: are_joined(streams))
        begun.append(time.monotonic())

    pair.sockets, pair.open_link = relayed, open_link
    at(pair, "read_pages", cut, turn=3)
    migrate(pair, streams, silence_s=15.0)
    assert begun[1] - begun[0] < 7
    assert pair.link_report.streams == streams
    assert "a further connection was refused" not in caplog.text
    for relay in relays:
        relay.close()


@BY_TCP
def test_further_links_go_to_the_address_that_the_first_has_come_to_and_look_up_no_name(pair):
    """A name may have several addresses; and who tells them may be behind the link that has broken."""
    links = over_links(pair)
    at(pair, "read_pages", lambda: eventually(lambda: links.nr == 2), turn=1)
    migrate(pair, 2, host="no-such-host.invalid")
    assert pair.link_report.streams == 2


def test_a_link_of_a_number_that_was_not_agreed_on_is_refused(pair, monkeypatch, caplog):
    over_links(pair)
    inner = linking.heard_on

    def heard_on(connection: Connection, wanted: type) -> Join:
        join = inner(connection, wanted)
        return replace(join, link=2) if join.link and not caplog.text else join

    monkeypatch.setattr(linking, "heard_on", heard_on)
    at(pair, "read_pages", lambda: eventually(lambda: are_joined(2)), turn=1)
    migrate(pair, 2)
    assert "joins as number 2 of 2 connections" in caplog.text


def test_closing_gives_up_a_link_that_is_just_being_opened(pair):
    links = over_links(pair)
    inner = pair.open_link
    with socket.create_server(("127.0.0.1", 0)) as silent:

        def open_link(address: Address, port: int, *more) -> Connection:
            is_first = pair.way == "ssh" and not links.further
            return inner(address, port if is_first else silent.getsockname()[1], *more)

        pair.open_link = open_link
        stalled: list[tuple[socket.socket, object]] = []
        at(pair, "read_pages", lambda: stalled.append(silent.accept()), turn=1)
        begun = time.monotonic()
        migrate(pair, 2)
        assert not [one for one in threading.enumerate() if one.name == "link-keeper"]
        assert time.monotonic() - begun < 8
        for made, _ in stalled:
            made.close()


def test_one_link_of_four_may_break_at_any_time_also_while_the_domain_is_suspended(pair):
    links = over_links(pair)

    def cut_first() -> None:
        eventually(lambda: links.nr == 4)
        links.cut(slice(0, 1))

    at(pair, "end_records", cut_first)
    migrate(pair, 4)
    assert pair.link_report.reconnects == 0


@pytest.mark.parametrize("streams", [1, 4])
def test_when_all_links_break_while_the_domain_is_suspended_it_runs_at_the_source_at_once(
    pair, streams, caplog
):
    links = over_links(pair)

    def cut() -> None:
        eventually(lambda: are_joined(streams))
        links.is_cut = True
        links.cut()

    at(pair, "end_records", cut)
    with pytest.raises(TransportError):
        migrate(pair, streams, resume_for_s=2)
    assert "the link to b is broken" not in caplog.text  # the source does not wait; the destination does
    assert pair.a.table() == {"web1": "running"}
    pair.join()
    assert pair.b.table() == {}
    assert pair.states() == (["ABORTED"], ["ABORTED"])


def test_without_a_new_link_in_time_the_domain_runs_at_the_source_and_nothing_is_left_at_the_destination(
    pair,
):
    links = over_links(pair)

    def cut() -> None:
        eventually(lambda: are_joined(4))  # one that is just joining would be a new link
        links.is_cut = True
        links.cut()

    at(pair, "read_pages", cut, turn=3)
    with pytest.raises(TransportError, match="cannot be reached any more"):
        migrate(pair, 4, resume_for_s=0.5)
    pair.join()
    assert pair.link_report.reconnects == 0
    assert pair.link_report.broken_s == pytest.approx(0.5, abs=0.2)
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})
    assert pair.states() == (["ABORTED"], ["ABORTED"])


def test_who_interrupts_a_migration_that_waits_for_a_link_does_not_wait(pair):
    links = over_links(pair)

    def cut() -> None:
        eventually(lambda: are_joined(1))
        links.is_cut = True
        links.cut()
        threading.Timer(PAUSED_S, lambda: os.kill(os.getpid(), signal.SIGINT)).start()

    at(pair, "read_pages", cut, turn=3)
    begun = time.monotonic()
    with interrupts.handled(), pytest.raises(Interrupted) as caught:
        migrate(pair, 1, resume_for_s=8)
    assert time.monotonic() - begun < 7
    assert pair.a.table() == {"web1": "running"}
    assert "has not confirmed" in " ".join(caught.value.__notes__)
    pair.join()  # it waits for a link, and then gives up by itself
    assert pair.b.table() == {}


def test_a_destination_that_fails_is_heard_over_links(pair):
    over_links(pair)
    pair.b.fails["connect"] = TransportError("b has no room")
    with pytest.raises(MigrationAborted, match="aborted the migration: b has no room"):
        migrate(pair, 4)
    pair.join()
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})


@BY_TCP
def test_a_stranger_at_the_door_is_turned_away_and_the_migration_is_not_disturbed(pair, caplog):
    links = over_links(pair)
    inner = pair.open_link

    def open_link(address: Address, port: int, timeout_s: float, *more) -> Connection:
        if not links.further:
            for said in (b"GET / HTTP/1.0\r\n\r\n", b"\x50\x4d\x00\x12\x00\x00\x00\x02{}"):
                with socket.create_connection(("127.0.0.1", port)) as stranger:
                    stranger.sendall(said)
                    assert stranger.recv(100) == b""
        return inner(address, port, timeout_s, *more)

    pair.open_link = open_link
    at(pair, "read_pages", lambda: eventually(lambda: links.nr == 2), turn=1)
    migrate(pair, 2)
    assert caplog.text.count("a further connection was refused") == 2
