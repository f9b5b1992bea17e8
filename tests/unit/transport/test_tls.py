"""TLS where both sides have certificates: who is let in, who is not and why, and that nobody else costs much."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time

import pytest
from tls_sites import LONG_S, Site, over_tls

from saverestore.errors import ErrorName, SaveRestoreError, UsageError
from saverestore.transport import tls_peers
from saverestore.transport.connection import BrokenPeer
from saverestore.transport.tls import Credentials, NotTrusted
from saverestore.transport.tls_peers import Allowed, first_admitted, parse_allowed, read_allowed


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Another CA."""
    return Site(tmp_path_factory.mktemp("elsewhere"))


HOST1 = parse_allowed("host1", "list")


class Listener:
    """A receiver on a thread: it serves the first peer that is admitted. `refused`: why others were not."""

    def __init__(self, credentials: Credentials, allowed: Allowed, caplog: pytest.LogCaptureFixture) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._caplog = caplog
        self.admitted: list[str] = []
        self._thread = threading.Thread(target=self._serve, args=(credentials, allowed), daemon=True)
        self._thread.start()

    def _serve(self, credentials: Credentials, allowed: Allowed) -> None:
        with (
            contextlib.suppress(OSError, ValueError, SaveRestoreError),
            first_admitted(self._server, credentials, allowed, timeout_s=LONG_S) as connection,
        ):
            self.admitted.append(connection.peer)
            connection.outgoing.write(b"hello")

    @property
    def refused(self) -> list[str]:
        return [record.getMessage() for record in self._caplog.records]

    def connect(
        self, credentials: Credentials, host: str = "127.0.0.1", *, handshake_s: float = LONG_S
    ) -> bytes:
        """What it says to a peer with these files, which calls it `host`."""
        made = socket.create_connection(("127.0.0.1", self.port))
        with tls_peers.connected(
            made, host, f"tls://{host}", credentials, timeout_s=LONG_S, handshake_s=handshake_s
        ) as connection:
            return connection.incoming.read(5)

    def wait_for_refusal(self) -> str:
        end = time.monotonic() + LONG_S
        while not self.refused:
            assert time.monotonic() < end
            time.sleep(0.01)
        return self.refused[0]

    def close(self) -> None:
        self._server.close()
        self._thread.join(LONG_S)


@pytest.fixture
def listening(site, caplog):
    """A function that makes a listener: host2 of the site, which admits host1, unless others are given."""
    made: list[Listener] = []

    def make(credentials: Credentials | None = None, allowed: Allowed = HOST1) -> Listener:
        made.append(Listener(credentials or site.host("host2", "127.0.0.1"), allowed, caplog))
        return made[-1]

    yield make
    for one in made:
        one.close()


# ---- who is let in


def test_a_peer_on_the_list_is_let_in_and_named_by_its_certificate(site, listening):
    listener = listening()
    assert listener.connect(site.host("host1")) == b"hello"
    listener.close()
    assert listener.admitted == ["host1 (127.0.0.1)"]


def test_a_peer_is_let_in_by_the_fingerprint_of_its_certificate(site, listening):
    credentials = site.host("by-print")
    listener = listening(allowed=parse_allowed(site.fingerprints["by-print"], "list"))
    assert listener.connect(credentials) == b"hello"


def test_those_who_are_refused_do_not_keep_out_who_comes_next(site, elsewhere, listening):
    listener = listening()
    for credentials in (site.host("host3"), elsewhere.host("host1")):
        with pytest.raises(NotTrusted):
            listener.connect(credentials)
    assert listener.connect(site.host("host1")) == b"hello"
    assert len(listener.refused) == 2


@pytest.mark.parametrize("more", [-1, 0, 20])
def test_peers_that_connect_and_say_nothing_do_not_keep_out_who_comes_next(site, listening, more):
    listener = listening()
    with contextlib.ExitStack() as stack:
        for _ in range(tls_peers.MOST_ARRIVALS + more):
            stack.enter_context(socket.create_connection(("127.0.0.1", listener.port)))
        assert listener.connect(site.host("host1"), handshake_s=8) == b"hello"


def test_the_oldest_of_too_many_peers_is_turned_away_and_the_others_are_not(site, listening):
    listener = listening()
    with contextlib.ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", listener.port)))
            for _ in range(tls_peers.MOST_ARRIVALS + 1)
        ]
        silent[0].settimeout(LONG_S)
        assert silent[0].recv(1) == b""
        assert (
            "127.0.0.1 did not complete the TLS handshake before too many others"
            in listener.wait_for_refusal()
        )
        assert not select.select(silent[1:], [], [], 0.2)[0]


# ---- who is not


def test_a_peer_that_is_not_on_the_list_is_refused_with_a_reason_on_both_sides(site, listening):
    listener = listening()
    with pytest.raises(NotTrusted) as caught:
        listener.connect(site.host("host3"))
    assert str(caught.value) == (
        "tls://127.0.0.1 does not accept this host's certificate: it is not on the list there"
    )
    assert caught.value.name is ErrorName.PEER_NOT_TRUSTED
    assert listener.wait_for_refusal() == (
        f"refused: 127.0.0.1 is not on the list list: host3, {site.fingerprints['host3']}"
    )


@pytest.mark.parametrize(
    ("whose", "here", "there"),
    [
        (
            "another CA",
            "does not accept this host's certificate: it was not issued by the CA that is trusted there",
            "is not trusted: its certificate was not issued by the CA in",
        ),
        (
            "expired",
            "does not accept this host's certificate: it has expired",
            "is not trusted: its certificate has expired, by this host's clock",
        ),
    ],
)
def test_a_peer_whose_certificate_is_not_valid_is_refused_with_a_reason_on_both_sides(
    site, elsewhere, listening, whose, here, there
):
    listener = listening()
    if whose == "expired":
        credentials = site.host("old", days=-3)
    else:
        foreign = elsewhere.host("host1")
        credentials = Credentials(foreign.cert, foreign.key, site.folder / "ca.pem")
    with pytest.raises(NotTrusted) as caught:
        listener.connect(credentials)
    assert str(caught.value) == f"tls://127.0.0.1 {here}"
    assert there in listener.wait_for_refusal()


@pytest.mark.parametrize(
    ("whose", "why"),
    [
        ("another CA", r"its certificate was not issued by the CA in .*/ca\.pem"),
        ("expired", "its certificate has expired, by this host's clock"),
        ("another name", "its certificate is not for the name 127.0.0.1"),
    ],
)
def test_a_receiver_whose_certificate_is_not_valid_is_not_trusted(site, elsewhere, listening, whose, why):
    theirs = {
        "another CA": lambda: elsewhere.host("host2", "127.0.0.1"),
        "expired": lambda: site.host("old-server", "127.0.0.1", days=-3),
        "another name": lambda: site.host("host4"),
    }[whose]()
    listener = listening(theirs)
    with pytest.raises(NotTrusted, match=f"tls://127.0.0.1 is not trusted: {why}"):
        listener.connect(site.host("host1"))


def test_a_receiver_of_another_name_than_the_one_asked_for_is_not_trusted(site, listening):
    with pytest.raises(NotTrusted, match="not for the name host9"):
        listening().connect(site.host("host1"), "host9")


def test_a_peer_without_a_certificate_is_refused(site, listening):
    listener = listening()
    context = ssl.create_default_context(cafile=site.host("host1").ca)
    with (
        socket.create_connection(("127.0.0.1", listener.port)) as made,
        context.wrap_socket(made, server_hostname="127.0.0.1") as secured,
        pytest.raises(ssl.SSLError),
    ):
        secured.recv(1)
    assert listener.wait_for_refusal() == "refused: 127.0.0.1 has sent no certificate"


def test_a_peer_that_speaks_an_older_tls_is_refused(site, listening):
    listener = listening()
    context = site.host("host1").for_connecting()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", listener.port)) as made, pytest.raises(ssl.SSLError):
        context.wrap_socket(made, server_hostname="127.0.0.1")
    assert listener.wait_for_refusal() == "refused: 127.0.0.1 does not speak TLS 1.3"


@pytest.mark.parametrize(
    "said", [b"PM\x00\x01\x00\x00\x00\x02{}", b"GET / HTTP/1.0\r\n\r\n", bytes(range(100))]
)
def test_a_peer_that_speaks_no_tls_is_refused(site, listening, said):
    listener = listening()
    with socket.create_connection(("127.0.0.1", listener.port)) as made:
        made.sendall(said)
        assert "127.0.0.1 " in listener.wait_for_refusal()
        with contextlib.suppress(ConnectionResetError):
            assert len(made.recv(1 << 16)) < 100  # an alert, and the end
    assert listener.connect(site.host("host1")) == b"hello"


def test_garbage_without_an_end_is_not_read_to_its_end(site, listening):
    listener = listening()
    sent = 0
    with socket.create_connection(("127.0.0.1", listener.port)) as made, contextlib.suppress(OSError):
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        made.sendall(b"\x16\x03\x01\xff\xff")  # a record longer than any
        while sent < 64 << 20:
            sent += made.send(bytes(1 << 16))
    assert sent < 64 << 20
    assert listener.refused


def test_a_receiver_that_speaks_no_tls_is_named_as_such(site):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            made, _ = server.accept()
            with made:
                made.sendall(b"PM\x00\x01\x00\x00\x00\x02{}")
                made.recv(1 << 16)

        thread = threading.Thread(target=serve)
        thread.start()
        made = socket.create_connection(server.getsockname())
        with pytest.raises(NotTrusted, match="tls://b does not speak TLS on this connection"):
            tls_peers.connected(made, "b", "tls://b", site.host("host1"), timeout_s=LONG_S)
        thread.join()


def test_a_handshake_has_a_time_limit_on_both_sides(site, listening, monkeypatch):
    monkeypatch.setattr(tls_peers, "HANDSHAKE_S", 0.3)
    listener = listening()
    with socket.create_connection(("127.0.0.1", listener.port)) as made:
        assert made.recv(1) == b""  # turned away
    assert listener.refused == ["refused: 127.0.0.1 did not complete the TLS handshake within 0 s"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        made = socket.create_connection(silent.getsockname())
        with pytest.raises(NotTrusted, match="did not complete the TLS handshake"):
            tls_peers.connected(made, "b", "tls://b", site.host("host1"), timeout_s=LONG_S)


def test_a_connection_that_is_cut_is_not_taken_for_one_that_is_closed(site):
    one, other = over_tls(site)
    with one, other:
        one.outgoing.write(b"half of it")
        socket.socket.shutdown(one._socket, socket.SHUT_RDWR)
        assert other.incoming.read(10) == b"half of it"
        with pytest.raises(BrokenPeer, match="host1 is gone, 10 bytes had come: the connection was cut"):
            other.incoming.at_end()


def test_what_came_before_the_half_close_is_not_lost(site):
    one, other = over_tls(site)
    with one, other:
        other.outgoing.write(b"early")
        while not select.select([one.fileno()], [], [], LONG_S)[0]:
            pass
        one.outgoing.close()
        assert other.incoming.at_end()
        other.outgoing.write(b"late")
        other.outgoing.close()
        assert one.incoming.read(9) == b"earlylate"
        assert one.incoming.at_end()


def test_what_comes_unencrypted_after_the_end_is_not_read(site):
    one, other = over_tls(site)
    with one, other:
        one.outgoing.close()
        assert other.incoming.at_end()
        other.outgoing.close()
        assert other.incoming.at_end()
        assert other.incoming.read_some(5) == b""


# ---- our own files


def test_missing_files_are_named_and_how_to_make_them(tmp_path):
    with pytest.raises(UsageError, match=r"/nothing/cert\.pem: no such file; TLS needs") as caught:
        Credentials(
            *(tmp_path / "nothing" / name for name in ("cert.pem", "key.pem", "ca.pem"))
        ).for_connecting()
    assert caught.value.name is ErrorName.FILE_NOT_FOUND
    assert caught.value.remedies


def test_a_key_that_everybody_may_read_is_refused(site, tmp_path):
    ours = site.host("host1")
    key = tmp_path / "key.pem"
    key.write_bytes(ours.key.read_bytes())
    key.chmod(0o644)
    with pytest.raises(UsageError, match="every user can read or write this key"):
        Credentials(ours.cert, key, ours.ca).for_listening()


def test_files_that_do_not_belong_together_or_are_none_are_refused(site, tmp_path):
    one, other = site.host("host1"), site.host("host3")
    with pytest.raises(UsageError, match="do not belong together"):
        Credentials(one.cert, other.key, one.ca).for_connecting()
    rubbish = tmp_path / "rubbish"
    rubbish.write_text("rubbish")
    rubbish.chmod(0o600)
    with pytest.raises(UsageError, match="are no certificate and its key"):
        Credentials(rubbish, one.key, one.ca).for_connecting()
    with pytest.raises(UsageError, match="not a CA's certificate"):
        Credentials(one.cert, one.key, rubbish).for_connecting()


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(site, tmp_path):
    from cryptography.hazmat.primitives import serialization

    ours = site.host("host1")
    key = serialization.load_pem_private_key(ours.key.read_bytes(), None)
    locked = tmp_path / "key.pem"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    locked.chmod(0o600)
    with pytest.raises(UsageError, match="the key has a passphrase"):
        Credentials(ours.cert, locked, ours.ca).for_connecting()


# ---- lists


def test_a_list_has_names_and_fingerprints_in_any_usual_spelling():
    digits = "ab" * 32
    colons = ":".join(["AB"] * 32)
    found = parse_allowed(f"# hosts\nHost1  # the first\n\nsha256:{digits}\n10.0.0.1\n", "list")
    assert (found.names, found.fingerprints) == ({"host1", "10.0.0.1"}, {f"sha256:{digits}"})
    for spelt in (digits, colons, f"sha256 Fingerprint={colons}", f"SHA256:{digits}"):
        assert parse_allowed(spelt, "list").fingerprints == {f"sha256:{digits}"}


@pytest.mark.parametrize("text", ["two words", "sha256:abcd", "host1\n../x\n"])
def test_a_line_that_is_neither_is_refused_with_its_number(text):
    with pytest.raises(UsageError, match=r"list: line [12] is neither a name nor a SHA-256 fingerprint"):
        parse_allowed(text, "list")


def test_a_list_that_is_missing_or_empty_lets_nobody_in(tmp_path):
    with pytest.raises(UsageError, match="no such file; it lists the certificates that may connect"):
        read_allowed(tmp_path / "allowed")
    (tmp_path / "allowed").write_text("# nobody\n")
    with pytest.raises(UsageError, match="nobody is on this list"):
        read_allowed(tmp_path / "allowed")


def test_names_are_compared_whole_and_without_regard_to_case():
    allowed = parse_allowed("host1", "list")
    assert allowed.has(b"", ["HOST1"])
    assert not allowed.has(b"", ["host10", "xhost1", "host1.example", "*"])
