"""A port at which further links of one migration arrive, while it lasts."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from saverestore.errors import SaveRestoreError, TransportError, fact_of, name_of_errno
from saverestore.interrupts import HEED_S, shield
from saverestore.transport.connection import Connection, SocketConnection
from saverestore.transport.sockets import notice_dead_links

if TYPE_CHECKING:
    from saverestore.transport.tls import Credentials
    from saverestore.transport.tls_peers import Allowed

LOG = logging.getLogger(__name__)

BACKLOG = 16

MAPPED = "::ffff:"
"""Before an IPv4 address, where a peer that speaks IPv4 has come to a socket for both, as systemd's are."""


class Door:
    """A context manager: inside the block, who connects to `port` is given to `arrived`, by a thread of its own.

    `host`: the address to listen at. `tls`: what proves who this host is and who may come; None: plain TCP. `arrived`
    takes the connection, or closes it and raises; that is logged, and the next one is waited for. TransportError when
    it cannot listen there.
    """

    def __init__(
        self,
        host: str,
        arrived: Callable[[Connection], None],
        *,
        tls: tuple[Credentials, Allowed] | None,
        timeout_s: float,
    ) -> None:
        self._arrived = arrived
        self._tls = tls
        self._timeout_s = timeout_s
        self._closing = threading.Event()
        host = host.removeprefix(MAPPED)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._server = socket.create_server((host, 0), family=family, backlog=BACKLOG)
            notice_dead_links(self._server, timeout_s)  # what it accepts has these options, too
        except OSError as error:
            raise TransportError(
                f"{host}: cannot listen there: {error.strerror or error}", name=name_of_errno(error.errno)
            ) from error
        self._server.setblocking(False)
        self.port: int = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="link-door", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with shield():
            self._closing.set()
            self._thread.join()
            self._server.close()

    def _serve(self) -> None:
        while not self._closing.is_set():
            try:
                connection = self._next()
                if connection is not None:
                    self._arrived(connection)
            except SaveRestoreError as error:
                LOG.warning("a further connection was refused: %s", fact_of(error))
                self._closing.wait(HEED_S)

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
        poll = select.poll()
        poll.register(self._server, select.POLLIN)
        if not poll.poll(HEED_S * 1000):
            return None
        with contextlib.suppress(OSError):  # gone again
            made, whence = self._server.accept()
            return SocketConnection(made, str(whence[0]), timeout_s=self._timeout_s)
        return None
