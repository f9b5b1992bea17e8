"""A port at which further links of one migration arrive, while it lasts."""

from __future__ import annotations

import contextlib
import functools
import logging
import select
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from saverestore.errors import TransportError, fact_of, name_of_errno
from saverestore.interrupts import HEED_S, shield
from saverestore.transport.connection import Connection, SocketConnection
from saverestore.transport.hosts import host_in, listening_at
from saverestore.transport.link import started
from saverestore.transport.sockets import notice_dead_links

if TYPE_CHECKING:
    from saverestore.transport.tls import Proof
    from saverestore.transport.tls_peers import Allowed

LOG = logging.getLogger(__name__)

BACKLOG = 16

FIRST_WORD_S = 10.0
MOST_SILENT = 8
"""By plain TCP. For one more the oldest is turned away: who says nothing does not keep others out."""

MOST_JOINING = 8
"""Those that were handed on and have not joined yet. For one more the oldest is turned away."""

Ports = tuple[int, int]
"""The lowest and the highest port that may be used, inclusive; 0, 0: the kernel chooses one."""

ANY_PORT: Ports = (0, 0)

MAPPED = "::ffff:"
"""Before an IPv4 address, where a peer that speaks IPv4 has come to a socket for both, as systemd's are."""


class Door:
    """A context manager: inside the block, who connects to `port` is given to `arrived`, each by a thread of its own.

    `host`: the address to listen at. `tls`: what proves who this host is and who may come; None: plain TCP. `ports`:
    one of these. `arrived` takes the connection, or closes it and raises, which is logged; it may wait for the peer,
    who holds up nobody else. By plain TCP it gets it when the first byte has come. TransportError when it cannot
    listen there. At the end of the block no thread is left: `arrived` is not waited for longer than the connection's
    `deadline`, which is over then.
    """

    def __init__(
        self,
        host: str,
        arrived: Callable[[Connection], None],
        *,
        tls: tuple[Proof, Allowed] | None,
        timeout_s: float,
        ports: Ports = ANY_PORT,
    ) -> None:
        self._arrived = arrived
        self._tls = tls
        self._timeout_s = timeout_s
        self._closing = threading.Event()
        self._silent: dict[socket.socket, tuple[str, float]] = {}
        """By plain TCP: those that have said nothing yet, the oldest first: whence, and until when they may."""
        self._lock = threading.Lock()
        self._joining: dict[Connection, threading.Thread] = {}
        """Those for which `arrived` has not returned yet, the oldest first."""
        self._threads: list[tuple[Connection, threading.Thread]] = []
        """The same, and those that were turned away and may not have found out."""
        self.host = host = host.removeprefix(MAPPED)
        try:
            self._server = _listening(host, ports)
            notice_dead_links(self._server, timeout_s)  # what it accepts has these options, too
        except OSError as error:
            raise TransportError(
                f"{host}: cannot listen there{_of(ports)}: {error.strerror or error}",
                name=name_of_errno(error.errno),
            ) from error
        self._server.setblocking(False)
        self.port: int = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="link-door", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._thread.start()
        except RuntimeError as error:
            self._server.close()
            raise TransportError(f"{self.host}: no thread to listen there: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with shield():
            self._closing.set()
            self._thread.join()
            for one in (self._server, *self._silent):
                one.close()
            with self._lock:
                self._joining.clear()
            for connection, thread in self._threads:
                while thread.is_alive():
                    connection.deadline = time.monotonic()  # it may just be setting one of its own
                    thread.join(HEED_S)

    def _serve(self) -> None:
        while not self._closing.is_set():
            try:
                connection = self._next()
                if connection is not None:
                    self._hand_on(connection)
            except Exception as error:  # whatever it is: without this thread nobody is let in any more
                LOG.warning("a further connection was refused: %s", fact_of(error))
                self._closing.wait(HEED_S)

    def _hand_on(self, connection: Connection) -> None:
        with self._lock:
            if len(self._joining) >= MOST_JOINING:
                oldest = next(iter(self._joining))
                del self._joining[oldest]
                oldest.deadline = time.monotonic()
                LOG.warning("refused: %s had not joined before too many others came", oldest.peer)
            self._threads = [one for one in self._threads if one[1].is_alive()]
            try:
                thread = started(functools.partial(self._join, connection), "link-joining")
            except TransportError:
                connection.deadline = time.monotonic()
                connection.close()
                raise
            self._joining[connection] = thread
            self._threads.append((connection, thread))

    def _join(self, connection: Connection) -> None:
        try:
            self._arrived(connection)
        except Exception as error:
            with self._lock:
                is_turned_away = connection not in self._joining
            if not is_turned_away:  # which was said
                LOG.warning("a further connection was refused: %s", fact_of(error))
        finally:
            with self._lock:
                self._joining.pop(connection, None)

    def _next(self) -> Connection | None:
        if self._tls is not None:
            from saverestore.transport import tls_peers

            credentials, allowed = self._tls
            return tls_peers.first_admitted(
                self._server,
                credentials,
                allowed,
                timeout_s=self._timeout_s,
                is_closing=self._closing.is_set,
            )
        return self._first_heard()

    def _first_heard(self) -> Connection | None:
        """The first of those that have connected from whom something has come, within a short time."""
        poll = select.poll()
        for waiting in (self._server, *self._silent):
            poll.register(waiting, select.POLLIN)
        found = {fd for fd, _ in poll.poll(HEED_S * 1000)}
        if self._server.fileno() in found:
            self._accept()
        for one in [one for one, (_, end) in self._silent.items() if time.monotonic() > end]:
            self._turn_away(one)
        for one in self._silent:
            if one.fileno() in found:
                source, _ = self._silent.pop(one)
                return SocketConnection(one, source, timeout_s=self._timeout_s)
        return None

    def _accept(self) -> None:
        try:
            made, whence = self._server.accept()
        except (BlockingIOError, ConnectionError):  # gone again
            return
        except OSError as error:
            raise TransportError(
                f"cannot accept a connection: {error.strerror}", name=name_of_errno(error.errno)
            ) from error
        if len(self._silent) >= MOST_SILENT:
            self._turn_away(next(iter(self._silent)))
        self._silent[made] = host_in(whence), time.monotonic() + FIRST_WORD_S

    def _turn_away(self, one: socket.socket) -> None:
        source, _ = self._silent.pop(one)
        one.close()
        LOG.warning("a further connection was refused: %s has said nothing", source)


def _listening(host: str, ports: Ports) -> socket.socket:
    """A socket at the first of these ports that is free. OSError of the last one when none is."""
    lowest, highest = ports
    for port in range(lowest, highest):
        with contextlib.suppress(OSError):
            return listening_at(host, port, BACKLOG)
    return listening_at(host, highest, BACKLOG)


def _of(ports: Ports) -> str:
    return "" if ports == ANY_PORT else f" at port {ports[0]} to {ports[1]}"
