"""The links of a migration: how both sides agree on them, and how further ones join. Two ways:

    source                                              destination
    OFFER     links, resume_for_s, silence_s  ──────►
              ◄────────────────  ACCEPTED     secret, port; or neither: one connection, as it is
    JOIN      secret                          ──────►
              ◄────────────────  JOINED       from here on this connection is a link, see transport.links
    JOIN      over another one, to that port  ──────►
              ◄────────────────  JOINED       so is that; the one that had its number has broken

    over ssh, which would be slow and cannot be connected to again:
    OFFER     links …, certificate            ──────►
              ◄────────────────  ACCEPTED     secret, host, port, certificate
    JOIN      over TLS, to that port          ══════►
              ◄════════════════  JOINED
    JOIN      over ssh: PORT                  ──────►
              ◄────────────────  JOINED       from here on that TLS connection is the first link; ssh is used no more
    or, where the port cannot be reached:
    JOIN      over ssh: NOWHERE               ──────►   all goes over ssh

What is said behind JOIN and JOINED has an order of its own, whichever link it takes. So everything else stays as it
is with one connection. Here is what both sides need, and the destination's; the source's is in `source_link`.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol, Self, TypeVar

from saverestore.errors import ErrorName, SaveRestoreError, TransportError, UsageError, fact_of
from saverestore.migrate import protocol
from saverestore.migrate.certificate import OwnCertificate
from saverestore.migrate.channel import SILENCE_S, Channel
from saverestore.migrate.messages import (
    HERE,
    NOWHERE,
    PORT,
    Accepted,
    Join,
    Joined,
    Message,
    Offer,
    ProtocolError,
)
from saverestore.transport.connection import Connection
from saverestore.transport.door import ANY_PORT, Door, Ports
from saverestore.transport.links import LinkedConnection
from saverestore.transport.tls import Credentials
from saverestore.transport.tls_peers import Allowed

LOG = logging.getLogger(__name__)

MOST_STREAMS = 16
JOIN_S = 10.0
"""How long a link may take to join, once it is connected."""

SECRET_BYTES = 32

MessageT = TypeVar("MessageT", bound=Message)

ANY_ADDRESS = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Opened:
    """A port at which connections of one migration arrive. `host`, `certificate`: see Accepted."""

    port: int
    host: str = ""
    certificate: str = ""


class OpenDoor(Protocol):
    """How further connections arrive at this host."""

    def __call__(
        self, first: Connection, offer: Offer, arrived: Callable[[Connection], None], timeout_s: float
    ) -> AbstractContextManager[Opened]:
        """Wait for them inside the block, see Door. `first`: the one that the peer has come by.

        TransportError, UsageError, ProtocolError when that cannot be done.
        """


def door_of(tls: tuple[Credentials, Allowed] | None, *, ports: Ports = ANY_PORT) -> OpenDoor:
    """By TCP, to the address that the peer has come to; `tls`: by TLS."""

    @contextmanager
    def open_door(
        first: Connection, offer: Offer, arrived: Callable[[Connection], None], timeout_s: float
    ) -> Iterator[Opened]:
        del offer
        with Door(first.local_host, arrived, tls=tls, timeout_s=timeout_s, ports=ports) as door:
            yield Opened(door.port)

    return open_door


def door_beside_ssh(host: str, *, ports: Ports = ANY_PORT, told: str = "") -> OpenDoor:
    """By TLS, with certificates made for the offer, beside the connection that ssh makes.

    `host`: the address to listen at; "": it is not known. `told`: what the source gets as the address if that is any.
    """

    @contextmanager
    def open_door(
        first: Connection, offer: Offer, arrived: Callable[[Connection], None], timeout_s: float
    ) -> Iterator[Opened]:
        del first
        if not offer.certificate:
            raise TransportError("the source has sent no certificate")
        if not host:
            raise TransportError("it is not known there at which address ssh arrived ($SSH_CONNECTION)")
        own = OwnCertificate.made(socket.gethostname())
        tls = own.pinned(offer.certificate)
        with Door(host, arrived, tls=tls, timeout_s=timeout_s, ports=ports) as door:
            yield Opened(door.port, told if door.host in ANY_ADDRESS else door.host, own.text)

    return open_door


def heard_on(connection: Connection, wanted: type[MessageT]) -> MessageT:
    """The next message on a connection that is no channel's. ProtocolError for any other, whose body is not read."""
    header = protocol.unpack_header(connection.incoming.read(protocol.HEADER.size, "a message"))
    if header.type is not wanted.type:
        raise ProtocolError(f"{connection.peer} said {header.type.name} where {wanted.type.name} belongs")
    message = protocol.unpack(header, connection.incoming.read(header.length_bytes, "a message"))
    assert isinstance(message, wanted)
    return message


# ---- the destination


class IncomingLinks:
    """The destination's side, for one offer. A context manager: inside the block further links may join.

    `open_door` None: this host cannot be reached a second time, so there is one connection.
    """

    def __init__(self, channel: Channel, offer: Offer, open_door: OpenDoor | None) -> None:
        self._channel = channel
        self._offer = offer
        self._silence_s = float(offer.silence_s or SILENCE_S)
        self._open_door = open_door if 0 < offer.links <= MOST_STREAMS else None
        self._secret = ""
        self._reason = ""
        self._opened = Opened(0)
        self._stack = ExitStack()
        self._first: Connection | None = None
        """Beside ssh: it has joined, and the source has yet to say so over ssh."""
        self._connection: LinkedConnection | None = None
        self._is_linked = threading.Event()
        """Who joins waits for it. Set without a connection: there will be none."""
        self._taking_first = threading.Lock()

    def __enter__(self) -> Self:
        self._channel.expect_within(self._silence_s)
        if self._open_door is not None:
            self._secret = secrets.token_hex(SECRET_BYTES)
            try:
                door = self._open_door(self._channel.connection, self._offer, self._arrived, self._silence_s)
                self._opened = self._stack.enter_context(door)
            except (TransportError, UsageError, ProtocolError) as error:
                LOG.warning("there is one connection only: %s", fact_of(error))
                self._secret, self._reason = "", fact_of(error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_door()

    def _close_door(self) -> None:
        self._is_linked.set()  # who waits for that to join would hold the door
        self._stack.close()
        if self._first is not None and self._connection is None:
            with suppress(SaveRestoreError, OSError):
                self._first.close()

    def completed(self, message: Message) -> Message:
        """ACCEPTED with what the source needs to know; any other message as it is."""
        if isinstance(message, Accepted):
            opened = self._opened
            return replace(
                message,
                secret=self._secret,
                port=opened.port,
                reason=self._reason,
                certificate=opened.certificate,
                host=opened.host,
            )
        return message

    def begin(self) -> None:
        """ACCEPTED has been said: from here on use links, where the source has heard of them and can."""
        if not self._secret:
            return
        join = self._channel.hear(Join)
        self._check(join)
        if join.place == NOWHERE:
            LOG.warning("the source cannot reach this host's port %d", self._opened.port)
            self._close_door()
            return
        if join.place != (PORT if self._opened.certificate else HERE):
            raise ProtocolError(f"{self._channel.peer} joins in a place that was not agreed on")
        if join.place == PORT and self._first is None:
            raise ProtocolError(f"{self._channel.peer} says that it has joined, and it has not")

        def make(before: Connection) -> Connection:
            self._connection = LinkedConnection(
                self._first or before,
                timeout_s=self._silence_s,
                resume_for_s=float(self._offer.resume_for_s),
            )
            return self._connection

        self._channel.continue_over(make, Joined(self._offer.migration))
        self._is_linked.set()

    def wait_no_more(self) -> None:
        """The domain is whole: from now on a link that is lost stays lost, and what is in doubt is settled later."""
        if self._connection is not None:
            self._connection.resume_for_s = 0.0

    def _check(self, join: Join) -> None:
        if join.migration != self._offer.migration or not hmac.compare_digest(
            join.secret.encode(), self._secret.encode()
        ):
            raise TransportError(
                f"{self._channel.peer} is not the source of migration {self._offer.migration}",
                name=ErrorName.PEER_NOT_TRUSTED,
            )

    def _arrived(self, connection: Connection) -> None:
        """See Door."""
        try:
            connection.deadline = time.monotonic() + JOIN_S
            join = heard_on(connection, Join)
            self._check(join)
            if self._has_become_first(connection):
                return
            if not self._is_linked.wait(JOIN_S) or self._connection is None:
                raise ProtocolError(f"{connection.peer} joins too early")
            if not 0 <= join.link < self._offer.links:
                raise ProtocolError(
                    f"{connection.peer} joins as number {join.link} of {self._offer.links} connections"
                )
            self._admit(connection)
        except BaseException:
            connection.close()
            raise
        # The one that had this number has broken for the source. Here that may show much later.
        self._connection.add(nullcontext(connection), join.link)

    def _has_become_first(self, connection: Connection) -> bool:
        """Beside ssh, the first one to join is the first link. Others may join at the same time."""
        with self._taking_first:
            if not self._opened.certificate or self._first is not None:
                return False
            self._first = connection  # before the source hears of it: it says so over ssh at once
            try:
                self._admit(connection)
            except BaseException:
                self._first = None
                raise
            return True

    def _admit(self, connection: Connection) -> None:
        connection.outgoing.write(protocol.pack(Joined(self._offer.migration)))
        connection.deadline = None
