"""A CA and hosts with certificates of it, as `pymigrate make-ca` and `make-cert` make them; connections over TLS."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from saverestore.transport import tls_peers
from saverestore.transport.tls import Credentials, TlsConnection
from saverestore.transport.tls_peers import parse_allowed

LONG_S = 20.0


class Site:
    """A CA in a folder. `host` makes, once, the files of a host."""

    def __init__(self, folder: Path) -> None:
        pytest.importorskip("cryptography")
        from saverestore.transport.certificates import make_ca

        self.folder = folder
        self.fingerprints: dict[str, str] = {}
        make_ca(folder)

    def host(self, *names: str, days: int = 10) -> Credentials:
        """The files of a host; negative `days`: it expired so long ago."""
        from saverestore.transport.certificates import make_cert

        ours = self.folder / names[0]
        if not ours.exists():
            _, self.fingerprints[names[0]] = make_cert(self.folder, names, days=days)
        return Credentials(ours / "cert.pem", ours / "key.pem", ours / "ca.pem")


def over_tls(site: Site) -> tuple[TlsConnection, TlsConnection]:
    """Both ends of a connection: the side that has connected, which calls the other "host2", and that other."""
    allowed = parse_allowed("host1", "list")
    there = site.host("host2", "127.0.0.1")
    accepted: list[TlsConnection] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            accepted.append(tls_peers.first_admitted(server, there, allowed, timeout_s=LONG_S))

        thread = threading.Thread(target=serve)
        thread.start()
        made = socket.create_connection(server.getsockname())
        one = tls_peers.connected(made, "127.0.0.1", "host2", site.host("host1"), timeout_s=LONG_S)
        thread.join()
    accepted[0].peer = accepted[0]._incoming.name = accepted[0]._outgoing.name = "host1"
    return one, accepted[0]
