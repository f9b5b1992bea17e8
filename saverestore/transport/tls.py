"""TLS 1.3 over a socket, where both sides have a certificate: contexts, what went wrong in words, the connection.

The handshakes are in `tls_peers`.
"""

from __future__ import annotations

import contextlib
import os
import select
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from saverestore.errors import Advice, ErrorName, Remedy, TransportError, UsageError, name_of_errno
from saverestore.interrupts import shield
from saverestore.transport.connection import BrokenPeer, PeerTimeout, SocketConnection
from saverestore.transport.tls_records import RECORD_BYTES, Records

FOLDER = Path("/etc/xen/pymigrate")

PROTOCOL = "pysave"
"""By ALPN: this program is at the other end. Then the side that listens says whether it admits the peer."""

MOST_EARLY_BYTES = 1 << 20

MOST_AT_ONCE = 1 << 30
"""OpenSSL counts with an int."""

READABLE_BY_ALL = 0o007


class NotTrusted(TransportError):
    """One of both sides does not accept the other: a certificate, or what it speaks instead of TLS."""

    name = ErrorName.PEER_NOT_TRUSTED


class Proof(Protocol):
    """What proves who this host is, and says whom it accepts. Contexts are for one connection or more."""

    @property
    def ca(self) -> Path | None:
        """The CA that others' certificates are to be of; None: one certificate alone is accepted."""

    def for_connecting(self) -> ssl.SSLContext:
        """For the side that connects. UsageError when a file is missing or unsuitable."""

    def for_listening(self) -> ssl.SSLContext:
        """For the side that listens: it asks for a certificate. Errors as `for_connecting`."""


def _connecting() -> ssl.SSLContext:
    return _common(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


def _listening() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # nothing is resumed
    return _common(context)


def _common(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([PROTOCOL])
    return context


@dataclass(frozen=True)
class Pinned:
    """A `Proof` in memory: a certificate made for one purpose, and the only one that is accepted of the peer.

    `cert`, `peer`: DER, each signed by its own key, and no CA's. `key`: PEM, of `cert`. Names and addresses in them
    do not count.
    """

    cert: bytes
    key: bytes = field(repr=False)
    peer: bytes
    ca = None

    def for_connecting(self) -> ssl.SSLContext:
        """See Proof. NotTrusted when what the peer has sent as its certificate is none."""
        context = _connecting()
        context.check_hostname = False
        return self._loaded(context)

    def for_listening(self) -> ssl.SSLContext:
        """See Proof. Errors as `for_connecting`."""
        return self._loaded(_listening())

    def _loaded(self, context: ssl.SSLContext) -> ssl.SSLContext:
        with _in_memory(ssl.DER_cert_to_PEM_cert(self.cert).encode() + self.key) as path:
            context.load_cert_chain(path)
        try:
            context.load_verify_locations(cadata=self.peer)
        except (ssl.SSLError, ValueError) as error:
            raise NotTrusted("what the other host has sent as its certificate is none") from error
        return context


@contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """A name for these bytes, as OpenSSL takes keys by name only: of a file that is in no file system."""
    fd = os.memfd_create("pysave", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Credentials:
    """A `Proof` in files, PEM each: this host's certificate and key, and the CA of the others' certificates."""

    cert: Path = FOLDER / "cert.pem"
    key: Path = FOLDER / "key.pem"
    ca: Path = FOLDER / "ca.pem"

    def for_connecting(self) -> ssl.SSLContext:
        """See Proof."""
        return self._loaded(_connecting())

    def for_listening(self) -> ssl.SSLContext:
        """See Proof."""
        return self._loaded(_listening())

    def _loaded(self, context: ssl.SSLContext) -> ssl.SSLContext:
        for path in (self.cert, self.key, self.ca):
            _check_readable(path)
        if self.key.stat().st_mode & READABLE_BY_ALL:
            raise UsageError(
                f"{self.key}: every user can read or write this key", name=ErrorName.FILE_UNSUITABLE
            )

        def no_passphrase() -> str:
            raise UsageError(f"{self.key}: the key has a passphrase", name=ErrorName.FILE_UNSUITABLE)

        try:
            context.load_cert_chain(self.cert, self.key, no_passphrase)
        except ssl.SSLError as error:
            what = "are no certificate and its key"
            if error.reason == "KEY_VALUES_MISMATCH":
                what = "do not belong together"
            raise UsageError(f"{self.cert}, {self.key}: {what}", name=ErrorName.FILE_UNSUITABLE) from error
        try:
            context.load_verify_locations(self.ca)
        except ssl.SSLError as error:
            raise UsageError(f"{self.ca}: not a CA's certificate", name=ErrorName.FILE_UNSUITABLE) from error
        return context


def _check_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except FileNotFoundError as error:
        raise UsageError(
            f"{path}: no such file; TLS needs this host's certificate and key, and the CA's certificate",
            name=ErrorName.FILE_NOT_FOUND,
            remedies=[Advice(Remedy.MAKE_CERTIFICATES)],
        ) from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", name=name_of_errno(error.errno)) from error


# ---- what went wrong

EXPIRED, NOT_YET_VALID = 10, 9
OTHER_ISSUER = (2, 7, 18, 19, 20, 21)
OTHER_PURPOSE = 26
OTHER_NAME = (62, 64)
"""X509_V_ERR_… of OpenSSL's x509_vfy.h."""

ALERTS = {
    "TLSV1_ALERT_UNKNOWN_CA": "it was not issued by the CA that is trusted there",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it has expired",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it is damaged, or not valid yet",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it is for another purpose",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "no reason was given",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it was revoked",
    "TLSV1_ALERT_ACCESS_DENIED": "it is not on the list there",
    "TLSV1_ALERT_DECRYPT_ERROR": "its signature is wrong",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "none was sent",
}
"""Why the peer does not accept this side's certificate, by OpenSSL's name for what it says."""

NOT_AGREED_ON = "it is not the one that was agreed on"
OTHER_CERT = {"TLSV1_ALERT_UNKNOWN_CA", "SSLV3_ALERT_BAD_CERTIFICATE"}

NO_TLS = {
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "HTTPS_PROXY_REQUEST",
    "RECORD_LAYER_FAILURE",
    "PACKET_LENGTH_TOO_LONG",
}
OTHER_TLS = {
    "TLSV1_ALERT_PROTOCOL_VERSION",
    "UNSUPPORTED_PROTOCOL",
    "NO_SHARED_CIPHER",
    "SSLV3_ALERT_HANDSHAKE_FAILURE",
}


def why(error: OSError, *, host: str, ca: Path | None) -> str:
    """What has failed in a handshake, in words that follow the peer's name. `host`: as it was to be named, or ""."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"is not trusted: {_wrong_with(error, host, ca)}"
    if isinstance(error, ssl.SSLEOFError | ConnectionError | ssl.SSLZeroReturnError):
        return "closed the connection during the TLS handshake"
    reason = str(getattr(error, "reason", "") or "")
    if reason in ALERTS:
        what = NOT_AGREED_ON if ca is None and reason in OTHER_CERT else ALERTS[reason]
        return f"does not accept this host's certificate: {what}"
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "has sent no certificate"
    if reason in NO_TLS:
        return "does not speak TLS on this connection"
    if reason in OTHER_TLS:
        return "does not speak TLS 1.3"
    return f"failed in the TLS handshake: {reason or error.strerror or error}"


def _wrong_with(error: ssl.SSLCertVerificationError, host: str, ca: Path | None) -> str:
    code = error.verify_code
    if ca is None:
        return "its certificate is not the one that was agreed on"
    if code == EXPIRED:
        return "its certificate has expired, by this host's clock"
    if code == NOT_YET_VALID:
        return "its certificate is not valid yet, by this host's clock"
    if code in OTHER_ISSUER:
        return f"its certificate was not issued by the CA in {ca}"
    if code in OTHER_NAME:
        return f"its certificate is not for the name {host}"
    if code == OTHER_PURPOSE:
        return "its certificate is for another purpose"
    return f"its certificate is not valid: {error.verify_message}"


# ---- the connection


class TlsConnection(SocketConnection):
    """A `Connection` over a socket whose TLS handshake is done.

    What a write has not finished, because of `PeerTimeout` or `Interrupted`, cannot be followed by another write: the
    peer finds a broken connection, not an end. What the peer sends at the very moment of the half close may be lost:
    reading it then raises BrokenPeer.
    """

    is_plain = False

    def __init__(self, records: Records, peer: str, *, timeout_s: float) -> None:
        """Take what encrypts, and its socket; see SocketConnection. The handshake is done."""
        super().__init__(records.made, peer, timeout_s=timeout_s)
        self._records = records
        self._using = threading.Lock()  # OpenSSL: one thread at a time for one connection
        self._waits_for: dict[int, int] = {}
        self._is_cut = False
        self._is_given_up = False  # what was encrypted is not offered again
        self._has_unwrapped = False
        self._early = b""  # read before the half close, for who reads later
        self.cipher = (records.tls.cipher() or ("",))[0]
        self.kernel_encrypts = records.kernel_encrypts

    @property
    def ahead_bytes(self) -> int:
        """See _Both."""
        return self._records.ahead_bytes

    def receive(self, fd: int, views: list[Any]) -> int:
        """What has come, into the first of them."""
        if self._early:
            return self._take_early(views[0])
        if self._has_unwrapped:
            return 0
        try:
            with memoryview(views[0]) as whole, whole.cast("B") as flat, flat[:MOST_AT_ONCE] as part:
                return self._call(select.POLLIN, partial(self._records.receive_into, part))
        except ssl.SSLZeroReturnError:
            return 0
        except ssl.SSLError as error:
            raise self._broken(error, f"{self.incoming.offset} bytes had come") from error

    def send(self, fd: int, buffers: list[Any]) -> int:
        """As much as is encrypted at once. The same must be sent again when it was not taken."""
        if self._is_given_up:
            raise BrokenPeer(
                self.peer, "cannot be written to any more: what was written before was cut short"
            )
        self._is_cut = True
        try:
            sent = self._call(select.POLLOUT, partial(self._records.send, buffers))
        except ssl.SSLError as error:
            raise self._broken(error, f"{self.outgoing.offset} bytes had been sent") from error
        self._is_cut = False
        return sent

    def _call(self, event: int, work: Any) -> int:
        """`work`, which reads or writes. BlockingIOError when it has to wait, for what is noted."""
        with self._using:
            try:
                done: int = work()
            except ssl.SSLWantReadError as error:
                self._waits_for[event] = select.POLLIN
                raise BlockingIOError from error
            except ssl.SSLWantWriteError as error:
                self._waits_for[event] = select.POLLOUT
                raise BlockingIOError from error
            return done

    def wait(self, fd: int, event: int, what: str) -> None:
        """See SocketConnection. TLS may have to write before it can read."""
        super().wait(fd, self._waits_for.get(event, event), what)

    def has_given_up_writing(self) -> None:
        """See _Both. What was encrypted and has not gone is not offered again."""
        self._is_given_up |= self._is_cut

    def _broken(self, error: ssl.SSLError, moved: str) -> BrokenPeer:
        reason = error.reason or ""
        if isinstance(error, ssl.SSLEOFError):
            return BrokenPeer(self.peer, f"is gone, {moved}: the connection was cut, not closed")
        if reason in ALERTS:
            return BrokenPeer(self.peer, f"does not accept this host's certificate: {ALERTS[reason]}")
        return BrokenPeer(self.peer, f"has broken the TLS connection, {moved}: {reason or error.strerror}")

    def _read_early(self) -> None:
        """What has come by now, within bounds: OpenSSL throws it away when it says that we close."""
        part = memoryview(bytearray(RECORD_BYTES))
        with contextlib.suppress(ssl.SSLError, BlockingIOError):
            while len(self._early) < MOST_EARLY_BYTES and (came := self._records.receive_into(part)):
                self._early += part[:came]

    def _take_early(self, view: Any) -> int:
        with memoryview(view) as whole, whole.cast("B") as flat:
            taken = min(len(flat), len(self._early))
            flat[:taken] = self._early[:taken]
        self._early = self._early[taken:]
        return taken

    def end_outgoing(self) -> None:
        """See SocketConnection. The peer finds an end that cannot be forged, unless a write was cut short."""
        with shield():  # what has come is not lost
            if not self._is_cut:
                with contextlib.suppress(OSError, ValueError, PeerTimeout):
                    self._say_end()
            super().end_outgoing()

    def _say_end(self) -> None:
        """Where the kernel takes nothing now, it is waited for, unless something has failed already."""
        is_failing = sys.exc_info()[0] is not None
        with self._using:
            self._read_early()
        while True:
            try:
                with self._using:
                    self._records.end()  # an error when the peer has not said so, too
                    self._has_unwrapped = True  # what the socket reads from now on would be plain
                return
            except (BlockingIOError, ssl.SSLWantWriteError):
                if is_failing:
                    return
            super().wait(self.fileno(), select.POLLOUT, "took nothing")
