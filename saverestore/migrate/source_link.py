"""What the source sends over: the connections to the destination, their limit, and what they came to.

How both sides agree on them is drawn in `linking`.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

from saverestore.errors import UsageError
from saverestore.kernels.page import PAGE_SIZE
from saverestore.migrate import protocol
from saverestore.migrate.channel import Channel
from saverestore.migrate.control_socket import ControlSocket, Fields
from saverestore.migrate.data import MessageSink
from saverestore.migrate.handover import Role
from saverestore.migrate.limiting import CHANGE
from saverestore.migrate.linking import JOIN_S, heard_on
from saverestore.migrate.messages import Accepted, Join, Joined, Offer, ProtocolError
from saverestore.transport.connection import Connection
from saverestore.transport.link import Opened
from saverestore.transport.links import LinkedConnection
from saverestore.transport.paced import SMALLEST_RATE, PacedSink
from saverestore.transport.sockets import Address, connect

LOG = logging.getLogger(__name__)

RESUME_FOR_S = 60.0
SILENCE_S = 10.0
CONNECT_S = 3.0
"""A further connection is tried again: when the link is back, the first attempt should not still wait."""


@dataclass(frozen=True)
class LinkOptions:
    """What was asked for.

    `streams`: how many connections, where the destination can be reached by more than one. `resume_for_s`: how long a
    new one is waited for when the last has broken before the domain is suspended; 0: not at all. `silence_s`: one
    that brings nothing for so long has broken. `bwlimit`: bytes per second that are sent at most; None: no limit.
    """

    streams: int = 1
    resume_for_s: float = RESUME_FOR_S
    silence_s: float = SILENCE_S
    bwlimit: int | None = None


@dataclass
class LinkReport:
    """What the links of a migration came to, filled in at its end, also of one that fails.

    `streams`: how many connections there were at most; `reconnects`: how often there was one again after the last had
    broken; `broken_s`: how long there was none; `resent_pages`: what was sent again because a connection broke.
    """

    streams: int = 1
    reconnects: int = 0
    broken_s: float = 0.0
    resent_pages: int = 0


class LimitedSink(PacedSink):
    """What the image is written to: the peer gets it as DATA, at a rate at most. `rate`: bytes per second, or None.

    The kernel holds to it where it has the TCP connection; else this sink does.
    """

    def __init__(self, channel: Channel, rate: int | None) -> None:
        super().__init__(MessageSink(channel), None)
        self._channel = channel
        self.limit(rate)

    def limit(self, rate: int | None) -> None:
        """Hold to another rate from now on; from any thread."""
        self.limited_to = rate
        self.change(None if self._channel.connection.pace(rate) else rate)

    def requested(self, request: Fields) -> Fields:
        """Another process asks for a CHANGE: the rate before."""
        rate = request.get("rate")
        if rate is not None and not (type(rate) is int and SMALLEST_RATE <= rate < 1 << 63):
            raise UsageError(f"{rate} is not a rate")
        before = self.limited_to
        self.limit(rate)
        return {"before": before}


OpenLink = Callable[[Address, int, float], Connection]
"""Opens a further connection to an address, at another port; the last: how long it may be silent."""


def open_link(address: Address, port: int, timeout_s: float) -> Connection:
    """See OpenLink."""
    return connect(replace(address, port=port), timeout_s=timeout_s, connect_s=CONNECT_S)


class SourceLink:
    """See above. `report` is filled in by `close`."""

    def __init__(
        self,
        channel: Channel,
        address: Address,
        options: LinkOptions,
        report: LinkReport,
        open_link: OpenLink,
    ) -> None:
        self.sink = LimitedSink(channel, options.bwlimit)
        self._channel = channel
        self._address = address
        self._options = options
        self._report = report
        self._open_link = open_link
        self._control: ControlSocket | None = None
        self._linked: LinkedConnection | None = None

    def answer_requests(self, migration: uuid.UUID) -> None:
        """Until `close`, other processes of this host may change the limit."""
        self._control = ControlSocket(Role.SOURCE, migration, {CHANGE: self.sink.requested})
        self._control.__enter__()

    def begin(self, accepted: Accepted, may_resume: Callable[[], bool]) -> None:
        """Use links from here on, as the destination has accepted; or as before, where it takes one connection only.

        `may_resume`: asked when the last link has broken, whether a new one is waited for.
        """
        channel, options = self._channel, self._options
        channel.expect_within(options.silence_s)
        if not accepted.secret:
            if options.streams > 1:
                LOG.warning("%s takes one connection only", channel.peer)
            return
        join = Join(accepted.migration, accepted.secret)

        def make(first: Connection) -> Connection:
            self._linked = LinkedConnection(
                first,
                timeout_s=options.silence_s,
                resume_for_s=options.resume_for_s,
                may_resume=may_resume,
                open_link=lambda: self._joined(accepted.port, join),
                wanted=options.streams,
            )
            return self._linked

        channel.continue_over(make, join, Joined)
        self.sink.limit(self.sink.limited_to)

    def _joined(self, port: int, join: Join) -> Opened:
        """One more link."""
        connection = self._open_link(self._address, port, self._options.silence_s)
        try:
            connection.deadline = time.monotonic() + JOIN_S
            connection.outgoing.write(protocol.pack(join))
            if not isinstance(heard_on(connection), Joined):
                raise ProtocolError(f"{connection.peer} does not take a further connection")
            connection.deadline = None
        except BaseException:
            connection.close()
            raise
        return nullcontext(connection)

    def close(self) -> None:
        """The migration is over. A second time does nothing more. The connection is the channel's."""
        if self._control is not None:
            self._control.close()
        if self._linked is not None:
            self._report.streams = self._linked.most_links
            self._report.reconnects = self._linked.reconnects
            self._report.broken_s = self._linked.broken_s
            self._report.resent_pages = -(-self._linked.resent_bytes // PAGE_SIZE)


def takes_several(address: Address) -> bool:
    """Whether a destination at this address can be reached by more than one connection."""
    return address.kind in ("tcp", "tls")


def offering(offer: Offer, address: Address, options: LinkOptions) -> Offer:
    """The offer with what the destination is to know of the links.

    There are none where it cannot be reached again, and where one connection is wanted that is not to be resumed:
    that spares a copy of all pages on each side.
    """
    has_links = takes_several(address) and (options.streams > 1 or options.resume_for_s > 0)
    return replace(
        offer,
        links=options.streams if has_links else 0,
        resume_for_s=round(options.resume_for_s),
        silence_s=math.ceil(options.silence_s),
    )
