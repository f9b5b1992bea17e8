"""The hand-over of a domain to another host, as the source sees it: a save whose commit it is.

What is the same for a host of ours (`source`) and for stock xl (`to_xl`) is here; what is said to the other side, and
how it answers, is theirs.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Self

from saverestore.engine.progress import Progress, SaveReport
from saverestore.engine.settings import SaveSettings
from saverestore.errors import ErrorName, SaveRestoreError, XenRefused, fact_of, name_of
from saverestore.guest.common.handles import XenError
from saverestore.migrate.handover import Event, Role, State
from saverestore.migrate.journal import Journals, boot_id, now
from saverestore.migrate.messages import Message, Running
from saverestore.migrate.records import Head
from saverestore.migrate.requests import Migrated, MigrateRequest
from saverestore.migrate.side import Notes, Side
from saverestore.migrate.source_copy import SourceCopy, copy_not_destroyed
from saverestore.migrate.unsettled import check_settled
from saverestore.operations.commit import Commit
from saverestore.operations.host import Host, opened_host
from saverestore.operations.preflight import Findings
from saverestore.operations.prepare_save import Prepared, prepare
from saverestore.operations.requests import FinalState, SaveRequest
from saverestore.operations.save import save_domain
from saverestore.toolstack import moving
from saverestore.transport.base import ByteSink


@dataclass(frozen=True)
class Move:
    """What every hand-over needs, whoever takes the domain."""

    request: MigrateRequest
    host: Host
    prepared: Prepared
    journals: Journals
    progress: Progress
    report: SaveReport


class HandingOver(ABC):
    """See operations.commit.Commit. A context manager: opened, the other side takes the image.

    `sink`: the way there. `with_xl`: the other side is stock xl.
    """

    hands_over = True
    stored_bytes = None
    has_holes = False
    cache = None
    left_behind = "the migration was aborted"

    def __init__(self, move: Move, sink: ByteSink, *, with_xl: bool) -> None:
        request, prepared = move.request, move.prepared
        self.name = request.destination.text
        self.sink = sink
        self.answer: Running | None = None
        """What the other side has said of the domain that it has now."""
        self._request = request
        self._host = move.host
        self._journals = move.journals
        self._progress = move.progress
        self._report = move.report
        self._aborted: SaveRestoreError | None = None
        """Why the domain is this host's again, although it was granted."""
        self._granted_at = 0.0
        self._handover_s = 0.0
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
            with_xl=with_xl,
        )
        self._side: Side | None = None

    def free_bytes(self) -> None:
        """See Commit: how much memory is free there is for the other side to find out."""
        return

    def settings(self, wanted: SaveSettings) -> SaveSettings:
        """See Commit: in Xen's own format, which every other side reads."""
        return wanted

    # ---- what is said to the other side ------------------------------------------------------------

    @abstractmethod
    def _greet(self) -> tuple[str, Notes]:
        """The other side is there, and has not heard of the domain: what names its journals, and what to note."""

    @abstractmethod
    def _offer(self) -> None:
        """The other side takes the image from now on. The journal is on the disk: it may ask at any time."""

    @abstractmethod
    def _say(self, message: Message) -> None:
        """Whatever the table of the hand-over says."""

    @abstractmethod
    def _await_ready(self) -> None:
        """It has all of the image: until it is ready to run the domain."""

    @abstractmethod
    def _answer_to_grant(self) -> Running | SaveRestoreError:
        """What it says to the grant; an error where the domain is this host's again. InDoubt when nobody knows."""

    @abstractmethod
    def _ended_by(self, error: BaseException) -> None:
        """The domain runs here as before: see that the other side hears of it. `error` gets notes, or another is
        raised in its place."""

    def _close_ways(self) -> None:
        """Neither images nor requests come by further ways any more."""
        return

    # ---- beginning ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        peer_journals, notes = self._greet()
        head = replace(self._head, peer_journals=peer_journals)
        journal = self._journals.create(head, State.OFFERED, **notes)
        copy = SourceCopy(self._report, self._host, head.domid)
        self._side = Side(Role.SOURCE, head.migration, copy, journal=journal, say=self._say)
        try:
            moving.note(self._host.handles.store, head.domid, str(head.migration))
            self._offer()
            self._side.happen(Event.HEARD_ACCEPTED)
            self._side.happen(Event.BEGUN)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    # ---- Commit ------------------------------------------------------------------------------------

    def finish(self) -> None:
        """See Commit: the other side has all of it, and is ready to run the domain."""
        self._here.happen(Event.STREAM_ENDED, length_bytes=self.sink.offset)
        if self._here.unsaid is not None:
            raise self._here.unsaid  # who has not heard the end is never ready, and may be alive
        self._await_ready()
        self._progress.phase(f"granting it to {self.name}: from now on it is too late to cancel")

    def handed_over(self, error: BaseException | None = None) -> bool:
        """See Commit: not before it is granted."""
        del error
        return False

    def commit(self) -> None:
        """See Commit: GRANTED is on the disk, and the other side has heard it.

        It does not raise. Where GRANTED may or may not be on the disk, or may not have been sent, `final_state` finds
        out what holds.
        """
        self._granted_at = time.monotonic()
        self._here.happen(Event.HEARD_READY)

    def final_state(self, wanted: FinalState) -> FinalState:
        """See Commit: as the other side answers. InDoubt when it does not."""
        answer = self._answer_to_grant()
        self._handover_s = time.monotonic() - self._granted_at
        if isinstance(answer, Running):
            self.answer = answer
            return wanted
        self._aborted = answer
        return FinalState.RUN

    # ---- the end -----------------------------------------------------------------------------------

    def finished(self) -> Migrated:
        """The save has ended, and made of the domain what the other side's answer asks for."""
        side = self._here
        assert side.journal is not None
        with side.journal:
            self._close_ways()
            if self._aborted is not None:
                self._write_down(Event.HEARD_ABORTED, self._aborted)
                raise self._aborted
            assert self.answer is not None
            side.happen(Event.HEARD_RUNNING)
        return Migrated(self.answer, self._report, self._handover_s)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._ended_by(error)

    def _write_down(self, event: Event, error: BaseException) -> None:
        """The domain runs here again because of `error`, which hears of it where that cannot be written down."""
        try:
            self._here.happen(event, reason=fact_of(error), name=str(name_of(error)))
        except (SaveRestoreError, XenError) as second:
            error.add_note(f"that could not be written down: {second}")

    @property
    def _here(self) -> Side:
        assert self._side is not None
        return self._side


def hand_over(
    request: MigrateRequest,
    save: SaveRequest,
    progress: Progress,
    report: SaveReport,
    opening: Callable[[Move], AbstractContextManager[HandingOver]],
    *,
    journals: Journals | None,
    host: Host | None,
    process_ends: bool,
) -> Migrated:
    """Save the domain to whoever `opening` reaches. When it returns, the domain is there and not here any more.

    DomainError when an earlier migration of it is not settled. On any error but InDoubt it runs here as before.
    """
    journals = journals or Journals()
    with ExitStack() as stack:
        here = host or stack.enter_context(opened_host(process_ends=process_ends))
        opened: list[HandingOver] = []

        @contextmanager
        def opened_commit(_save: SaveRequest, prepared: Prepared) -> Iterator[Commit]:
            # From here on the domain is locked, until the save has ended: nobody begins a migration meanwhile.
            check_settled(journals, here, prepared.domain)
            move = Move(request, here, prepared, journals, progress, report)
            with opening(move) as one:
                opened.append(one)
                yield one

        try:
            save_domain(save, progress, report, host=here, opened_commit=opened_commit)
        except XenRefused as error:
            if not opened or opened[0].answer is None or error.name is not ErrorName.FINAL_STATE_FAILED:
                raise
            raise copy_not_destroyed(request.domain, request.destination.text, error) from error
        return opened[0].finished()


def dry_run_of(
    request: MigrateRequest,
    save: SaveRequest,
    ask: Callable[[Prepared, Findings], None],
    *,
    journals: Journals | None,
    host: Host | None,
) -> Findings:
    """What stands in the way here; `ask` adds what the other side says. The domain is not touched."""
    findings = Findings(dry=True)
    with findings.check(), ExitStack() as stack:
        host = host or stack.enter_context(opened_host())
        prepared = prepare(host, save, findings, stack)
        try:
            with findings.check():
                check_settled(journals or Journals(), host, prepared.domain)
            findings.note(f"{prepared.domain} would be migrated to {request.destination.text}")
            ask(prepared, findings)
        finally:
            prepared.guest.close()
    return findings
