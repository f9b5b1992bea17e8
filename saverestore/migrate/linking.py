"""The links of a migration: how both sides agree on them, and how further ones join.

    source                                              destination
    OFFER     links, resume_for_s, silence_s  ──────►
              ◄────────────────  ACCEPTED     secret, port; or neither: one connection, as it is
    JOIN      secret                          ──────►
              ◄────────────────  JOINED       from here on this connection is a link, see transport.links
    JOIN      over another one, to that port  ──────►
              ◄────────────────  JOINED       so is that

What is said behind JOIN and JOINED has an order of its own, whichever link it takes. So everything else stays as it
is with one connection. Here is what both sides need, and the destination's; the source's is in `source_link`.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from types import TracebackType
from typing import Protocol, Self

from saverestore.errors import ErrorName, TransportError, fact_of
from saverestore.migrate import protocol
from saverestore.migrate.channel import SILENCE_S, Channel
from saverestore.migrate.messages import Accepted, Join, Joined, Message, Offer, ProtocolError
from saverestore.transport.connection import Connection
from saverestore.transport.door import Door
from saverestore.transport.links import LinkedConnection
from saverestore.transport.tls import Credentials
from saverestore.transport.tls_peers import Allowed

LOG = logging.getLogger(__name__)

MOST_STREAMS = 16
JOIN_S = 10.0
"""How long a link may take to join, once it is connected."""

SECRET_BYTES = 32


class OpenDoor(Protocol):
    """How further connections arrive at this host."""

    def __call__(
        self, first: Connection, arrived: Callable[[Connection], None], timeout_s: float
    ) -> AbstractContextManager[Door]:
        """Wait for them, see Door. `first`: the one that the peer has come by."""


def door_of(tls: tuple[Credentials, Allowed] | None) -> OpenDoor:
    """By TCP, to the address that the peer has come to; `tls`: by TLS."""

    def open_door(first: Connection, arrived: Callable[[Connection], None], timeout_s: float) -> Door:
        return Door(first.local_host, arrived, tls=tls, timeout_s=timeout_s)

    return open_door


def heard_on(connection: Connection) -> Message:
    """The next message on a connection that is no channel's."""
    header = protocol.unpack_header(connection.incoming.read(protocol.HEADER.size, "a message"))
    return protocol.unpack(header, connection.incoming.read(header.length_bytes, "a message"))


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
        self._secret = "" if self._open_door is None else secrets.token_hex(SECRET_BYTES)
        self._port = 0
        self._stack = ExitStack()
        self._connection: LinkedConnection | None = None
        self._is_linked = threading.Event()

    def __enter__(self) -> Self:
        self._channel.expect_within(self._silence_s)
        if self._open_door is not None:
            first = self._channel.connection
            try:
                door = self._open_door(first, self._arrived, self._silence_s)
            except TransportError as error:
                LOG.warning("there is one connection only: %s", fact_of(error))
                self._secret = ""
            else:
                self._port = self._stack.enter_context(door).port
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def completed(self, message: Message) -> Message:
        """ACCEPTED with what the source needs to know; any other message as it is."""
        if isinstance(message, Accepted):
            return replace(message, secret=self._secret, port=self._port)
        return message

    def begin(self) -> None:
        """ACCEPTED has been said: from here on use links, where the source has heard of them."""
        if not self._secret:
            return
        self._check(self._channel.hear(Join))

        def make(first: Connection) -> Connection:
            self._connection = LinkedConnection(
                first, timeout_s=self._silence_s, resume_for_s=float(self._offer.resume_for_s)
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
            message = heard_on(connection)
            if not isinstance(message, Join):
                raise ProtocolError(f"{connection.peer} said {message.type.name} where JOIN belongs")
            self._check(message)
            if not self._is_linked.wait(JOIN_S) or self._connection is None:
                raise ProtocolError(f"{connection.peer} joins too early")
            if self._connection.nr_links >= MOST_STREAMS:
                raise ProtocolError(f"{connection.peer} has {MOST_STREAMS} connections already")
            connection.outgoing.write(protocol.pack(Joined(self._offer.migration)))
            connection.deadline = None
        except BaseException:
            connection.close()
            raise
        self._connection.add(nullcontext(connection))
