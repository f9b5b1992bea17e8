"""Reaching the other host: by what is called as ssh is, and by socket files and ports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from table_host import Pair, TableCopy
from tls_sites import Site

from saverestore import interrupts
from saverestore.engine.progress import Silence
from saverestore.errors import ErrorName, Interrupted, Remedy, TransportError, UsageError, remedies_of
from saverestore.migrate import addresses
from saverestore.migrate.addresses import Address, Unreachable, parse
from saverestore.migrate.channel import Channel
from saverestore.migrate.destination import receive
from saverestore.migrate.source import migrate_domain
from saverestore.transport.tls import NotTrusted
from saverestore.transport.tls_peers import parse_allowed

FAKE_SSH = (sys.executable, str(Path(__file__).with_name("fake_ssh.py")))


def migrate(pair: Pair, address: Address) -> None:
    request = pair.request(destination=address, ssh=FAKE_SSH)
    migrate_domain(request, Silence(), host=pair.a, journals=pair.a.journals)


def test_a_domain_moves_by_a_command_that_is_called_as_ssh_is(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    pair = Pair(tmp_path)
    migrate(pair, Address(str(tmp_path / "b"), "ssh", str(tmp_path / "b")))
    assert (pair.a.table(), pair.b.table()) == ({}, {"web1": "running"})
    assert pair.states() == (["DONE"], ["RUNNING"])


def test_a_host_that_ssh_cannot_reach_is_named_with_what_ssh_ended_with(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    pair = Pair(tmp_path)
    with pytest.raises(Unreachable, match=r"nowhere cannot be reached by ssh: .* exit code 255") as caught:
        migrate(pair, parse("nowhere"))
    assert caught.value.name is ErrorName.PEER_UNREACHABLE
    (advice,) = remedies_of(caught.value)
    assert advice.remedy is Remedy.TRY_SSH
    assert str(advice.object).endswith(" nowhere")
    assert pair.a.table() == {"web1": "running"}
    assert pair.states() == ([], [])


def test_a_program_for_ssh_that_there_is_not_is_named(tmp_path):
    pair = Pair(tmp_path)
    with pytest.raises(Unreachable, match="exit code 127"):
        migrate_domain(pair.request(ssh=("/no/such/ssh",)), Silence(), host=pair.a, journals=pair.a.journals)


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("kind", ["unix", "tcp", "tls"])
def test_a_domain_moves_over_a_socket_at_which_the_receiver_listens(tmp_path, kind):
    pair = Pair(tmp_path)
    address = parse(f"unix:{tmp_path}/socket" if kind == "unix" else f"{kind}://127.0.0.1:{free_port()}")
    there, allowed = address, None
    if kind == "tls":
        site = Site(tmp_path / "site")
        address, there = (
            replace(address, tls=site.host("a")),
            replace(address, tls=site.host("b", "127.0.0.1")),
        )
        allowed = parse_allowed("a", "list")

    def serve() -> None:
        with addresses.listening(there, allowed=allowed) as connection, Channel(connection) as channel:
            receive(channel, pair.b, Silence(), journals=pair.b.journals, copy_of=TableCopy)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    while True:  # until it listens
        try:
            migrate(pair, address)
            break
        except Unreachable:
            thread.join(0.05)
            assert thread.is_alive()
    thread.join(30)
    assert (pair.a.table(), pair.b.table()) == ({}, {"web1": "running"})
    assert not (tmp_path / "socket").exists()


def test_a_destination_that_does_not_trust_this_host_has_nothing_of_the_domain(tmp_path):
    pair, site = Pair(tmp_path), Site(tmp_path / "site")
    address = parse(f"tls://127.0.0.1:{free_port()}", tls=site.host("a"))
    there = replace(address, tls=site.host("b", "127.0.0.1"))

    def serve() -> None:
        with addresses.listening(there, allowed=parse_allowed("c", "list")):
            pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    while True:
        try:
            migrate(pair, address)
        except Unreachable:  # until it listens
            assert thread.is_alive()
        except NotTrusted as error:
            assert "it is not on the list there" in str(error)
            break
    with pytest.raises(TransportError):  # one that is listed ends the wait
        migrate(pair, replace(address, tls=site.host("c")))
    thread.join(10)
    assert not thread.is_alive()
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})
    assert pair.states() == ([], [])


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "-oProxyCommand=x",
            "two words",
            "http://b",
            "tcp://b",
            "tcp://:1",
            "tcp://b:0",
            "tls://",
            "tls://b:x",
        ),
        *("tls://b:65536", "tls://a b", "tls://::1", "tls://b/x", "tls://u@b:1:2"),
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UsageError):
        parse(text)


def test_addresses_are_taken_apart():
    assert parse("root@b").kind == "ssh"
    assert parse("unix:/run/x") == Address("unix:/run/x", "unix", "/run/x")
    assert parse("tls://b") == Address("tls://b", "tls", "b", addresses.TLS_PORT)
    assert parse("tls://[::1]:1") == Address("tls://[::1]:1", "tls", "::1", 1)
    assert parse("tcp://[::1]:8700") == Address("tcp://[::1]:8700", "tcp", "::1", 8700)


def test_a_signal_that_comes_as_ssh_is_started_leaves_no_ssh_behind(monkeypatch):
    children: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def interrupted(*given, **more):
        children.append(real(*given, **more))
        os.kill(os.getpid(), signal.SIGINT)
        return children[-1]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    ssh = ("sh", "-c", "exec cat > /dev/null")
    with (
        interrupts.handled(),
        pytest.raises(Interrupted),
        addresses.connected(Address("host", "ssh", "host"), ssh=ssh),
    ):
        raise AssertionError("it is not connected")
    (child,) = children
    ended = child.returncode is not None
    child.kill()
    child.wait()
    assert ended
