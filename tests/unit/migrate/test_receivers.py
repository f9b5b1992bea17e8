"""Receivers that others start: systemd's units, and ssh with a key that may receive and nothing else."""

from __future__ import annotations

import configparser
import os
import shlex
import socket
import struct
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from table_host import Pair
from tls_sites import Site

from saverestore.cli.pymigrate.receive import FORCED, _door_of, receive_parser
from saverestore.engine.progress import Silence
from saverestore.errors import ExitCode
from saverestore.migrate.addresses import TLS_PORT, parse
from saverestore.migrate.certificate import OwnCertificate
from saverestore.migrate.messages import Offer
from saverestore.migrate.source import migrate_domain
from saverestore.migrate.source_link import LinkOptions
from saverestore.migrate.ssh_child import RECEIVE
from saverestore.transport.connection import pair as pair_of_connections
from saverestore.transport.tls import NotTrusted
from saverestore.transport.tls_peers import ALLOWED

ROOT = Path(__file__).parents[3]
SERVICE = Path(__file__).with_name("fake_service.py")


class Service:
    """What systemd does with `Accept=yes`: a process for each connection, which is its standard input."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]

    def serve_one(self) -> subprocess.Popen[str]:
        made, _ = self._server.accept()
        with made:
            return subprocess.Popen(
                self._command,
                stdin=made.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path / "site")


def files_of(site: Site, allowed: str) -> list[str]:
    ours = site.host("b", "127.0.0.1")
    listed = site.folder / "allowed"
    listed.write_text(allowed)
    return [str(path) for path in (ours.cert, ours.key, ours.ca, listed)]


def migrate_through(
    service: Service, pair: Pair, site: Site, link: LinkOptions | None = None
) -> tuple[BaseException | None, int, str, str]:
    """Migrate to the service: the error here, its exit code and what it printed."""
    import threading

    started: list[subprocess.Popen[str]] = []
    thread = threading.Thread(target=lambda: started.append(service.serve_one()))
    thread.start()
    address = parse(f"tls://127.0.0.1:{service.port}", tls=site.host("a"))
    failure = None
    try:
        migrate_domain(
            pair.request(destination=address, link=link or LinkOptions()),
            Silence(),
            host=pair.a,
            journals=pair.a.journals,
            link_report=pair.link_report,
        )
    except Exception as error:
        failure = error
    thread.join()
    out, err = started[0].communicate(timeout=60)
    return failure, started[0].returncode, out, err


def test_a_domain_moves_to_a_process_whose_standard_input_is_the_connection(tmp_path, site):
    pair = Pair(tmp_path)
    command = [sys.executable, str(SERVICE), str(tmp_path / "b"), *files_of(site, "a")]
    service = Service(command)
    failure, code, out, _ = migrate_through(service, pair, site)
    service.close()
    assert (failure, code) == (None, 0)
    assert out == "what is printed is not for the peer\n"
    assert (pair.a.table(), pair.b.table()) == ({}, {"web1": "running"})


def test_it_moves_over_four_tls_connections_that_the_kernel_paces(tmp_path, site):
    pair = Pair(tmp_path)
    service = Service([sys.executable, str(SERVICE), str(tmp_path / "b"), *files_of(site, "a")])
    begun = time.monotonic()
    failure, code, _, err = migrate_through(service, pair, site, LinkOptions(streams=4, bwlimit=256 << 10))
    service.close()
    assert (failure, code, err) == (None, 0, "")
    assert time.monotonic() - begun > 2  # 1 MiB, less what the sockets held
    assert pair.link_report.streams == 4
    assert (pair.a.table(), pair.b.table()) == ({}, {"web1": "running"})


def receive_command(site: Site, allowed: str) -> list[str]:
    code = "import sys\nfrom saverestore.cli import pymigrate\nsys.exit(pymigrate.main(sys.argv[1:]))"
    words = zip(("--cert", "--key", "--ca", "--allow"), files_of(site, allowed), strict=True)
    return [sys.executable, "-c", code, "receive", "--tls", *(word for pair in words for word in pair)]


def test_a_peer_that_is_not_on_the_list_is_refused_before_xen_is_opened(tmp_path, site):
    service = Service(receive_command(site, "c"))
    failure, code, _, err = migrate_through(service, Pair(tmp_path), site)
    service.close()
    assert isinstance(failure, NotTrusted)
    assert code == ExitCode.IO
    assert err == (
        f"pymigrate: 127.0.0.1 is not on the list {site.folder}/allowed: a, {site.fingerprints['a']}\n"
    )


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(ROOT / "saverestore" / "systemd" / name)
    return parser


def test_the_units_start_one_receiver_for_each_connection():
    listening, service = unit("pymigrate.socket"), unit("pymigrate@.service")["Service"]
    assert (listening["Socket"]["Accept"], listening["Socket"]["ListenStream"]) == ("yes", str(TLS_PORT))
    assert listening["Unit"]["ConditionPathExists"] == str(ALLOWED)
    assert 0 < int(listening["Socket"]["MaxConnections"]) < 100
    program, command, *options = shlex.split(service["ExecStart"])
    assert [program, command] == RECEIVE.split()
    given = receive_parser().parse_args(options)
    assert given.tls and given.listen is None
    assert service["StandardInput"] == "socket"
    assert service["StandardOutput"] == service["StandardError"] == "journal"


def test_what_a_receiver_leaves_running_for_the_domain_outlives_it():
    """systemd would kill the device model and the watcher with their unit."""
    assert unit("pymigrate@.service")["Service"]["KillMode"] == "process"


def receive_by_ssh(asked: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    """What sshd runs for a key with command="pymigrate receive OPTIONS"."""
    words = ["receive", *options]
    code = f"import sys\nfrom saverestore.cli import pymigrate\nsys.exit(pymigrate.main({words}))"
    return subprocess.run(
        [sys.executable, "-c", code],
        input=b"",
        capture_output=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), FORCED: asked},
        check=False,
    )


@pytest.mark.parametrize(
    "asked", ["", "sh", "pymigrate", "pymigrate web1 c", "pymigrate receive; sh", "scp -t /etc"]
)
def test_a_key_that_may_only_receive_runs_nothing_else(asked):
    done = receive_by_ssh(asked)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, b"")
    assert done.stderr == b"pymigrate: this key may run 'pymigrate receive' and nothing else\n"


def test_a_key_that_may_only_receive_can_receive():
    done = receive_by_ssh(RECEIVE)
    assert b"this key" not in done.stderr  # it came as far as this machine lets it


def test_what_ssh_starts_opens_a_port_where_ssh_arrived_and_within_its_range(monkeypatch):
    pytest.importorskip("cryptography")
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.7 40000 127.0.0.1 22")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for words, told in (
        ([], "127.0.0.1"),
        (["--data-listen", "127.0.0.3"], "127.0.0.3"),
        (["--data-listen", "0.0.0.0"], "127.0.0.1"),
    ):
        given = receive_parser().parse_args(["--ports", str(port), *words])
        first, other = pair_of_connections()
        offer = Offer(uuid.uuid4(), "{}", 1, links=1, certificate=OwnCertificate.made("a").text)
        with first, other, _door_of(given)(first, offer, lambda _connection: None, 5.0) as opened:
            assert (opened.port, opened.host) == (port, told)


def test_the_documented_line_of_authorized_keys_runs_what_the_source_asks_for():
    text = (ROOT / "docs" / "how-to" / "migrate.md").read_text()
    assert f'restrict,command="{RECEIVE}" ' in text
    assert f'restrict,command="{RECEIVE} --from-xl" ' in text


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "sh",
        "xl list",
        "xl migrate-receive; sh",
        "xl migrate-receive -r",
        "pymigrate receive",
        "scp -t /etc",
    ],
)
def test_a_key_for_stock_xl_runs_nothing_but_its_receiver(asked):
    done = receive_by_ssh(asked, "--from-xl")
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, b"")
    assert done.stderr == b"pymigrate: this key may run 'pymigrate receive --from-xl' and nothing else\n"


@pytest.mark.parametrize(
    "asked", ["pymigrate receive --from-xl", "xl -t migrate-receive -p", "xl migrate-receive"]
)
def test_a_key_for_stock_xl_takes_what_xl_migrate_asks_for(asked):
    done = receive_by_ssh(asked, "--from-xl")
    assert b"this key" not in done.stderr  # it came as far as this machine lets it


def test_a_key_that_may_only_receive_does_not_take_xl_for_pymigrate():
    assert b"this key may run" in receive_by_ssh("xl migrate-receive").stderr


@pytest.mark.parametrize(
    ("is_server", "code", "said"),
    [
        (False, ExitCode.IO, "the peer has closed the connection"),
        (True, ExitCode.USAGE, "standard input is not a connection"),
    ],
    ids=["has gone", "listens"],
)
def test_a_peer_that_has_gone_before_it_is_looked_at_is_called_that(site, is_server, code, said):
    """A port scan, for example: it is no mistake in a unit, as a socket that listens is (Accept=no)."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        gone = socket.create_connection(server.getsockname())
        with server.accept()[0] as arrived:
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            gone.close()
            done = subprocess.run(
                receive_command(site, "a"),
                stdin=server if is_server else arrived,
                capture_output=True,
                cwd=ROOT,
                check=False,
            )
    assert done.returncode == code
    assert said in done.stderr.decode()
