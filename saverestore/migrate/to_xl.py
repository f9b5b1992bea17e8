"""The source of a migration to a host with stock xl: a save whose commit is xl's hand-over.

As in `source`, but for what xl's protocol lacks: once its connection has ended, xl cannot be asked. So a grant
without a report is left to a person at once.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace

from saverestore.engine.progress import Progress, SaveReport
from saverestore.engine.settings import SaveSettings
from saverestore.errors import (
    Advice,
    DomainError,
    ErrorName,
    Remedy,
    SaveRestoreError,
    XenRefused,
    advise,
    fact_of,
)
from saverestore.guest.common.handles import XenError
from saverestore.migrate import addresses, xl_words
from saverestore.migrate.copies import incoming_name
from saverestore.migrate.handover import BEFORE_GRANT, Event, Role, State
from saverestore.migrate.journal import Journals, boot_id, now
from saverestore.migrate.messages import Abort, Grant, Message, Running
from saverestore.migrate.peers import MigrationAborted
from saverestore.migrate.records import Head
from saverestore.migrate.side import Side
from saverestore.migrate.source import Migrated, MigrateRequest
from saverestore.migrate.source_copy import SourceCopy, copy_not_destroyed
from saverestore.migrate.xl_peer import XlReceiver
from saverestore.migrate.xl_recovery import THERE, granted_to_xl
from saverestore.migrate.xl_words import Left
from saverestore.operations.commit import Commit
from saverestore.operations.host import Host, opened_host
from saverestore.operations.preflight import Findings
from saverestore.operations.prepare_save import Prepared, prepare
from saverestore.operations.requests import FinalState, SaveRequest
from saverestore.operations.save import save_domain
from saverestore.toolstack import moving, shared_disks
from saverestore.transport.connection import BrokenPeer

CONFIRM_S = 30.0
"""xl destroys a complete domain, with its devices, before it says so."""

ConnectXl = Callable[[MigrateRequest], AbstractContextManager[XlReceiver]]


@contextmanager
def xl_receiver(request: MigrateRequest) -> Iterator[XlReceiver]:
    """`xl migrate-receive` on the other host, by ssh. Unreachable when there is none."""
    command = xl_words.RECEIVE_PAUSED if request.paused else xl_words.RECEIVE
    with addresses.connected(request.destination, ssh=request.ssh, command=command) as connection:
        yield XlReceiver(connection)


def migrate_to_xl(
    request: MigrateRequest,
    progress: Progress,
    report: SaveReport | None = None,
    *,
    host: Host | None = None,
    journals: Journals | None = None,
    connect: ConnectXl = xl_receiver,
    process_ends: bool = False,
) -> Migrated:
    """Move a domain to a host with stock xl, live. When it returns, the domain is there and not here any more.

    On any error but InDoubt it runs here as before; a note says what xl may have left of it there.
    """
    report = SaveReport() if report is None else report
    journals = journals or Journals()
    with ExitStack() as stack:
        host = host or stack.enter_context(opened_host(process_ends=process_ends))
        opened: list[XlHandOver] = []

        @contextmanager
        def hand_over(save: SaveRequest, prepared: Prepared) -> Iterator[Commit]:
            _check_movable(prepared)
            with connect(request) as peer:
                one = XlHandOver(request, host, prepared, journals, peer, progress, report)
                opened.append(one)
                with one:
                    yield one

        try:
            save_domain(_save_of(request), progress, report, host=host, opened_commit=hand_over)
        except XenRefused as error:
            if not opened or not opened[0].is_there or error.name is not ErrorName.FINAL_STATE_FAILED:
                raise
            raise copy_not_destroyed(request.domain, request.destination.text, error) from error
        return opened[0].finished()


class XlHandOver:
    """See operations.commit.Commit. A context manager: opened, xl is there and reads."""

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
        peer: XlReceiver,
        progress: Progress,
        report: SaveReport,
    ) -> None:
        self.name = request.destination.text
        self.sink = peer.sink
        self.is_there = False
        """Whether xl has said that it has started the domain."""
        self._request = request
        self._host = host
        self._journals = journals
        self._peer = peer
        self._progress = progress
        self._report = report
        self._aborted: MigrationAborted | None = None
        self._granted_at = 0.0
        self._handover_s = 0.0
        self._why = ""
        self._there = incoming_name(request.name or prepared.domain.name)
        self._head = Head(
            role=Role.SOURCE,
            migration=uuid.uuid4(),
            name=prepared.domain.name,
            uuid=uuid.UUID(str(prepared.domain.info.uuid)),
            domid=prepared.domain.domid,
            boot=boot_id(),
            peer=self.name,
            peer_journals="",
            began=now(),
            paused=request.paused,
            with_xl=True,
        )
        self._side: Side | None = None

    def settings(self, wanted: SaveSettings) -> SaveSettings:
        """See Commit: Xen's own format is what xl reads."""
        return wanted

    def free_bytes(self) -> None:
        """See Commit: xl looks at its memory when the image comes."""
        return

    def __enter__(self) -> XlHandOver:
        self._peer.await_banner()
        head = self._head
        journal = self._journals.create(head, State.OFFERED, **{THERE: self._there})
        copy = SourceCopy(self._report, self._host, head.domid)
        self._side = Side(Role.SOURCE, head.migration, copy, journal=journal, say=self._say)
        try:
            moving.note(self._host.handles.store, head.domid, str(head.migration))
            self._side.happen(Event.HEARD_ACCEPTED)
            self._side.happen(Event.BEGUN)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def _say(self, message: Message) -> None:
        """What xl has a word for."""
        if isinstance(message, Grant):
            self._peer.grant()
        elif isinstance(message, Abort):
            self._why = message.reason
            self._peer.give_up()

    # ---- Commit ------------------------------------------------------------------------------------

    def finish(self) -> None:
        """See Commit: xl has all of it, and has made the domain."""
        self._here.happen(Event.STREAM_ENDED, length_bytes=self.sink.offset)
        self._peer.await_ready()
        self._progress.phase(f"granting it to {self.name}: from now on it is too late to cancel")

    def commit(self) -> None:
        """See Commit: GRANTED is on the disk, and xl has the permission to start. It does not raise."""
        self._granted_at = time.monotonic()
        self._here.happen(Event.HEARD_READY)

    def final_state(self, wanted: FinalState) -> FinalState:
        """See Commit: what xl reports. InDoubt when it does not.

        A grant that has not left this process whole was none.
        """
        if not self._peer.is_granted:
            why = fact_of(self._here.unsaid) if self._here.unsaid else self._why
            self._peer.give_up()
            self._aborted = MigrationAborted(f"{self.name} was not granted the domain: {why}")
            return FinalState.RUN
        try:
            self.is_there = self._peer.await_report(self._request.settle_for_s)
        except SaveRestoreError as error:
            raise granted_to_xl(self._head, self._there, fact_of(error)) from error
        self._handover_s = time.monotonic() - self._granted_at
        if self.is_there:
            return wanted
        self._aborted = MigrationAborted(
            f"xl at {self.name} could not start the domain, and gave it back; it has nothing left of it"
        )
        return FinalState.RUN

    # ---- the end -----------------------------------------------------------------------------------

    def finished(self) -> Migrated:
        """The save has ended, and made of the domain what xl's report asks for."""
        side = self._here
        assert side.journal is not None
        with side.journal:
            if (aborted := self._aborted) is not None:
                try:
                    side.happen(Event.HEARD_ABORTED, reason=fact_of(aborted))
                except (SaveRestoreError, XenError) as second:
                    aborted.add_note(f"that could not be written down: {second}")
                raise aborted
            side.happen(Event.HEARD_RUNNING)
        state = "paused" if self._request.paused else "running"
        return Migrated(Running(side.migration, state), self._report, self._handover_s)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._aborted is not None and not self._peer.is_granted:
            self._note_what_is_left(self._aborted)  # the domain runs again: it does not wait for this
        if error is None or self._side is None or self._side.journal is None:
            return
        with self._side.journal:
            if self._side.state not in BEFORE_GRANT:
                return
            better = self._ended_early(error) if isinstance(error, BrokenPeer) else error
            try:
                self._side.happen(Event.FAILED, reason=fact_of(better))
            except (SaveRestoreError, XenError) as second:
                better.add_note(f"that could not be written down: {second}")
            self._peer.give_up()
            self._note_what_is_left(better)
        if better is not error:
            raise better from error

    def _ended_early(self, error: BrokenPeer) -> MigrationAborted:
        better = MigrationAborted(
            f"xl at {self.name} ended before it was ready: what it has printed says why ({error})"
        )
        for note in getattr(error, "__notes__", []):
            better.add_note(note)
        better.remedies = error.remedies
        return better

    def _note_what_is_left(self, error: BaseException) -> None:
        """After `give_up`."""
        left = self._peer.left_there(CONFIRM_S)
        if left is Left.NOTHING:
            error.add_note(f"{self.name} has nothing left of it")
        elif left is Left.INCOMPLETE:
            error.add_note(f"{self.name} has an incomplete copy at most, which xl there removes")
        else:
            error.add_note(f"{self.name} has not confirmed that it removed its copy, which it does not start")
            advise(error, Advice(Remedy.DESTROY_THERE, self._there))

    @property
    def _here(self) -> Side:
        assert self._side is not None
        return self._side


def _save_of(request: MigrateRequest) -> SaveRequest:
    """The save that it is: an image as `xl save` writes it, with the name that the domain is to have there."""
    return replace(request.as_save(), plain=True, name=request.name)


def dry_run_to_xl(
    request: MigrateRequest, *, host: Host | None = None, connect: ConnectXl = xl_receiver
) -> Findings:
    """What stands in the way here, and whether xl is there. The domain is not touched; xl checks nothing before."""
    findings = Findings(dry=True)
    with findings.check(), ExitStack() as stack:
        host = host or stack.enter_context(opened_host())
        prepared = prepare(host, _save_of(request), findings, stack)
        try:
            there = request.destination.text
            findings.note(f"{prepared.domain} would be migrated to {there}")
            with findings.check():
                _check_movable(prepared)
            with connect(request) as peer:
                peer.await_banner()
            findings.note(
                f"xl is there; what {there} lacks for the domain, xl finds out during the migration only"
            )
        finally:
            prepared.guest.close()
    return findings


def _check_movable(prepared: Prepared) -> None:
    if unmovable := shared_disks.unmovable(prepared.config):
        raise DomainError(
            f"{prepared.config.name} has {', '.join(unmovable)}, which cannot be migrated; no changes were made",
            name=ErrorName.MIGRATION_UNSUPPORTED,
        )
