"""What encrypts and decrypts: TLS over a non-blocking socket, in memory or, for what is sent, in the kernel.

    InMemory   buffers ─► OpenSSL ─► memory ─► socket     256 KiB for a system call
    InKernel   buffers ─► socket, whose kernel encrypts (kTLS)

OpenSSL on a socket writes each record of 16 KiB by a system call of its own, and reads it by two. On a pair of hosts
that took two and a half times the processor time of `InMemory`.

Both raise what `ssl` raises, OSError of the socket, and BlockingIOError where the caller has to wait; for a handshake
SSLWantReadError and SSLWantWriteError. One thread at a time may use an object.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import ssl
from typing import Any, Protocol

from saverestore.transport.fd import IOV_MAX, nbytes_of

RECORD_BYTES = 1 << 14
"""What TLS encrypts at once (RFC 8446, 5.1)."""

AT_ONCE_BYTES = 1 << 18
"""What is encrypted before the socket is written to, and what is read from it at once. More gained nothing."""

KERNEL_ENCRYPTS = getattr(ssl, "OP_ENABLE_KTLS", 0)
"""kTLS, where Python offers it: from 3.12 on."""

SOL_TLS, TLS_TX = 282, 1
"""Of linux/socket.h and linux/tls.h."""

TCP_ULP = 31
"""Of linux/tcp.h."""

TLS_INFO_BYTES = 4
"""Of struct tls_crypto_info: so the kernel tells version and cipher, and no key."""


class Records(Protocol):
    """One end of a TLS connection."""

    @property
    def made(self) -> socket.socket:
        """The socket, which its owner closes."""

    @property
    def tls(self) -> ssl.SSLObject | ssl.SSLSocket:
        """What knows the peer's certificate, and what was agreed on."""

    @property
    def ahead_bytes(self) -> int:
        """How many bytes were encrypted, and may have gone, which `send` has not counted yet."""

    @property
    def kernel_encrypts(self) -> bool:
        """Whether the kernel encrypts what is sent."""

    def do_handshake(self) -> None:
        """Take what has come of the handshake; when it returns, the handshake is done."""

    def send(self, buffers: list[Any]) -> int:
        """Send bytes of these: how many. The same must be given again after BlockingIOError."""

    def receive_into(self, view: memoryview) -> int:
        """Put bytes that have come into this: how many; 0 when the peer has closed."""

    def end(self) -> None:
        """Say that nothing more is sent. An error when the peer has not said so, too: it was said all the same."""


class InMemory:
    """See Records."""

    kernel_encrypts = False

    def __init__(
        self,
        made: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
    ) -> None:
        """Take a connected socket, and make it non-blocking."""
        made.setblocking(False)
        self.made = made
        self.ahead_bytes = 0
        self._arrived, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls: ssl.SSLObject = context.wrap_bio(
            self._arrived, self._leaving, server_side=server_side, server_hostname=server_hostname
        )
        self._buffer = bytearray(RECORD_BYTES)  # a peer that is not admitted yet costs no more
        self._unsent = memoryview(b"")
        self._failure: OSError | None = None

    def do_handshake(self) -> None:
        """See Records."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush_handshake()
                self._fill_for_handshake()
                continue
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._flush()  # the peer hears why
                raise
            self._flush_handshake()
            self._buffer = bytearray(AT_ONCE_BYTES)
            return

    def _flush_handshake(self) -> None:
        try:
            self._flush()
        except BlockingIOError:
            raise ssl.SSLWantWriteError from None

    def _fill_for_handshake(self) -> None:
        try:
            self._fill()
        except BlockingIOError:
            raise ssl.SSLWantReadError from None

    def send(self, buffers: list[Any]) -> int:
        """See Records."""
        if not self.ahead_bytes:
            self.ahead_bytes = self._encrypt(buffers)
        self._flush()
        sent, self.ahead_bytes = self.ahead_bytes, 0
        return sent

    def _encrypt(self, buffers: list[Any]) -> int:
        """Up to AT_ONCE_BYTES of them: how many. Small ones share records."""
        taken = 0
        small: list[bytes] = []
        small_bytes = 0
        for buffer in buffers:
            with memoryview(buffer) as whole, whole.cast("B") as flat, flat[: AT_ONCE_BYTES - taken] as part:
                if len(part) < RECORD_BYTES:
                    small.append(bytes(part))
                    small_bytes += len(part)
                taken += len(part)
                if small and (small_bytes >= RECORD_BYTES or len(part) >= RECORD_BYTES):
                    self._encrypt_whole(b"".join(small))
                    small, small_bytes = [], 0
                if len(part) >= RECORD_BYTES:
                    self._encrypt_whole(part)
            if taken >= AT_ONCE_BYTES:
                break
        if small_bytes:
            self._encrypt_whole(b"".join(small))
        return taken

    def _encrypt_whole(self, part: bytes | memoryview) -> None:
        taken = self.tls.write(part)
        if taken != len(part):  # OpenSSL may say so; into memory it does not
            raise OSError(f"{taken} of {len(part)} bytes were encrypted")

    def _flush(self) -> None:
        """Give the kernel all that was encrypted. BlockingIOError when it takes no more of it now."""
        while self._unsent or self._leaving.pending:
            if not self._unsent:
                self._unsent = memoryview(self._leaving.read())
            self._unsent = self._unsent[self.made.send(self._unsent) :]

    def _fill(self) -> None:
        """Have what has come decrypted by whoever asks next."""
        with memoryview(self._buffer) as whole:
            came = self.made.recv_into(whole)
            if came:
                self._arrived.write(whole[:came])
            else:
                self._arrived.write_eof()

    def receive_into(self, view: memoryview) -> int:
        """See Records. What came before something went wrong is used first."""
        if self._failure is not None:
            raise self._failure
        got = 0
        while got < len(view):
            try:
                with view[got:] as rest:
                    part = self.tls.read(len(rest), rest)
            except ssl.SSLWantReadError:
                if got:
                    break
                self._fill()
                continue
            except OSError as error:
                self._failure = error
                if got:
                    break
                raise
            if not part:
                break
            got += int(part)
        if self._leaving.pending:  # TLS answers by itself when the peer changes its key
            with contextlib.suppress(OSError):
                self._flush()
        return got

    def end(self) -> None:
        """See Records."""
        try:
            self.tls.unwrap()
        finally:
            self._flush()


class InKernel:
    """See Records. Where the kernel does not take it after all, OpenSSL writes a record at a time.

    `is_of_use`: false once that was so in this process: OpenSSL was built without it, or the kernel lacks the cipher.
    """

    is_of_use = True
    ahead_bytes = 0
    kernel_encrypts = False

    def __init__(
        self, made: socket.socket, context: ssl.SSLContext, *, server_hostname: str | None = None
    ) -> None:
        """Take a connected socket, and make it non-blocking; its descriptor is `made`'s from now on."""
        made.setblocking(False)
        context.options |= KERNEL_ENCRYPTS
        self.made = self.tls = context.wrap_socket(
            made,
            server_hostname=server_hostname,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )

    def do_handshake(self) -> None:
        """See Records."""
        self.tls.do_handshake()
        self.kernel_encrypts = InKernel.is_of_use = is_encrypting(self.tls)

    def send(self, buffers: list[Any]) -> int:
        """See Records."""
        if self.kernel_encrypts:
            return os.writev(self.tls.fileno(), buffers[:IOV_MAX])
        if nbytes_of(buffers[0]) < RECORD_BYTES and len(buffers) > 1:
            return self.tls.send(_joined(buffers))
        with memoryview(buffers[0]) as whole, whole.cast("B") as flat, flat[:RECORD_BYTES] as part:
            return self.tls.send(part)

    def receive_into(self, view: memoryview) -> int:
        """See Records."""
        return self.tls.recv_into(view)

    def end(self) -> None:
        """See Records."""
        self.tls.unwrap()


def _joined(buffers: list[Any]) -> bytes:
    """As many of the first bytes as one record takes."""
    parts: list[bytes] = []
    left = RECORD_BYTES
    for buffer in buffers:
        with memoryview(buffer) as whole, whole.cast("B") as flat, flat[:left] as part:
            parts.append(bytes(part))
            left -= len(part)
        if not left:
            break
    return b"".join(parts)


def is_encrypting(connected: socket.socket) -> bool:
    """Whether what is sent over it is encrypted by the kernel."""
    try:
        connected.getsockopt(SOL_TLS, TLS_TX, TLS_INFO_BYTES)
    except OSError:
        return False
    return True


@functools.cache
def kernel_can_encrypt() -> bool:
    """Whether Python, OpenSSL and the kernel offer it. Asked once, of a connection within this host."""
    if not KERNEL_ENCRYPTS:
        return False
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname()) as one,
        ):
            one.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
    except OSError:
        return False
    return True
