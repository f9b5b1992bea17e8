"""What other processes of this host may ask of the one that works on a migration: over a socket without a file.

    pymigrate bwlimit ──── request, JSON ───►  process at work        one request a connection, one packet each way
                      ◄─── answer, JSON ─────

The socket has an abstract name, of the migration and the role. So it is gone when its process is, however that ended.
Both sides look at who the other is, by the kernel's account: nobody but root and the user who migrates.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import struct
import threading
import uuid
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from saverestore.errors import DomainError, ErrorName, SaveRestoreError, fact_of
from saverestore.interrupts import HEED_S, shield
from saverestore.migrate.handover import Role

LOG = logging.getLogger(__name__)

MOST_BYTES = 4096
ANSWER_S = 5.0
CREDENTIALS = struct.Struct("3i")
"""struct ucred of sys/socket.h: process, user, group."""

Fields = dict[str, Any]
Handler = Callable[[Fields], Fields]


def _name_of(role: Role, migration: uuid.UUID) -> bytes:
    return f"\0pymigrate/{role}-{migration}".encode()


def _peer_of(connected: socket.socket) -> tuple[int, int]:
    """The process at the other end, and its user."""
    found = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    pid, user, _ = CREDENTIALS.unpack(found)
    return pid, user


def _is_ours(user: int) -> bool:
    return user in (0, os.geteuid())


class ControlSocket:
    """A context manager: inside the block, requests are answered by a thread of its own.

    `handlers`: by the request's "what"; each is given the request, and returns the answer. A SaveRestoreError that it
    raises is the answer, too. Without a socket, as the system has none to give, there is a warning and no answer.
    """

    def __init__(self, role: Role, migration: uuid.UUID, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._name = _name_of(role, migration)
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            made.bind(self._name)
            made.listen(4)
            made.setblocking(False)
        except OSError as error:
            made.close()
            LOG.warning("nothing can be changed while this migration runs: %s", error.strerror)
            return self
        self._socket = made
        self._thread = threading.Thread(target=self._serve, name="migration-control", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Answer no more. A second time does nothing."""
        with shield():
            self._closing.set()
            if self._thread is not None:
                self._thread.join()
                self._thread = None
            if self._socket is not None:
                self._socket.close()

    def _serve(self) -> None:
        assert self._socket is not None
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while not self._closing.is_set():
            if not poll.poll(HEED_S * 1000):
                continue
            with contextlib.suppress(OSError):
                made, _ = self._socket.accept()
                with made:
                    made.settimeout(ANSWER_S)
                    if _is_ours(_peer_of(made)[1]):
                        made.send(json.dumps(self._answer(made.recv(MOST_BYTES))).encode())

    def _answer(self, packet: bytes) -> Fields:
        try:
            request = json.loads(packet)
            handler = self._handlers[request["what"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            return {"error": "this process does not know that request", "name": str(ErrorName.USAGE)}
        try:
            return handler(request)
        except SaveRestoreError as error:
            return {"error": fact_of(error), "name": str(error.name)}


def ask(role: Role, migration: uuid.UUID, request: Fields, *, pid: int) -> Fields:
    """Ask process `pid`, which works on that migration: its answer. DomainError when it gives none, or refuses."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as made:
        made.settimeout(ANSWER_S)
        try:
            made.connect(_name_of(role, migration))
            who, user = _peer_of(made)
            if who != pid or not _is_ours(user):
                raise DomainError(f"process {who} answers for process {pid}", name=ErrorName.MIGRATION_BUSY)
            made.send(json.dumps(request).encode())
            answer = json.loads(made.recv(MOST_BYTES))  # nothing, where it has ended meanwhile, is no JSON
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "no answer"
            raise DomainError(
                f"process {pid}, which works on the migration, does not answer: {why}",
                name=ErrorName.MIGRATION_BUSY,
            ) from error
    if "error" in answer:
        known = {str(name): name for name in ErrorName}
        raise DomainError(str(answer["error"]), name=known.get(answer.get("name", ""), ErrorName.UNEXPECTED))
    return dict(answer)
