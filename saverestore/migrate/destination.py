"""The destination: a restore whose image comes from another host, and whose domain waits until it is granted."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

from saverestore.engine.progress import DomainState, Progress, RestoreReport
from saverestore.errors import (
    Advice,
    DomainError,
    ErrorName,
    Remedy,
    SaveRestoreError,
    XenRefused,
    exit_code_of,
    fact_of,
    name_of,
)
from saverestore.guest.common.handles import XenError
from saverestore.migrate.channel import Channel, SaidOtherwise
from saverestore.migrate.codecs import with_codecs
from saverestore.migrate.copies import CopyOf, HostCopy, check_name_free, incoming_name
from saverestore.migrate.data import MessageSource
from saverestore.migrate.handover import BEFORE_READY, Event, Role, State
from saverestore.migrate.journal import Journal, Journals, boot_id, now
from saverestore.migrate.linking import IncomingLinks, OpenDoor
from saverestore.migrate.messages import (
    Abort,
    Aborted,
    Accepted,
    Ask,
    Grant,
    Hello,
    Offer,
    Refused,
    for_people,
)
from saverestore.migrate.peers import InDoubt, greeted
from saverestore.migrate.records import Head
from saverestore.migrate.recovery import answer, granted
from saverestore.migrate.side import Notes, Side
from saverestore.operations.host import Host
from saverestore.operations.image import opened_in
from saverestore.operations.preflight import Findings, vcpus
from saverestore.operations.requests import STDIN, RestoreRequest
from saverestore.operations.restore import check_fits, restoring
from saverestore.toolstack import config as configs
from saverestore.toolstack import shared_disks
from saverestore.toolstack.config import GuestConfig

LOG = logging.getLogger(__name__)

MAX_FINDINGS = 20
MAX_FINDING_CHARACTERS = 1000


@dataclass
class Received:
    """What came of it. `name`: the domain's; None where nothing came to be here."""

    name: str | None = None
    domid: int = -1


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
        with IncomingLinks(channel, first, None if first.dry_run else open_door) as links:
            return _Receiver(
                channel, host, progress, report, journals, copy_of, helper or {}, hello, first, links
            ).run()
    assert isinstance(first, Grant | Abort | Ask)
    answer(channel, host, journals, copy_of, first)
    return Received()


class _Receiver:
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
        self._links = links
        self._channel = channel
        self._host = host
        self._progress = progress
        self._report = report
        self._journals = journals
        self._helper = helper
        self._offer = offer
        self._request = RestoreRequest(
            image=STDIN, paused=True, require_digest=True, pages=offer.memory_kib // 4
        )
        self._config: GuestConfig | None = None
        self._hello = hello
        self._copy_of = copy_of

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
            self._channel.say(Accepted(offer.migration, tuple(findings.facts)))
            return Received()
        head = Head(
            role=Role.DESTINATION,
            migration=offer.migration,
            name=self._config.name,
            uuid=self._config.uuid,
            domid=-1,
            boot=boot_id(),
            peer=for_people(offer.source, 200),
            peer_journals=self._hello.journals,
            began=now(),
            paused=offer.paused,
        )

        def create(state: State, notes: Notes) -> Journal:
            return self._journals.create(head, state, **notes, host=for_people(self._hello.host, 100))

        side = Side(
            Role.DESTINATION,
            offer.migration,
            self._copy_of(self._host, head),
            create=create,
            say=lambda message: self._channel.say(with_codecs(self._links.completed(message))),
        )
        try:
            side.happen(Event.HEARD_OFFER)
            self._links.begin()
            domid = self._take(side, incoming_name(head.name))
        except BaseException as error:
            self._give_up(side, error)
            raise
        finally:
            if side.state in BEFORE_READY and side.journal is not None:
                side.journal.close()
        assert side.journal is not None
        with side.journal:
            self._await_grant(side, head)
        return self._watched(head, domid, side)

    def _preflight(self, config: GuestConfig, findings: Findings) -> None:
        toolstack = check_fits(self._host, config, self._request, findings)
        with findings.check():
            if unmovable := shared_disks.unmovable(config):
                raise DomainError(
                    f"{config.name} has {', '.join(unmovable)}, which cannot be migrated",
                    name=ErrorName.MIGRATION_UNSUPPORTED,
                )
        with findings.check():
            offer = self._offer
            found = shared_disks.different(config, offer.disk_names, offer.disk_bytes, offer.disk_marks)
            if found:
                raise DomainError(
                    f"this host sees other disks than the source: {'; '.join(found)}",
                    name=ErrorName.DISKS_DIFFER,
                )
        with findings.check():
            check_name_free(self._host, incoming_name(config.name))
        findings.note(
            f"there: {config.name}, {config.kind.upper()}, {vcpus(config.max_vcpus)}, {config.target_kib >> 10} MiB; "
            f"toolstack {toolstack}; it would be {'paused' if self._offer.paused else 'running'}"
        )

    def _take(self, side: Side, name: str) -> int:
        """Until the domain is whole and READY is said: its domid."""
        with (
            opened_in(MessageSource(self._channel), replace(self._request, name=name)) as image,
            ExitStack() as stack,
            restoring(self._host, image, self._request, self._helper, stack) as fresh,
        ):
            self._check_offered(image.config)
            side.happen(Event.BEGUN)
            domid = fresh.fill(self._progress, self._report)
            # Kept from now on, paused: what becomes of it is decided by the hand-over.
            fresh.activate()
            self._report.domain_state = DomainState.PAUSED
            self._links.wait_no_more()
            side.happen(Event.VERIFIED, domid=domid)
        return domid

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

    def _watched(self, head: Head, domid: int, side: Side) -> Received:
        if side.state is not State.RUNNING:
            raise XenRefused(
                f"{head.name} is this host's now, and could not be started",
                name=ErrorName.LIBXL_FAILED,
                remedies=[Advice(Remedy.RECOVER_MIGRATION, head.name)],
            )
        self._report.domain_state = DomainState.PAUSED if head.paused else DomainState.RUNNING
        try:
            self._host.watch(domid, head.name)
        except XenRefused as error:
            LOG.warning(
                "nothing watches %s: %s", head.name, error, extra={"remedies": [Advice(Remedy.WATCH, domid)]}
            )
        return Received(head.name, domid)

    def _give_up(self, side: Side, error: BaseException) -> None:
        """Nothing is left of it here, and the source hears why."""
        notes: Notes = {
            "reason": fact_of(error),
            "name": str(name_of(error)),
            "exit_code": int(exit_code_of(error)),
        }
        if side.state is None:  # a journal that could not be made
            side.say = None
            self._channel.say(Aborted(self._offer.migration, str(notes["reason"]), str(notes["name"])))
            return
        try:
            side.happen(Event.FAILED, **notes)
        except (SaveRestoreError, XenError) as second:
            error.add_note(f"its copy could not be taken away: {second}")


def _refusal(offer: Offer, findings: Findings) -> Refused:
    found = findings.errors[:MAX_FINDINGS]
    return Refused(
        offer.migration,
        tuple(str(one.name) for one in found),
        tuple(int(one.exit_code) for one in found),
        tuple(fact_of(one)[:MAX_FINDING_CHARACTERS] for one in found),
    )
