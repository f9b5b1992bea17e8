"""What the source sends over: the connections to the destination, their limit, and what they came to.

How both sides agree on them is drawn in `linking`.
"""

from __future__ import annotations

import logging
import math
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

from saverestore.errors import Advice, Remedy, TransportError, UsageError, fact_of
from saverestore.interrupts import shield
from saverestore.kernels.page import PAGE_SIZE
from saverestore.migrate import protocol
from saverestore.migrate.certificate import OwnCertificate
from saverestore.migrate.channel import Channel
from saverestore.migrate.control_socket import ControlSocket, Fields
from saverestore.migrate.data import MessageSink
from saverestore.migrate.handover import Role
from saverestore.migrate.limiting import CHANGE
from saverestore.migrate.linking import JOIN_S, heard_on
from saverestore.migrate.messages import (
    HERE,
    NOWHERE,
    PORT,
    Accepted,
    Join,
    Joined,
    Offer,
    ProtocolError,
    for_people,
)
from saverestore.transport.connection import Connection, PeerTimeout, within
from saverestore.transport.hosts import on_our_interface
from saverestore.transport.link_keeper import Attempt
from saverestore.transport.links import LinkedConnection
from saverestore.transport.paced import SMALLEST_RATE, PacedSink
from saverestore.transport.route import Route, route_to
from saverestore.transport.sockets import Address, Unreachable, connect

LOG = logging.getLogger(__name__)

RESUME_FOR_S = 60.0
SILENCE_S = 10.0
CONNECT_S = 3.0
"""A further connection is tried again: when the link is back, the first attempt should not still wait."""
LONGEST_S = 1 << 31
"""As long as anybody likes, and as a message can say it."""
HOST = re.compile(r"[0-9A-Za-z:][0-9A-Za-z._:%-]{0,252}")
"""A name or address of a host."""
HANDSHAKE_S = 8.0
"""A processor without AES takes a second or two; and what swallows everything should be noticed soon."""


@dataclass(frozen=True)
class LinkOptions:
    """What was asked for.

    `streams`: how many connections, where the destination can be reached by more than one. `resume_for_s`: how long a
    new one is waited for when the last has broken before the domain is suspended; 0: not at all. `silence_s`: one
    that brings nothing for so long has broken. `bwlimit`: bytes per second that are sent at most; None: no limit.
    Of a destination by ssh: `over_ssh`: all goes over ssh; `data_address`: where TLS connections go; "": to where
    the destination listens.
    """

    streams: int = 1
    resume_for_s: float = RESUME_FOR_S
    silence_s: float = SILENCE_S
    bwlimit: int | None = None
    over_ssh: bool = False
    data_address: str = ""


@dataclass
class LinkReport:
    """What the links of a migration came to, filled in at its end, also of one that fails.

    `streams`: how many connections there were at most; `reconnects`: how often there was one again after the last had
    broken; `broken_s`: how long there was none; `resent_pages`: what was sent again because a connection broke.
    `over`: what the image went over: "ssh", "tls", "tcp" or "unix"; `fallback`: why that was ssh where it should have
    been TLS, else "". `cipher`: of TLS; `ktls`: whether the kernel encrypted what was sent. `congestion`: the
    kernel's congestion control, else "". `route`: by which interface the connections left this host; None: not known,
    as ssh's are.
    """

    streams: int = 1
    reconnects: int = 0
    broken_s: float = 0.0
    resent_pages: int = 0
    over: str = ""
    fallback: str = ""
    cipher: str = ""
    ktls: bool = False
    congestion: str = ""
    route: Route | None = None


class LimitedSink(PacedSink):
    """What the image is written to: the peer gets it as DATA, at a rate at most. `rate`: bytes per second, or None.

    The kernel holds to it where it has the TCP connection; else this sink does.
    """

    def __init__(self, channel: Channel, rate: int | None) -> None:
        super().__init__(MessageSink(channel), None)
        self._channel = channel
        self._limiting = threading.Lock()
        self.limited_to = rate
        self.limit_again()

    def limit_again(self) -> None:
        """The channel has another connection: hold to the same rate there. From any thread."""
        with shield(), self._limiting:  # another process may ask for another rate just then
            self._limit()

    def _limit(self) -> None:
        self.change(None if self._channel.connection.pace(self.limited_to) else self.limited_to)

    def requested(self, request: Fields) -> Fields:
        """Another process asks for a CHANGE: the rate before."""
        rate = request.get("rate")
        if rate is not None and not (type(rate) is int and SMALLEST_RATE <= rate < 1 << 63):
            raise UsageError(f"{rate} is not a rate")
        with self._limiting:
            before, self.limited_to = self.limited_to, rate
            self._limit()
        return {"before": before}


OpenLink = Callable[[Address, int, float, Callable[[], bool]], Connection]
"""Opens a further connection to an address, at another port; then: how long it may be silent, and whether it is given
up, which is asked ten times a second.
"""


def open_link(
    address: Address, port: int, timeout_s: float, is_given_up: Callable[[], bool] = lambda: False
) -> Connection:
    """See OpenLink."""
    return connect(
        replace(address, port=port),
        timeout_s=timeout_s,
        connect_s=CONNECT_S,
        handshake_s=HANDSHAKE_S,
        is_given_up=is_given_up,
    )


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
        self._certificate: OwnCertificate | None = None
        self._ssh: Connection | None = None  # used no more, but its end says something
        self._is_gone = False
        report.over = address.kind

    def answer_requests(self, migration: uuid.UUID) -> None:
        """Until `close`, other processes of this host may change the limit."""
        self._control = ControlSocket(Role.SOURCE, migration, {CHANGE: self.sink.requested})
        self._control.__enter__()

    def offering(self, offer: Offer) -> Offer:
        """The offer with what the destination is to know of the links.

        There are none where it cannot be reached again, and where one connection is wanted that is not to be resumed:
        that spares a copy of all pages on each side. Beside ssh there are always: it is the slower one.
        """
        options = self._options
        has_links = self._address.kind in ("tcp", "tls") and (options.streams > 1 or options.resume_for_s > 0)
        if self._address.kind == "ssh" and not options.over_ssh:
            try:
                self._certificate = OwnCertificate.made(socket.gethostname())
                has_links = True
            except UsageError as error:
                self._fall_back(fact_of(error))
        return replace(
            offer,
            links=options.streams if has_links else 0,
            resume_for_s=min(math.ceil(options.resume_for_s), LONGEST_S),
            silence_s=math.ceil(options.silence_s),
            certificate="" if self._certificate is None else self._certificate.text,
        )

    def begin(self, accepted: Accepted, may_resume: Callable[[], bool]) -> None:
        """Use links from here on, as the destination has accepted; or as before, where it takes one connection only.

        `may_resume`: asked when the last link has broken, whether a new one is waited for.
        """
        channel, options = self._channel, self._options
        channel.expect_within(options.silence_s)
        if not accepted.secret:
            self._take_one(for_people(accepted.reason, 300))
            self._tell_route()
            return
        self._address = replace(self._address, found=channel.connection.remote_host)
        join = Join(accepted.migration, accepted.secret)
        first: Connection | None = None
        if self._certificate is not None and (first := self._first_beside_ssh(accepted, join)) is None:
            channel.say(replace(join, place=NOWHERE))
            return

        def make(before: Connection) -> Connection:
            self._ssh = None if first is None else before
            self._linked = LinkedConnection(
                first or before,
                timeout_s=options.silence_s,
                resume_for_s=options.resume_for_s,
                may_resume=lambda: not self._is_gone and may_resume(),
                open_link=lambda attempt: nullcontext(self._joined_again(accepted.port, join, attempt)),
                wanted=options.streams,
            )
            return self._linked

        try:
            channel.continue_over(make, replace(join, place=HERE if first is None else PORT), Joined)
        except BaseException:
            if first is not None and self._linked is None:
                first.close()
            raise
        self.sink.limit_again()
        self._tell_route()

    def _tell_route(self) -> None:
        if self._address.kind in ("tcp", "tls"):
            self._report.route = route = route_to(
                self._address.found or self._address.host, self._address.way
            )
            if route is not None:
                LOG.info("connections to %s leave %s", self._channel.peer, route.for_people())

    def _take_one(self, reason: str) -> None:
        """The destination takes one connection only."""
        if self._certificate is not None:
            self._fall_back(reason or f"{self._channel.peer} takes one connection only")
        elif self._options.streams > 1 and not self._report.fallback:
            LOG.warning("%s takes one connection only%s", self._channel.peer, reason and f": {reason}")

    def _first_beside_ssh(self, accepted: Accepted, join: Join) -> Connection | None:
        """The first connection by TLS, which has joined; None where it cannot be had."""
        assert self._certificate is not None
        reached = self._address.host.rpartition("@")[2]
        told = on_our_interface(accepted.host, reached, self._address.way.interface)
        host = self._options.data_address or told or reached
        try:
            if not HOST.fullmatch(host):
                raise ProtocolError(f"{for_people(host, 100)!r} is no address")
            tls, _ = self._certificate.pinned(accepted.certificate)
            self._address = replace(self._address, kind="tls", host=host, tls=tls, found="")
            first = self._joined(accepted.port, join, Attempt(0))
            self._address = replace(self._address, found=first.remote_host)
        except (TransportError, ProtocolError) as error:
            self._fall_back(f"{for_people(host, 100)}, port {accepted.port}: {fact_of(error)}")
            return None
        self._report.over = self._address.kind
        return first

    def _fall_back(self, reason: str) -> None:
        """All goes over ssh, and a person hears why."""
        self._report.fallback = reason
        LOG.warning(
            "no TLS connection to %s (%s); everything goes over ssh, which is slower and is not resumed if it breaks",
            self._channel.peer,
            reason,
            extra={"remedies": [Advice(Remedy.LET_DATA_THROUGH)]},
        )

    def _joined_again(self, port: int, join: Join, attempt: Attempt) -> Connection:
        """One more, or one in place of one that broke."""
        try:
            return self._joined(port, join, attempt)
        except Unreachable as error:
            # Nobody listens any more, and what ssh has started has ended: no use to wait.
            is_refused = isinstance(error.__cause__, ConnectionRefusedError)
            if is_refused and self._ssh is not None and _has_ended(self._ssh):
                self._is_gone = True
            raise

    def _joined(self, port: int, join: Join, attempt: Attempt) -> Connection:
        """A connection that has joined at the destination's port."""
        connection = self._open_link(self._address, port, self._options.silence_s, attempt.is_given_up)
        try:
            connection.deadline = time.monotonic() + JOIN_S
            attempt.use(connection)
            connection.outgoing.write(protocol.pack(replace(join, link=attempt.number)))
            heard_on(connection, Joined)
            connection.deadline = None
        except BaseException:
            connection.close()
            raise
        return connection

    @property
    def is_broken(self) -> bool:
        """Whether there is no link, and one may come."""
        return self._linked is not None and not self._linked.nr_links

    @property
    def broken_s(self) -> float:
        """How long there was no link, in all, up to now."""
        return 0.0 if self._linked is None else self._linked.breaks.seconds

    def close(self) -> None:
        """The migration is over. A second time does nothing more. The connection is the channel's."""
        if self._control is not None:
            self._control.close()
        if self._linked is not None:
            self._report.streams = self._linked.most_links
            self._report.reconnects = self._linked.breaks.mended
            self._report.broken_s = self.broken_s
            self._report.resent_pages = -(-self._linked.resent_bytes // PAGE_SIZE)
        connection = self._channel.connection
        self._report.cipher, self._report.ktls = connection.cipher, connection.kernel_encrypts
        self._report.congestion = connection.congestion


def _has_ended(connection: Connection) -> bool:
    """Whether the peer has closed its side, of a connection on which it says nothing more."""
    try:
        with within(connection, 0.0):
            return connection.incoming.at_end()
    except PeerTimeout:
        return False
    except TransportError:
        return True


def expected_route(address: Address, options: LinkOptions) -> Route | None:
    """By which interface the connections to a destination at this address would leave; None where that is not known.

    By ssh that is where TLS connections would go. ssh's own may go anywhere: that is its configuration's.
    """
    if not takes_several(address, over_ssh=options.over_ssh):
        return None
    return route_to(options.data_address or address.host.rpartition("@")[2], address.way)


def takes_several(address: Address, *, over_ssh: bool = False) -> bool:
    """Whether a destination at this address can be reached by more than one connection."""
    return address.kind in ("tcp", "tls") or (address.kind == "ssh" and not over_ssh)
