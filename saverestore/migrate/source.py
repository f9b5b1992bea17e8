"""The source: a save whose image goes to another host, and whose commit is the hand-over."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from saverestore.engine.auto_coding import AutoCoding
from saverestore.engine.progress import Progress, SaveReport
from saverestore.engine.settings import SaveSettings
from saverestore.errors import Advice, DomainError, ErrorName, Remedy, SaveRestoreError
from saverestore.interrupts import HEED_S
from saverestore.migrate import measuring
from saverestore.migrate.channel import Channel, SaidOtherwise
from saverestore.migrate.codecs import MeasuredSink, coding_for
from saverestore.migrate.handing_over import HandingOver, Move, dry_run_of, hand_over
from saverestore.migrate.handover import Event, Role, owns
from saverestore.migrate.journal import Journals
from saverestore.migrate.messages import (
    MAX_BODY_BYTES,
    Aborted,
    Accepted,
    KeepAlive,
    Message,
    Offer,
    ProtocolError,
    Ready,
    Refused,
    Running,
    for_people,
)
from saverestore.migrate.peers import (
    Connect,
    NotStarted,
    aborted_error,
    ask_again,
    findings_of,
    greeted,
    heard_of_grant,
    in_doubt,
    open_channel,
    otherwise_error,
)
from saverestore.migrate.requests import Migrated, MigrateRequest
from saverestore.migrate.side import Notes
from saverestore.migrate.source_link import (
    LinkReport,
    OpenLink,
    SourceLink,
    expected_route,
    open_link,
)
from saverestore.operations.host import Host
from saverestore.operations.preflight import Findings
from saverestore.operations.prepare_save import Prepared
from saverestore.stream.codecs import Coding
from saverestore.toolstack import shared_disks
from saverestore.transport.connection import within
from saverestore.transport.link_rate import LinkRate

LOG = logging.getLogger(__name__)

ASK_EVERY_S = 2.0
CONFIRM_S = 10.0

CATCH_UP_S = 5.0
"""So long what was sent may take to arrive before the domain is suspended."""


def migrate_domain(
    request: MigrateRequest,
    progress: Progress,
    report: SaveReport | None = None,
    *,
    link_report: LinkReport | None = None,
    host: Host | None = None,
    journals: Journals | None = None,
    connect: Connect = open_channel,
    open_link: OpenLink = open_link,
    process_ends: bool = False,
) -> Migrated:
    """Move a domain to another host, live. When it returns, the domain is there and not here any more.

    On any error but InDoubt and NotStarted it runs here as before; the other host has nothing left of it, unless a
    note says so.
    """
    report = SaveReport() if report is None else report
    link_report = LinkReport() if link_report is None else link_report

    @contextmanager
    def opening(move: Move) -> Iterator[HandOver]:
        with connect(request.destination, request.ssh) as channel:
            link = SourceLink(channel, request.destination, request.link, link_report, open_link)
            with HandOver(move, channel, link, connect) as one:
                yield one

    save = request.as_save()
    return hand_over(
        request, save, progress, report, opening, journals=journals, host=host, process_ends=process_ends
    )


class HandOver(HandingOver):
    """See HandingOver: to a host of ours. Opened, the destination has accepted."""

    def __init__(self, move: Move, channel: Channel, link: SourceLink, connect: Connect) -> None:
        self._rate = LinkRate(lambda: channel.connection.delivery_rate())
        sink = MeasuredSink(link.sink, self._rate)
        super().__init__(move, sink, with_xl=False)
        self._channel = channel
        self._link = link
        self._connect = connect
        self._is_given_up = False
        offer = offer_of(move.request, move.prepared, self._head.migration)
        self._offered = link.offering(offer)
        self._accepted: Accepted
        self._coding: Coding | AutoCoding | None = None

    def settings(self, wanted: SaveSettings) -> SaveSettings:
        """See Commit: pages are coded as was agreed on. The image's digest is enough: records have no checksums."""
        return replace(
            wanted,
            coding=self._coding,
            checksums=False,
            xor_cache_bytes=self._request.codecs.xor_cache_bytes,
            catch_up=self._catch_up if self._accepted.answers else None,
            broken_s=lambda: self._link.broken_s,
        )

    def _catch_up(self) -> None:
        """See SaveSettings. There may be megabytes in buffers on the way: on a slow link most of the downtime.

        While all links are broken it is waited for one: once the domain is suspended that ends the migration. What is
        written until then is sent in one more round.
        """
        position = self.sink.offset
        self._channel.say(KeepAlive())
        end = time.monotonic() + CATCH_UP_S
        while not self._channel.await_acknowledged(position, HEED_S):
            now = time.monotonic()
            if self._link.is_broken:
                end = now + CATCH_UP_S
            elif now >= end:
                return

    def finished(self) -> Migrated:
        """See HandingOver. NotStarted when it could not be started there."""
        migrated = super().finished()
        if migrated.answer.error:
            name = self._head.name
            raise NotStarted(
                f"{name} is at {self._channel.peer}, but could not be started there: {migrated.answer.error}",
                remedies=[Advice(Remedy.RECOVER_THERE, name)],
            )
        return migrated

    def _greet(self) -> tuple[str, Notes]:
        """See HandingOver."""
        hello = greeted(self._channel, self._journals)
        return hello.journals, {"host": for_people(hello.host, 100)}

    def _offer(self) -> None:
        """See HandingOver."""
        self._link.answer_requests(self._head.migration)
        self._channel.say(self._offered)
        accepted = self._accepted = self._channel.hear(Accepted)
        if (ahead := measuring.ahead_s(accepted)) is not None and abs(ahead) >= measuring.FAR_S:
            LOG.warning("%s; the guest may take that over", measuring.difference(self._channel.peer, ahead))
        self._link.begin(accepted, self._may_resume)
        self._coding = coding_for(self._request.codecs, accepted.codecs, self.name, self._rate)
        self._channel.listen()

    def _say(self, message: Message) -> None:
        """See HandingOver."""
        self._channel.say(message)

    def _may_resume(self) -> bool:
        """Whether a broken link is waited for: the domain runs here, and nobody gives it up."""
        return self._report.downtime is None and not self._is_given_up

    def _await_ready(self) -> None:
        """See HandingOver."""
        self._channel.hear(Ready)

    def _answer_to_grant(self) -> Running | SaveRestoreError:
        """See HandingOver."""
        answer = self._settled_answer()
        return answer if isinstance(answer, Running) else aborted_error(self.name, answer)

    def _settled_answer(self) -> Running | Aborted:
        """From this connection, or from others: until `settle_for_s` is over.

        No wait is without an end: signals are held back by now, and a peer may be alive that does not answer.
        """
        within_s = self._request.settle_for_s
        try:
            return heard_of_grant(self._channel, within_s=within_s)
        except SaveRestoreError as error:
            failure = error
        end = time.monotonic() + within_s
        while True:
            LOG.warning(
                "%s was granted to %s, and there is no answer: %s", self._head.name, self.name, failure
            )
            if time.monotonic() >= end:
                break
            time.sleep(min(ASK_EVERY_S, within_s))
            try:
                with self._connect(self._request.destination, self._request.ssh) as channel:
                    return ask_again(channel, self._journals, self._here, within_s=within_s)
            except SaveRestoreError as error:
                failure = error
        raise in_doubt(self._head, failure)

    # ---- the end -----------------------------------------------------------------------------------

    def _close_ways(self) -> None:
        """See HandingOver."""
        self._link.close()

    def _ended_by(self, error: BaseException) -> None:
        """See HandingOver. What the destination has said instead is raised as an error of its kind."""
        self._is_given_up = True  # nobody waits for a link to say so
        if isinstance(error, SaidOtherwise) and self._is_ours():
            better = otherwise_error(self.name, error)
            for note in getattr(error, "__notes__", []):
                better.add_note(note)
            self._give_up(better, gave_up_there=isinstance(error.message, Aborted | Refused))
            raise better from error
        self._give_up(error)

    def _is_ours(self) -> bool:
        return self._side is None or owns(Role.SOURCE, self._side.state)

    def _give_up(self, error: BaseException, *, gave_up_there: bool = False) -> None:
        """Write down that the domain runs again, and see that the destination has heard of it."""
        if self._side is None or self._side.journal is None:
            return
        with self._side.journal:
            self._close_ways()
            if not self._is_ours():
                return
            self._write_down(Event.HEARD_ABORTED if gave_up_there else Event.FAILED, error)
            if not gave_up_there:
                error.add_note(self._confirmation())

    def _confirmation(self) -> str:
        """Whether the destination has given up, too, for people."""
        if self._here.unsaid is None:
            connection = self._channel.connection
            with contextlib.suppress(SaveRestoreError), within(connection, CONFIRM_S):
                while not isinstance(self._channel.hear(Aborted, Accepted, Ready), Aborted):
                    pass  # said before it heard of that
                return f"{self.name} has nothing left of it"
            # Closing is not to wait once more, for what is on its way to somebody who may be gone.
            connection.deadline = time.monotonic()
        return f"{self.name} has not confirmed that it removed its copy: it does so when it notices, or by recovery"


def offer_of(
    request: MigrateRequest, prepared: Prepared, migration: uuid.UUID, *, dry_run: bool = False
) -> Offer:
    """What the destination is to know. DomainError when it would not fit into a message."""
    config = prepared.written
    text = config.to_json().decode()
    if len(text.encode()) > MAX_BODY_BYTES // 2:
        raise DomainError(
            f"the configuration of {config.name} has {len(text)} characters, too many for the migration protocol",
            name=ErrorName.MIGRATION_UNSUPPORTED,
        )
    shared_disks.check_movable(config)
    disks = shared_disks.of_config(prepared.config)  # as they are here, whatever they are called there
    return Offer(
        migration,
        text,
        max(config.target_kib, prepared.guest.populated_pages * 4),
        request.back or socket.gethostname(),
        paused=request.paused,
        dry_run=dry_run,
        disk_names=tuple(disk.name for disk in disks),
        disk_bytes=tuple(disk.bytes for disk in disks),
        disk_marks=tuple(disk.mark for disk in disks),
    )


def dry_run(
    request: MigrateRequest,
    *,
    host: Host | None = None,
    journals: Journals | None = None,
    connect: Connect = open_channel,
) -> Findings:
    """What a migration would do, and all that stands in its way on both hosts. The domain is not touched."""
    journals = journals or Journals()

    def ask(prepared: Prepared, findings: Findings) -> None:
        offer = offer_of(request, prepared, uuid.uuid4(), dry_run=True)
        with connect(request.destination, request.ssh) as channel:
            greeted(channel, journals)
            channel.say(offer)
            try:
                accepted = channel.hear(Accepted)
                findings.facts += [for_people(text) for text in accepted.facts]
                if (ahead := measuring.ahead_s(accepted)) is not None:
                    findings.facts.append(measuring.difference(channel.peer, ahead))
                if (route := expected_route(request.destination, request.link)) is not None:
                    findings.facts.append(f"route to {request.destination.host}: {route.for_people()}")
                if accepted.measures:
                    findings.facts.append(measuring.measure(channel, offer.memory_kib))
            except SaidOtherwise as error:
                if not isinstance(error.message, Refused):
                    raise ProtocolError(
                        f"{channel.peer} said {error.message.type.name} to an offer"
                    ) from error
                findings.errors += findings_of(error.message)

    return dry_run_of(request, request.as_save(), ask, journals=journals, host=host)
