"""Who is at the other end of a TLS connection: the handshakes of both sides, and the list of who may connect.

TLS 1.3 lets the side that connects finish before the other has looked at its certificate. So where both are this
program (by ALPN) the side that listens says whether it admits the peer: one byte, before anything else.

A peer that is not admitted yet costs a descriptor and what OpenSSL takes for a handshake; nothing of it is read
beyond that.
"""

from __future__ import annotations

import hashlib
import logging
import re
import select
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from saverestore.errors import ErrorName, TransportError, UsageError, name_of_errno
from saverestore.interrupts import HEED_S
from saverestore.transport.hosts import without_interface
from saverestore.transport.tls import FOLDER, PROTOCOL, NotTrusted, Proof, TlsConnection, why
from saverestore.transport.tls_records import InKernel, InMemory, Records, kernel_can_encrypt

LOG = logging.getLogger(__name__)

ALLOWED = FOLDER / "allowed"

HANDSHAKE_S = 20.0
"""All of it, however many messages; a processor without AES takes a second or two."""

MOST_ARRIVALS = 8
"""Peers that may be in their handshake at once. For one more the oldest is turned away: who connects and says
nothing does not keep others out."""

MOST_BYTES_OF_A_LIST = 1 << 20

ADMITTED, NOT_ON_THE_LIST = b"\x01", b"\x00"

FINGERPRINT = re.compile(r"(?:sha256(?: fingerprint)?[:=])?((?:[0-9a-f]{2}:?){31}[0-9a-f]{2})", re.IGNORECASE)
ResultT = TypeVar("ResultT")

NAME = re.compile(r"[A-Za-z0-9*:][A-Za-z0-9._*:-]{0,252}")


# ---- who may connect


def fingerprint_of(der: bytes) -> str:
    """SHA-256 of a certificate, as lists have it: "sha256:…", 64 hexadecimal digits."""
    return f"sha256:{hashlib.sha256(der).hexdigest()}"


@dataclass(frozen=True)
class Allowed:
    """The certificates that may connect, by fingerprint or by a name in them (DNS or IP of subjectAltName)."""

    source: str
    fingerprints: frozenset[str]
    names: frozenset[str]

    def has(self, der: bytes, names: list[str]) -> bool:
        """Whether a certificate, which is of our CA and has these names, may connect."""
        return fingerprint_of(der) in self.fingerprints or bool(self.names & {name.lower() for name in names})


def read_allowed(path: Path) -> Allowed:
    """The list in this file: a name or fingerprint a line, "#" begins a comment.

    UsageError when it cannot be read, when a line is neither, and when nobody is on it.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES_OF_A_LIST + 1)
    except FileNotFoundError as error:
        raise UsageError(
            f"{path}: no such file; it lists the certificates that may connect: a name or fingerprint a line",
            name=ErrorName.FILE_NOT_FOUND,
        ) from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", name=name_of_errno(error.errno)) from error
    if len(raw) > MOST_BYTES_OF_A_LIST:
        raise UsageError(f"{path}: too long for a list of certificates", name=ErrorName.FILE_UNSUITABLE)
    return parse_allowed(raw.decode("utf-8", errors="replace"), str(path))


def parse_allowed(text: str, source: str) -> Allowed:
    """The list in this text, see `read_allowed`."""
    fingerprints, names = set(), set()
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        if found := FINGERPRINT.fullmatch(entry):
            fingerprints.add(f"sha256:{found[1].replace(':', '').lower()}")
        elif NAME.fullmatch(entry) and not entry.lower().startswith("sha256:"):
            names.add(entry.lower())
        else:
            raise UsageError(
                f"{source}: line {number} is neither a name nor a SHA-256 fingerprint",
                name=ErrorName.FILE_UNSUITABLE,
            )
    if not fingerprints and not names:
        raise UsageError(f"{source}: nobody is on this list", name=ErrorName.FILE_UNSUITABLE)
    return Allowed(source, frozenset(fingerprints), frozenset(names))


def names_of(cert: Any) -> list[str]:
    """The names in a certificate, as `SSLSocket.getpeercert` has it."""
    return [
        str(value) for kind, value in (cert or {}).get("subjectAltName", ()) if kind in ("DNS", "IP Address")
    ]


def _printable(text: str) -> str:
    return re.sub(r"[^\x21-\x7e]", "?", text)[:100]


# ---- the side that connects


def connected(
    made: socket.socket,
    host: str,
    peer: str,
    credentials: Proof,
    *,
    timeout_s: float,
    handshake_s: float = HANDSHAKE_S,
    is_given_up: Callable[[], bool] = lambda: False,
) -> TlsConnection:
    """Do the handshake over a socket that is connected to `host`, and wait until it admits this side.

    `handshake_s`: how long all of it may take. `is_given_up`: asked ten times a second; once it is true, it takes no
    longer. The socket is closed on any error: NotTrusted, UsageError for our own
    files, TransportError.
    """
    end = time.monotonic() + handshake_s
    records: Records | None = None
    try:
        context = credentials.for_connecting()
        records = (InKernel if InKernel.is_of_use and kernel_can_encrypt() else InMemory)(
            made, context, server_hostname=without_interface(host) if context.check_hostname else None
        )
        _waited_for(records, records.do_handshake, end, is_given_up)
        if records.tls.selected_alpn_protocol() == PROTOCOL:
            _check_admitted(records, peer, end, is_given_up)
        return TlsConnection(records, peer, timeout_s=timeout_s)
    except BaseException as error:
        (made if records is None else records.made).close()
        if isinstance(error, TimeoutError):
            raise NotTrusted(
                f"{peer} did not complete the TLS handshake within {handshake_s:.0f} s"
            ) from error
        if isinstance(error, OSError):
            raise NotTrusted(f"{peer} {why(error, host=host, ca=credentials.ca)}") from error
        raise


def _check_admitted(records: Records, peer: str, end: float, is_given_up: Callable[[], bool]) -> None:
    answer = bytearray(1)
    with memoryview(answer) as view:
        came = _waited_for(records, partial(records.receive_into, view), end, is_given_up)
    if came and answer == NOT_ON_THE_LIST:
        raise NotTrusted(f"{peer} does not accept this host's certificate: it is not on the list there")
    if not came or answer != ADMITTED:
        raise NotTrusted(f"{peer} closed the connection without admitting this host")


def _waited_for(
    records: Records, work: Callable[[], ResultT], end: float, is_given_up: Callable[[], bool]
) -> ResultT:
    """What `work` returns, once it need not wait any more. TimeoutError at `end`, or when that is given up."""
    while True:
        try:
            return work()
        except (ssl.SSLWantReadError, BlockingIOError):
            event = select.POLLIN
        except ssl.SSLWantWriteError:
            event = select.POLLOUT
        if time.monotonic() > end or is_given_up():
            raise TimeoutError
        poll = select.poll()
        poll.register(records.made, event)
        poll.poll(HEED_S * 1000)


# ---- the side that listens


class Arrival:
    """A peer that has connected, until it is known who it is. `source`: its address, for messages."""

    def __init__(self, made: socket.socket, source: str, credentials: Proof, context: ssl.SSLContext) -> None:
        """Take a connected socket, which is closed by `close`, or belongs to what `admitted` returns."""
        self.source = source
        self.ends_at = time.monotonic() + HANDSHAKE_S
        self.waits_for = select.POLLIN
        self._ca = credentials.ca
        self._records = InMemory(made, context, server_side=True)

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._records.made.fileno()

    def close(self) -> None:
        """Turn it away. A second time does nothing."""
        self._records.made.close()

    def admitted(self, allowed: Allowed, *, timeout_s: float) -> TlsConnection | None:
        """Take what has come of the handshake: the connection once it is admitted, None while more has to come.

        NotTrusted when it is not to be: it has been told, as far as that can be done.
        """
        try:
            self._records.do_handshake()
        except ssl.SSLWantReadError:
            self.waits_for = select.POLLIN
        except ssl.SSLWantWriteError:
            self.waits_for = select.POLLOUT
        except OSError as error:
            raise NotTrusted(f"{self.source} {why(error, host='', ca=self._ca)}") from error
        else:
            return self._looked_up(allowed, timeout_s)
        if time.monotonic() > self.ends_at:
            raise NotTrusted(f"{self.source} did not complete the TLS handshake within {HANDSHAKE_S:.0f} s")
        return None

    def _looked_up(self, allowed: Allowed, timeout_s: float) -> TlsConnection:
        der = self._records.tls.getpeercert(binary_form=True) or b""
        names = names_of(self._records.tls.getpeercert())
        may = allowed.has(der, names)
        try:
            if self._records.tls.selected_alpn_protocol() == PROTOCOL:
                self._records.send([ADMITTED if may else NOT_ON_THE_LIST])
        except OSError as error:
            raise NotTrusted(f"{self.source} closed the connection during the TLS handshake") from error
        who = _printable(names[0] if names else fingerprint_of(der))
        if not may:
            raise NotTrusted(
                f"{self.source} is not on the list {allowed.source}: {who}, {fingerprint_of(der)}"
            )
        return TlsConnection(self._records, f"{who} ({self.source})", timeout_s=timeout_s)


def first_admitted(
    server: socket.socket,
    credentials: Proof,
    allowed: Allowed,
    *,
    timeout_s: float,
    is_closing: Callable[[], bool] = lambda: False,
) -> TlsConnection | None:
    """Wait at a listening socket until a peer is admitted; who is not is logged and turned away.

    Those that are still in their handshake then are turned away, too. None when it `is_closing`, which is asked ten
    times a second. TransportError when nobody can be accepted.
    """
    context = credentials.for_listening()
    server.setblocking(False)
    arrivals: dict[int, Arrival] = {}
    try:
        while not is_closing():
            for arrival in _ready(server, arrivals):
                try:
                    if (connection := arrival.admitted(allowed, timeout_s=timeout_s)) is not None:
                        del arrivals[arrival.fileno()]
                        return connection
                except NotTrusted as error:
                    LOG.warning("refused: %s", error)
                    del arrivals[arrival.fileno()]
                    arrival.close()
            if (fresh := _arrived(server, credentials, context)) is not None:
                if len(arrivals) >= MOST_ARRIVALS:
                    oldest = arrivals.pop(next(iter(arrivals)))
                    oldest.close()
                    LOG.warning(
                        "refused: %s did not complete the TLS handshake before too many others came",
                        oldest.source,
                    )
                arrivals[fresh.fileno()] = fresh
        return None
    finally:
        for left in arrivals.values():
            left.close()


def _ready(server: socket.socket, arrivals: dict[int, Arrival]) -> list[Arrival]:
    """Wait a short time at most: the arrivals of which something has come, or whose time is over."""
    poll = select.poll()
    poll.register(server, select.POLLIN)
    for arrival in arrivals.values():
        poll.register(arrival, arrival.waits_for)
    found = {fd for fd, _ in poll.poll(HEED_S * 1000)}
    now = time.monotonic()
    return [one for fd, one in arrivals.items() if fd in found or now > one.ends_at]


def _arrived(server: socket.socket, credentials: Proof, context: ssl.SSLContext) -> Arrival | None:
    try:
        made, whence = server.accept()
    except (BlockingIOError, ConnectionError):  # nobody, or gone again
        return None
    except OSError as error:
        raise TransportError(
            f"cannot accept a connection: {error.strerror}", name=name_of_errno(error.errno)
        ) from error
    return _arrival(made, str(whence[0]) if whence else "a peer", credentials, context)


def _arrival(made: socket.socket, source: str, credentials: Proof, context: ssl.SSLContext) -> Arrival | None:
    try:
        return Arrival(made, source, credentials, context)
    except OSError:  # gone again
        made.close()
        return None


def admitted(
    made: socket.socket, source: str, credentials: Proof, allowed: Allowed, *, timeout_s: float
) -> TlsConnection:
    """The handshake of one peer that has connected. The socket is closed on any error: NotTrusted, UsageError."""
    context = credentials.for_listening()
    arrival = _arrival(made, source, credentials, context)
    if arrival is None:
        raise NotTrusted(f"{source} has closed the connection")
    try:
        while True:
            if (connection := arrival.admitted(allowed, timeout_s=timeout_s)) is not None:
                return connection
            poll = select.poll()
            poll.register(arrival, arrival.waits_for)
            poll.poll(HEED_S * 1000)
    except BaseException:
        arrival.close()
        raise
