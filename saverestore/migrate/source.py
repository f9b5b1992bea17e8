"""The source: a save whose image goes to another host, and whose commit is the hand-over."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from saverestore.engine.auto_coding import AutoCoding
from saverestore.engine.policy import Limits
from saverestore.engine.progress import Progress, SaveReport
from saverestore.engine.settings import SaveSettings
from saverestore.errors import (
    DomainError,
    ErrorName,
    SaveRestoreError,
    XenRefused,
    fact_of,
    name_of,
)
from saverestore.guest.common.handles import XenError
from saverestore.migrate.channel import Channel, SaidOtherwise
from saverestore.migrate.codecs import CodecOptions, MeasuredSink, coding_for
from saverestore.migrate.handover import Event, Role, State, owns
from saverestore.migrate.journal import Journals, boot_id, now
from saverestore.migrate.messages import (
    MAX_BODY_BYTES,
    Aborted,
    Accepted,
    Offer,
    ProtocolError,
    Ready,
    Refused,
    Running,
    for_people,
)
from saverestore.migrate.peers import (
    Connect,
    aborted_error,
    ask_again,
    findings_of,
    greeted,
    heard_of_grant,
    in_doubt,
    open_channel,
    otherwise_error,
)
from saverestore.migrate.records import Head
from saverestore.migrate.side import Side
from saverestore.migrate.source_copy import SourceCopy, copy_not_destroyed
from saverestore.migrate.source_link import (
    LinkOptions,
    LinkReport,
    OpenLink,
    SourceLink,
    offering,
    open_link,
)
from saverestore.operations.commit import Commit
from saverestore.operations.host import Host, opened_host
from saverestore.operations.preflight import Findings
from saverestore.operations.prepare_save import Prepared, prepare
from saverestore.operations.requests import FinalState, SaveRequest
from saverestore.operations.save import save_domain
from saverestore.stream.codecs import Coding
from saverestore.toolstack import choice, moving, shared_disks
from saverestore.transport.link_rate import LinkRate
from saverestore.transport.sockets import Address

LOG = logging.getLogger(__name__)

SETTLE_S = 60.0
"""Longer than the other host may take to notice that a link is dead."""
ASK_EVERY_S = 2.0
CONFIRM_S = 10.0


@dataclass(frozen=True)
class MigrateRequest:
    """What `pymigrate` was asked for. `name`: what the domain is called there; None: as here.

    `settle_for_s`: how long the other host is asked again when it does not answer to the grant. `back`: how it
    reaches this host; None: by this host's name. `link`: the connections to the destination, see LinkOptions.
    `codecs`: how pages are coded for it.
    """

    domain: str
    destination: Address
    name: str | None = None
    paused: bool = False
    dirty: str = "auto"
    limits: Limits = field(default_factory=Limits)
    suspend_timeout_s: float | None = None
    toolstack: str = choice.AUTO
    settle_for_s: float = SETTLE_S
    back: str | None = None
    ssh: Sequence[str] = ("ssh",)
    link: LinkOptions = field(default_factory=LinkOptions)
    codecs: CodecOptions = field(default_factory=CodecOptions)

    def as_save(self) -> SaveRequest:
        """The save that it is at the source."""
        return SaveRequest(
            domain=self.domain,
            image=self.destination.text,
            final_state=FinalState.DESTROY,
            live=True,
            dirty=self.dirty,
            limits=self.limits,
            suspend_timeout_s=self.suspend_timeout_s,
            toolstack=self.toolstack,
            # They are compared when it is offered. What comes is restored at once, and what the other host sees of
            # a shared file's times may be older.
            note_disks=False,
        )


@dataclass
class Migrated:
    """What came of it. `answer`: the destination's. `handover_s`: from the grant to that."""

    answer: Running
    report: SaveReport
    handover_s: float


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

    On any error but InDoubt it runs here as before; the other host has nothing left of it, unless a note says so.
    """
    report = SaveReport() if report is None else report
    link_report = LinkReport() if link_report is None else link_report
    journals = journals or Journals()
    with ExitStack() as stack:
        host = host or stack.enter_context(opened_host(process_ends=process_ends))
        opened: list[HandOver] = []

        @contextmanager
        def hand_over(save: SaveRequest, prepared: Prepared) -> Iterator[Commit]:
            with connect(request.destination, request.ssh) as channel:
                link = SourceLink(channel, request.destination, request.link, link_report, open_link)
                one = HandOver(request, host, prepared, journals, channel, link, connect, progress, report)
                opened.append(one)
                with one:
                    yield one

        try:
            save_domain(request.as_save(), progress, report, host=host, opened_commit=hand_over)
        except XenRefused as error:
            if not opened or opened[0].answer is None or error.name is not ErrorName.FINAL_STATE_FAILED:
                raise
            raise copy_not_destroyed(request.domain, request.destination.text, error) from error
        return opened[0].finished()


class HandOver:
    """See operations.commit.Commit. A context manager: opened, the destination has accepted."""

    hands_over = True
    stored_bytes = None
    has_holes = False
    left_behind = "the migration was aborted"

    def __init__(
        self,
        request: MigrateRequest,
        host: Host,
        prepared: Prepared,
        journals: Journals,
        channel: Channel,
        link: SourceLink,
        connect: Connect,
        progress: Progress,
        report: SaveReport,
    ) -> None:
        self.name = request.destination.text
        self._rate = LinkRate(lambda: channel.connection.delivery_rate())
        self.sink = MeasuredSink(link.sink, self._rate)
        self._link = link
        self._is_given_up = False
        self.answer: Running | None = None
        self._request = request
        self._host = host
        self._prepared = prepared
        self._journals = journals
        self._channel = channel
        self._connect = connect
        self._report = report
        self._refused_late: SaveRestoreError | None = None
        self._granted_at = 0.0
        self._handover_s = 0.0
        self._head = Head(
            role=Role.SOURCE,
            migration=uuid.uuid4(),
            name=prepared.domain.name,
            uuid=uuid.UUID(str(prepared.domain.info.uuid)),
            domid=prepared.domain.domid,
            boot=boot_id(),
            peer=request.destination.text,
            peer_journals="",
            began=now(),
        )
        self._progress = progress
        self._side: Side | None = None
        self._coding: Coding | AutoCoding | None = None

    def free_bytes(self) -> None:
        """See Commit: the destination has looked at its memory."""
        return

    def settings(self, wanted: SaveSettings) -> SaveSettings:
        """See Commit: pages are coded as was agreed on. The image's digest is enough: records have no checksums."""
        return replace(
            wanted,
            coding=self._coding,
            checksums=False,
            xor_cache_bytes=self._request.codecs.xor_cache_bytes,
        )

    # ---- beginning ---------------------------------------------------------------------------------

    def __enter__(self) -> HandOver:
        hello = greeted(self._channel, self._journals)
        offer = offer_of(self._request, self._prepared, self._head.migration)
        offer = offering(offer, self._request.destination, self._request.link)
        head = Head(**{**vars(self._head), "peer_journals": hello.journals})
        # On the disk before the other host hears of it: it may ask at any time.
        journal = self._journals.create(head, State.OFFERED, host=for_people(hello.host, 100))
        self._side = Side(
            Role.SOURCE,
            head.migration,
            SourceCopy(self._report, self._host, head.domid),
            journal=journal,
            say=self._channel.say,
        )
        try:
            self._link.answer_requests(head.migration)
            moving.note(self._host.handles.store, head.domid, str(head.migration))
            self._channel.say(offer)
            accepted = self._channel.hear(Accepted)
            self._link.begin(accepted, self._may_resume)
            self._coding = coding_for(self._request.codecs, accepted.codecs, self.name, self._rate)
            self._channel.listen()
            self._side.happen(Event.HEARD_ACCEPTED)
            self._side.happen(Event.BEGUN)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def _may_resume(self) -> bool:
        """Whether a broken link is waited for: the domain runs here, and nobody gives it up."""
        return self._report.downtime is None and not self._is_given_up

    # ---- Commit ------------------------------------------------------------------------------------

    def finish(self) -> None:
        """See Commit: the destination has all of it, and is ready to run the domain."""
        self._here.happen(Event.STREAM_ENDED, length_bytes=self.sink.offset)
        self._channel.hear(Ready)
        self._progress.phase(f"granting it to {self.name}: from now on it is too late to cancel")

    def commit(self) -> None:
        """See Commit: GRANTED is on the disk, and the destination is told.

        It does not raise. Where GRANTED may or may not be on the disk, the destination is told to give up, and
        `final_state` waits for what it says.
        """
        self._granted_at = time.monotonic()
        self._here.happen(Event.HEARD_READY)

    def final_state(self, wanted: FinalState) -> FinalState:
        """See Commit: what the destination answers. InDoubt when it does not."""
        answer = self._settled_answer()
        self._handover_s = time.monotonic() - self._granted_at
        if isinstance(answer, Running):
            self.answer = answer
            return wanted
        self._refused_late = aborted_error(self.name, answer)
        return FinalState.RUN

    def _settled_answer(self) -> Running | Aborted:
        """From this connection, or from others: until `settle_for_s` is over."""
        try:
            return heard_of_grant(self._channel)
        except SaveRestoreError as error:
            failure = error
        end = time.monotonic() + self._request.settle_for_s
        while True:
            LOG.warning(
                "%s was granted to %s, and there is no answer: %s", self._head.name, self.name, failure
            )
            if time.monotonic() >= end:
                break
            time.sleep(min(ASK_EVERY_S, self._request.settle_for_s))
            try:
                with self._connect(self._request.destination, self._request.ssh) as channel:
                    return ask_again(channel, self._journals, self._here)
            except SaveRestoreError as error:
                failure = error
        raise in_doubt(self._head, failure)

    # ---- the end -----------------------------------------------------------------------------------

    def finished(self) -> Migrated:
        """The save has ended, and made of the domain what the destination's answer asks for."""
        with contextlib.ExitStack() as stack:
            if self._here.journal is not None:
                stack.callback(self._here.journal.close)
            self._link.close()
            if self._refused_late is not None:
                self._here.happen(Event.HEARD_ABORTED, reason=fact_of(self._refused_late))
                raise self._refused_late
            assert self.answer is not None
            self._here.happen(Event.HEARD_RUNNING)
            return Migrated(self.answer, self._report, self._handover_s)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
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
        """The domain runs again already: write that down, and see that the destination has heard of it."""
        side = self._side
        if side is None or side.journal is None:
            return
        with contextlib.ExitStack() as stack:
            stack.callback(side.journal.close)
            self._link.close()
            if not self._is_ours():
                return
            event = Event.HEARD_ABORTED if gave_up_there else Event.FAILED
            try:
                side.happen(event, reason=fact_of(error), name=str(name_of(error)))
            except (SaveRestoreError, XenError) as second:
                error.add_note(f"that could not be written down: {second}")
            if event is Event.FAILED:
                error.add_note(self._confirmation())

    def _confirmation(self) -> str:
        """Whether the destination has given up, too, for people."""
        if self._here.unsaid is None:
            self._channel.connection.deadline = time.monotonic() + CONFIRM_S
            with contextlib.suppress(SaveRestoreError):
                while not isinstance(self._channel.hear(Aborted, Accepted, Ready), Aborted):
                    pass  # said before it heard of that
                return f"{self.name} has nothing left of it"
        return f"{self.name} has not confirmed that it removed its copy: it does so when it notices, or by recovery"

    @property
    def _here(self) -> Side:
        assert self._side is not None
        return self._side


def offer_of(
    request: MigrateRequest, prepared: Prepared, migration: uuid.UUID, *, dry_run: bool = False
) -> Offer:
    """What the destination is to know. DomainError when it would not fit into a message."""
    config = prepared.config
    if request.name is not None:
        config = config.replaced(name=request.name)
    text = config.to_json().decode()
    if len(text.encode()) > MAX_BODY_BYTES // 2:
        raise DomainError(
            f"the configuration of {config.name} has {len(text)} characters, too many for the migration protocol",
            name=ErrorName.MIGRATION_UNSUPPORTED,
        )
    if unmovable := shared_disks.unmovable(config):
        raise DomainError(
            f"{config.name} has {', '.join(unmovable)}, which cannot be migrated; no changes were made",
            name=ErrorName.MIGRATION_UNSUPPORTED,
        )
    disks = shared_disks.of_config(config)
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
    findings = Findings(dry=True)
    journals = journals or Journals()
    with findings.check(), ExitStack() as stack:
        host = host or stack.enter_context(opened_host())
        prepared = prepare(host, request.as_save(), findings, stack)
        try:
            findings.note(f"{prepared.domain} would be migrated to {request.destination.text}")
            offer = offer_of(request, prepared, uuid.uuid4(), dry_run=True)
            with connect(request.destination, request.ssh) as channel:
                greeted(channel, journals)
                channel.say(offer)
                try:
                    findings.facts += [for_people(text) for text in channel.hear(Accepted).facts]
                except SaidOtherwise as error:
                    if not isinstance(error.message, Refused):
                        raise ProtocolError(
                            f"{channel.peer} said {error.message.type.name} to an offer"
                        ) from error
                    findings.errors += findings_of(error.message)
        finally:
            prepared.guest.close()
    return findings
