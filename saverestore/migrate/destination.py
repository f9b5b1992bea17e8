"""The destination: a restore whose image comes from another host, and whose domain waits until it is granted."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from saverestore.engine.progress import Progress, RestoreReport
from saverestore.errors import (
    Advice,
    DomainError,
    ErrorName,
    Remedy,
    SaveRestoreError,
    XenRefused,
    advise,
    fact_of,
    name_of,
)
from saverestore.migrate import measuring
from saverestore.migrate.channel import Channel, SaidOtherwise
from saverestore.migrate.codecs import with_codecs
from saverestore.migrate.copies import CopyOf, HostCopy, incoming_name
from saverestore.migrate.data import MessageSource
from saverestore.migrate.handover import Event, State
from saverestore.migrate.journal import Journals
from saverestore.migrate.linking import IncomingLinks, OpenDoor
from saverestore.migrate.messages import (
    Abort,
    Aborted,
    Accepted,
    Ask,
    Grant,
    Hello,
    Message,
    Offer,
    Ready,
    Refused,
    for_people,
)
from saverestore.migrate.peers import InDoubt, greeted
from saverestore.migrate.receiving import Received, Receiving
from saverestore.migrate.records import Head
from saverestore.migrate.recovery import answer, granted
from saverestore.migrate.side import Side
from saverestore.operations.host import Host
from saverestore.operations.image import opened_in
from saverestore.operations.preflight import Findings
from saverestore.operations.requests import STDIN, RestoreRequest
from saverestore.toolstack import config as configs
from saverestore.toolstack import shared_disks
from saverestore.toolstack.config import GuestConfig
from saverestore.words import counted

LOG = logging.getLogger(__name__)

MAX_FINDINGS = 20
MAX_FINDING_CHARACTERS = 1000


def receive(
    channel: Channel,
    host: Host,
    progress: Progress,
    report: RestoreReport | None = None,
    *,
    journals: Journals | None = None,
    copy_of: CopyOf = HostCopy,
    helper: Mapping[str, str] | None = None,
    open_door: OpenDoor | None = None,
) -> Received:
    """Serve one connection: take a domain that is offered, or answer to what a host asks of an earlier migration.

    When it returns, the domain is this host's and runs, or nothing is left. InDoubt when it is complete here and
    paused, and the source has not said whether it may run. On any other error nothing is left of it.
    """
    journals = journals or Journals()
    report = RestoreReport() if report is None else report
    hello = greeted(channel, journals)
    first = channel.hear(Offer, Grant, Abort, Ask)
    if isinstance(first, Offer):
        with (
            IncomingLinks(channel, first, None if first.dry_run else open_door) as links,
            _Receiver(
                channel, host, progress, report, journals, copy_of, helper or {}, hello, first, links
            ) as receiver,
        ):
            return receiver.run()
    assert isinstance(first, Grant | Abort | Ask)
    answer(channel, host, journals, copy_of, first)
    return Received()


class _Receiver(Receiving):
    """One offer."""

    def __init__(
        self,
        channel: Channel,
        host: Host,
        progress: Progress,
        report: RestoreReport,
        journals: Journals,
        copy_of: CopyOf,
        helper: Mapping[str, str],
        hello: Hello,
        offer: Offer,
        links: IncomingLinks,
    ) -> None:
        request = RestoreRequest(image=STDIN, paused=True, require_digest=True, pages=offer.memory_kib // 4)
        super().__init__(host, progress, report, journals, copy_of, helper, request)
        self._links = links
        self._channel = channel
        self._offer = offer
        self._hello = hello
        self._config: GuestConfig | None = None
        self._is_ready_said = False
        """Whether the source may have heard READY, and so may have granted the domain."""

    def _say(self, message: Message) -> None:
        """See Receiving."""
        self._is_ready_said |= isinstance(message, Ready)
        message = with_codecs(self._links.completed(message))
        if isinstance(message, Accepted):
            message = replace(message, answers=True, clock_ms=measuring.clock_ms())
        self._channel.say(message)

    def _is_whole(self) -> None:
        """See Receiving."""
        self._links.wait_no_more()

    def run(self) -> Received:
        """The whole of it."""
        offer = self._offer
        findings = Findings(dry=True)
        with findings.check():
            self._config = configs.parse(offer.config.encode())
            self._preflight(self._config, findings)
        if findings.errors:
            self._channel.say(_refusal(offer, findings))
            return Received()
        assert self._config is not None
        if offer.dry_run:
            self._channel.say(
                Accepted(offer.migration, tuple(findings.facts), clock_ms=measuring.clock_ms(), measures=True)
            )
            measuring.swallow(self._channel)
            return Received()
        head, side = self._begun(
            self._config,
            offer.migration,
            for_people(offer.source, 200),
            peer_journals=self._hello.journals,
            paused=offer.paused,
            host=for_people(self._hello.host, 100),
        )
        try:
            side.happen(Event.HEARD_OFFER)
            self._links.begin()
            named = replace(self._request, name=incoming_name(head.name))
            with opened_in(MessageSource(self._channel), named) as image:
                self._check_offered(image.config)
                domid = self._take(side, head, image)
        except BaseException as error:
            self._end(side, error)
            raise
        assert side.journal is not None
        with side.journal:
            self._await_grant(side, head)
        if side.state is not State.RUNNING:
            raise XenRefused(
                f"{head.name} is this host's now, and could not be started",
                name=ErrorName.LIBXL_FAILED,
                remedies=[Advice(Remedy.RECOVER_MIGRATION, head.name)],
            )
        return self._is_ours(head, domid)

    def _preflight(self, config: GuestConfig, findings: Findings) -> None:
        toolstack = self._check(config, findings)
        with findings.check():
            offer = self._offer
            found = shared_disks.different(config, offer.disk_names, offer.disk_bytes, offer.disk_marks)
            if found:
                raise DomainError(
                    f"this host sees other disks than the source: {'; '.join(found)}",
                    name=ErrorName.DISKS_DIFFER,
                )
        findings.note(
            f"there: {config.name}, {config.kind.upper()}, {counted(config.max_vcpus, 'vCPU')}, "
            f"{max(config.target_kib, self._offer.memory_kib) >> 10} MiB; "
            f"toolstack {toolstack}; it would be {'paused' if self._offer.paused else 'running'}"
        )

    def _check_offered(self, config: GuestConfig) -> None:
        """What comes is what was looked at."""
        assert self._config is not None
        offered = self._config.replaced(name=config.name)
        if (config.uuid, config.target_kib, config.kind) != (offered.uuid, offered.target_kib, offered.kind):
            raise DomainError(
                f"the image is not of the domain that was offered as {self._config.name}",
                name=ErrorName.PROTOCOL_VIOLATED,
            )

    def _await_grant(self, side: Side, head: Head) -> None:
        """READY: what the source says is done. InDoubt when it says nothing."""
        self._progress.phase(f"{head.name} is complete; waiting for the source's grant")
        try:
            message = self._channel.hear(Grant, Abort)
        except SaveRestoreError as error:
            side.happen(Event.LINK_LOST)
            raise InDoubt(
                f"{head.name} is complete here, paused, as {incoming_name(head.name)}, and {self._channel.peer} has "
                f"not said whether it may run: {fact_of(error)}",
                remedies=[Advice(Remedy.RECOVER_MIGRATION, head.name)],
            ) from error
        if isinstance(message, Abort):
            reason = for_people(message.reason)
            side.happen(Event.HEARD_ABORT, reason=reason)
            raise SaidOtherwise(self._channel.peer, message)
        granted(self._host, side, head)

    def _end(self, side: Side, error: BaseException) -> None:
        """Nothing is left of it here, unless READY was said: then it is kept, and `error` says so."""
        if side.journal is None:  # it could not be made
            self._channel.say(Aborted(self._offer.migration, fact_of(error), str(name_of(error))))
            return
        with side.journal:
            # The state does not tell: READY that could not be written down is the state all the same.
            unwritten = side.state is State.READY and not self._is_ready_said
            self._give_up(side, Event.READY_UNWRITTEN if unwritten else Event.FAILED, error)
            if self._is_ready_said and side.state is State.READY:
                error.add_note("its copy is kept here, complete and paused: the source may have granted it")
                advise(error, Advice(Remedy.RECOVER_MIGRATION, side.journal.log.head.name))


def _refusal(offer: Offer, findings: Findings) -> Refused:
    found = findings.errors[:MAX_FINDINGS]
    return Refused(
        offer.migration,
        tuple(str(one.name) for one in found),
        tuple(int(one.exit_code) for one in found),
        tuple(fact_of(one)[:MAX_FINDING_CHARACTERS] for one in found),
    )
