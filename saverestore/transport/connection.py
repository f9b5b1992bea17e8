"""A connection to a peer: bytes in both directions, and no wait without an end.

    connection.outgoing  ── a ByteSink ────►  peer     closing it: half close, the peer finds the end
    connection.incoming  ◄── a ByteSource ──  peer     at its end when the peer has closed its side
    connection.acknowledged ◄── how much of what was written the peer says that it has

The directions are two objects, as each has its own `offset`, and may be used on its own thread, one thread at a time.
A wait ends with bytes, or with `PeerTimeout`, or with the signal that raises `Interrupted` in the main thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from saverestore.errors import ErrorName, TransportError, name_of_errno
from saverestore.interrupts import HEED_S, shield
from saverestore.transport import congestion, tcp_info
from saverestore.transport.base import ByteSink, ByteSource
from saverestore.transport.fd import PEER_ERRORS, FdSink, FdSource
from saverestore.transport.hosts import host_in
from saverestore.transport.paced import pace_in_kernel

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

GONE_ERRORS = PEER_ERRORS | {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNABORTED}
"""What the kernel says when the peer, or the way there, is gone."""

INTERNET = (socket.AF_INET, socket.AF_INET6)

LINGER_POLL_S = 0.002
"""How often `close` looks whether the peer has everything."""


class PeerTimeout(TransportError):
    """The peer has neither sent nor taken a byte for as long as it may, or not everything by the deadline.

    `peer` names it; `waited_s`: how long this wait took. The connection is as it was: bytes may still come.
    """

    def __init__(self, peer: str, waited_s: float, what: str) -> None:
        self.peer = peer
        self.waited_s = waited_s
        super().__init__(f"{peer} {what}; waited {waited_s:.1f} s")


class BrokenPeer(TransportError):
    """The peer has closed the connection or died, or the way to it is gone. Only `close` is of use then."""

    name = ErrorName.PEER_CLOSED

    def __init__(self, peer: str, what: str) -> None:
        self.peer = peer
        super().__init__(f"{peer} {what}")


class BadAcknowledgement(TransportError):
    """The peer acknowledges what was never sent to it. Nothing that it says can be relied on."""


class Connection(Protocol):
    """A connection to one peer. A context manager; closing it a second time does nothing.

    Both directions raise `PeerTimeout`, `BrokenPeer`, and `TransportError` for other failures; `incoming` raises
    `EndOfStream` when the peer has closed its side amid what was asked for. After `PeerTimeout` and `Interrupted` the
    offsets are right, and the other direction can be used; what was being read or written is so in part.
    """

    timeout_s: float
    """How long a wait may last in which no byte moves. It holds for both directions, from the next wait on.

    While bytes come from the peer, it may take as long as it likes to take ours: it is busy, and alive.
    """

    deadline: float | None
    """By `time.monotonic()`: no wait lasts beyond it, even if bytes move now and then. None: there is none."""

    @property
    def peer(self) -> str:
        """Who it is, for messages."""

    @property
    def incoming(self) -> ByteSource:
        """What the peer sends; its `offset` counts the bytes read. Closing it gives up what still comes."""

    @property
    def outgoing(self) -> ByteSink:
        """What goes to the peer; its `offset` counts the bytes that the kernel took. Closing it is the half close."""

    @property
    def acknowledged(self) -> int:
        """How many bytes of `outgoing` the peer has acknowledged: never fewer than before or more than written."""

    def note_acknowledged(self, position: int) -> None:
        """The peer has said that it has everything before `position`. A lower one than before changes nothing.

        Called by whoever reads the peer's messages, from any thread. `BadAcknowledgement` for more than was written.
        """

    local_host: str
    """The address of this host that the peer sees, where it is a TCP connection; else ""."""

    remote_host: str
    """The peer's address, where it is a TCP connection; else ""."""

    cipher: str
    """What encrypts it, as OpenSSL names it; "" where nothing does."""

    kernel_encrypts: bool
    """Whether the kernel encrypts what is sent (kTLS)."""

    congestion: str
    """The kernel's congestion control, where it is a TCP connection; else ""."""

    def pace(self, rate: int | None) -> bool:
        """Have the kernel send at so many bytes per second at most; None: no limit. False where it cannot: no TCP.

        From any thread, at any time.
        """

    def delivery_rate(self) -> int | None:
        """See `tcp_info.delivery_rate`; None where it is no TCP connection. From any thread, at any time."""

    def passed(self) -> tuple[int, int] | None:
        """See `tcp_info.passed`; None where it is no TCP connection. From any thread, at any time."""

    def close(self) -> None:
        """Give both directions up. What has been written still goes to the peer: that may take a wait.

        What the peer sends meanwhile is thrown away. Where it takes nothing for `timeout_s`, the rest is given up.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@contextlib.contextmanager
def within(connection: Connection, seconds: float | None) -> Iterator[None]:
    """Inside this block no wait lasts beyond so many seconds from now; None: as before. Then the deadline is what it
    was again: closing, too, may take its time.
    """
    before = connection.deadline
    if seconds is not None:
        connection.deadline = time.monotonic() + seconds
    try:
        yield
    finally:
        connection.deadline = before


class _Both:
    """What connections over descriptors share. The descriptors are non-blocking, and this object's own."""

    local_host = remote_host = congestion = ""
    """See Connection."""

    cipher = ""
    kernel_encrypts = False

    is_plain = True
    """Whether what passes through the descriptors is what was written, so that the kernel may move it."""

    def __init__(self, incoming_fd: int, outgoing_fd: int, peer: str, *, timeout_s: float) -> None:
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be greater than 0, not {timeout_s}")
        self.peer = peer
        self.timeout_s = timeout_s
        self.deadline: float | None = None
        self.heard_at = 0.0
        """When bytes came last, by `time.monotonic()`."""
        # Bytes are written and counted in one step: an acknowledgement may come before the writer has counted them.
        self._counting = threading.Lock()
        self._acknowledged = 0
        self._outgoing = _Outgoing(self, outgoing_fd, self._counting)
        self._incoming = _Incoming(self, incoming_fd)

    @property
    def ahead_bytes(self) -> int:
        """How many bytes may have gone beyond those that were counted: see `send`."""
        return 0

    @property
    def incoming(self) -> FdSource:
        """See Connection."""
        return self._incoming

    @property
    def outgoing(self) -> FdSink:
        """See Connection."""
        return self._outgoing

    @property
    def acknowledged(self) -> int:
        """See Connection."""
        return self._acknowledged

    def note_acknowledged(self, position: int) -> None:
        """See Connection."""
        with shield(), self._counting:
            written = self._outgoing.offset
            if position > written + self.ahead_bytes:
                raise BadAcknowledgement(
                    f"{self.peer} acknowledges {position} bytes, and {written} were sent to it"
                )
            self._acknowledged = max(self._acknowledged, position)

    def pace(self, rate: int | None) -> bool:
        """See Connection."""
        del rate
        return False

    def delivery_rate(self) -> int | None:
        """See Connection."""
        return None

    def passed(self) -> tuple[int, int] | None:
        """See Connection."""
        return None

    def end_outgoing(self) -> None:
        """Let the peer find the end behind what was written."""
        raise NotImplementedError

    def receive(self, fd: int, views: list[Any]) -> int:
        """Put bytes of the peer's into these views: how many, 0 at its end. BlockingIOError when there are none."""
        return os.readv(fd, views)

    def send(self, fd: int, buffers: list[Any]) -> int:
        """Give the kernel what it takes of these: how many bytes. BlockingIOError when it does not take all of what
        belongs together: then the same must be given again.
        """
        return os.writev(fd, buffers)

    def has_given_up_writing(self) -> None:
        """A write has ended before everything was sent."""
        return

    def wait(self, fd: int, event: int, what: str) -> None:
        """Wait until a descriptor is ready for `event`. `PeerTimeout` with `what` the peer has not done."""
        poll = select.poll()
        poll.register(fd, event)
        begun = time.monotonic()
        while True:
            since = max(begun, self.heard_at) if event == select.POLLOUT else begun
            end = since + self.timeout_s
            if self.deadline is not None:
                end = min(end, self.deadline)
            left = end - time.monotonic()
            # In pieces: a signal that comes just before poll() begins takes effect between two of them.
            if poll.poll(max(0.0, min(left, HEED_S)) * 1000):
                return
            if left <= 0:
                raise PeerTimeout(self.peer, time.monotonic() - begun, what)

    def close(self) -> None:
        """See Connection."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PipeConnection(_Both):
    """A `Connection` over two descriptors, which it owns: a program's standard input and output, whatever they are.

    Closing it does not wait until the peer has everything: pipes keep what was written for whoever reads.
    """

    def __init__(self, incoming_fd: int, outgoing_fd: int, peer: str, *, timeout_s: float) -> None:
        """Take them, and make them non-blocking. `timeout_s`: see Connection; more than 0."""
        os.set_blocking(incoming_fd, False)
        os.set_blocking(outgoing_fd, False)
        self._outgoing_fd = outgoing_fd
        self._incoming_fd = incoming_fd
        super().__init__(incoming_fd, outgoing_fd, peer, timeout_s=timeout_s)

    def end_outgoing(self) -> None:
        """Close that side."""
        fd, self._outgoing_fd = self._outgoing_fd, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """See Connection."""
        with shield():
            try:
                self._outgoing.close()
            finally:
                self._incoming.close()
                fd, self._incoming_fd = self._incoming_fd, -1
                if fd >= 0:
                    os.close(fd)


class SocketConnection(_Both):
    """A `Connection` over a connected stream socket, which it owns: TCP, or a socket pair."""

    def __init__(self, connected: socket.socket, peer: str, *, timeout_s: float) -> None:
        """Take the socket, and make it non-blocking. `timeout_s`: see Connection; more than 0."""
        self._socket = connected
        self._dead_after_ms = 0  # of its making; 0: the kernel is to give up nothing
        connected.setblocking(False)
        if connected.family in INTERNET:
            self.local_host = host_in(connected.getsockname())
            self.congestion = congestion.in_use(connected)
            with contextlib.suppress(OSError):  # gone already
                self.remote_host = host_in(connected.getpeername())
            self._dead_after_ms = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        super().__init__(connected.fileno(), connected.fileno(), peer, timeout_s=timeout_s)

    @property
    def timeout_s(self) -> float:
        """See Connection. Where the kernel gives up dead links (`notice_dead_links`), it does so no sooner.

        Nor does it sooner than it was to at first: it counts the time in which a peer that is alive takes nothing,
        whatever that peer sends, so a shorter time is kept here alone.
        """
        return self._timeout_s

    @timeout_s.setter
    def timeout_s(self, seconds: float) -> None:
        self._timeout_s = seconds
        if self._dead_after_ms:
            longest_ms = max(self._dead_after_ms, int(seconds * 1000))
            with contextlib.suppress(OSError):  # closed meanwhile
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, longest_ms)

    def fileno(self) -> int:
        """The socket's descriptor; -1 when closed."""
        return self._socket.fileno()

    def pace(self, rate: int | None) -> bool:
        """See Connection."""
        return pace_in_kernel(self._socket, rate)

    def delivery_rate(self) -> int | None:
        """See Connection."""
        return tcp_info.delivery_rate(self._socket)

    def passed(self) -> tuple[int, int] | None:
        """See Connection."""
        return tcp_info.passed(self._socket)

    def close(self) -> None:
        """See Connection."""
        try:
            with shield():
                self._outgoing.close()
            self._linger()
        finally:
            with shield():
                self._incoming.close()
                self._socket.close()

    def _linger(self) -> None:
        """Until the peer's kernel has all that was written, and its end.

        Closing a TCP socket while bytes that came are unread, or before more of them come, makes Linux send RST, and
        what was still on its way is dropped on both sides. So they are read here.
        """
        if self._socket.family not in INTERNET or self.fileno() < 0:
            return
        waiting_since, before = time.monotonic(), -1
        ended = select.poll()
        ended.register(self._socket, 0)  # POLLHUP alone: the peer has ended its side, too, or is gone
        try:
            while (queued := tcp_info.queued_bytes(self._socket)) > 0 and not ended.poll(0):
                self._throw_away()
                now = time.monotonic()
                if queued != before:
                    waiting_since, before = now, queued
                if now - waiting_since > self.timeout_s or (
                    self.deadline is not None and now > self.deadline
                ):
                    return
                time.sleep(LINGER_POLL_S)
            self._throw_away()
        except OSError:  # the peer is gone
            return

    def _throw_away(self) -> None:
        """Read what has come."""
        try:
            while os.read(self._socket.fileno(), 1 << 16):
                pass
        except BlockingIOError:
            pass

    def end_outgoing(self) -> None:
        """Shut that direction of the socket, if it is still connected."""
        try:
            socket.socket.shutdown(
                self._socket, socket.SHUT_WR
            )  # an SSLSocket's own would end both directions
        except OSError as error:
            if error.errno not in (*GONE_ERRORS, errno.EBADF):
                raise TransportError(
                    f"{self.peer}: closing the connection failed: {error.strerror}",
                    name=name_of_errno(error.errno),
                ) from error


class _Incoming(FdSource):
    """What the peer sends."""

    def __init__(self, connection: _Both, fd: int) -> None:
        super().__init__(fd, connection.peer, close_fd=False)
        self.may_stay_open = False  # see `_Both.wait`
        self._connection = connection

    def close(self) -> None:
        """Give up what still comes; a second time does nothing.

        The socket's direction is not shut: Linux would answer what still comes by RST, see `SocketConnection.close`.
        """
        super().close()

    def _take(self, views: list[Any]) -> int:
        with shield():  # it does not wait: what has been read is also counted
            taken = super()._take(views)
            self._connection.heard_at = time.monotonic()
            return taken

    def _receive(self, views: list[Any]) -> int:
        return self._connection.receive(self.fileno(), views)

    def splice(self, pipe: int, n: int) -> int:
        """See Spliceable."""
        return super().splice(pipe, n) if self._connection.is_plain else 0

    def _wait(self, event: int) -> None:
        self._connection.wait(self.fileno(), event, "sent nothing")

    def _failure(self, error: OSError) -> TransportError:
        if error.errno in GONE_ERRORS:
            return BrokenPeer(self.name, f"is gone, {self.offset} bytes had come: {error.strerror}")
        return super()._failure(error)


class _Outgoing(FdSink):
    """What goes to the peer."""

    def __init__(self, connection: _Both, fd: int, counting: threading.Lock) -> None:
        super().__init__(fd, connection.peer, close_fd=False)
        self._connection = connection
        self._counting = counting

    def writev(self, buffers: Sequence[ReadableBuffer]) -> None:
        """See FdSink."""
        try:
            super().writev(buffers)
        except BaseException:  # a signal, too
            self._connection.has_given_up_writing()
            raise

    def close(self) -> None:
        """Half close: the peer finds the end behind what was written. A second time does nothing."""
        if self._fd >= 0:
            self._connection.end_outgoing()
        super().close()

    def _put(self, buffers: list[Any]) -> int:
        with shield(), self._counting:  # it does not wait
            return super()._put(buffers)

    def _send(self, buffers: list[Any]) -> int:
        return self._connection.send(self.fileno(), buffers)

    def _wait(self, event: int) -> None:
        self._connection.wait(self.fileno(), event, "took nothing")

    def _failure(self, error: OSError) -> TransportError:
        if error.errno in GONE_ERRORS:
            return BrokenPeer(self.name, f"is gone, {self.offset} bytes had been sent: {error.strerror}")
        return super()._failure(error)


def pair(*, timeout_s: float = 10.0) -> tuple[Connection, Connection]:
    """Two ends of one connection within this machine, each of which calls the other "peer": for tests."""
    one, other = socket.socketpair()
    return SocketConnection(one, "peer", timeout_s=timeout_s), SocketConnection(
        other, "peer", timeout_s=timeout_s
    )
