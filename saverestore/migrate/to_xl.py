"""The source of a migration to a host with stock xl: a save whose commit is xl's hand-over.

As in `source`, but for what xl's protocol lacks: once its connection has ended, xl cannot be asked. So a grant
without a report is left to a person at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from saverestore.engine.progress import Progress, SaveReport
from saverestore.errors import (
    Advice,
    Remedy,
    SaveRestoreError,
    advise,
    fact_of,
)
from saverestore.migrate import addresses, xl_words
from saverestore.migrate.copies import incoming_name
from saverestore.migrate.handing_over import HandingOver, Move, dry_run_of, hand_over
from saverestore.migrate.handover import BEFORE_GRANT, Event
from saverestore.migrate.journal import Journals
from saverestore.migrate.messages import Abort, Grant, Message, Running
from saverestore.migrate.peers import MigrationAborted
from saverestore.migrate.requests import Migrated, MigrateRequest
from saverestore.migrate.side import Notes
from saverestore.migrate.xl_peer import XlReceiver
from saverestore.migrate.xl_recovery import THERE, granted_to_xl
from saverestore.migrate.xl_words import Left
from saverestore.operations.host import Host
from saverestore.operations.preflight import Findings
from saverestore.operations.prepare_save import Prepared
from saverestore.operations.requests import SaveRequest
from saverestore.toolstack import shared_disks
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

    @contextmanager
    def opening(move: Move) -> Iterator[XlHandOver]:
        shared_disks.check_movable(move.prepared.written)
        with connect(request) as peer, XlHandOver(move, peer) as one:
            yield one

    save = _save_of(request)
    return hand_over(
        request, save, progress, report, opening, journals=journals, host=host, process_ends=process_ends
    )


class XlHandOver(HandingOver):
    """See HandingOver: to stock xl. Opened, xl is there and reads."""

    def __init__(self, move: Move, peer: XlReceiver) -> None:
        super().__init__(move, peer.sink, with_xl=True)
        self._peer = peer
        self._why = ""
        self._there = incoming_name(move.prepared.written.name)

    def _greet(self) -> tuple[str, Notes]:
        """See HandingOver. xl keeps no journals."""
        self._peer.await_banner()
        return "", {THERE: self._there}

    def _offer(self) -> None:
        """See HandingOver: xl has read nothing yet, and has no word for it."""

    def _say(self, message: Message) -> None:
        """What xl has a word for."""
        if isinstance(message, Grant):
            self._peer.grant()
        elif isinstance(message, Abort):
            self._why = message.reason
            self._peer.give_up()

    def _await_ready(self) -> None:
        """See HandingOver."""
        self._peer.await_ready()

    def _answer_to_grant(self) -> Running | SaveRestoreError:
        """See HandingOver. A grant that has not left this process whole was none."""
        if not self._peer.is_granted:
            why = fact_of(self._here.unsaid) if self._here.unsaid else self._why
            self._peer.give_up()
            return MigrationAborted(f"{self.name} was not granted the domain: {why}")
        try:
            is_there = self._peer.await_report(self._request.settle_for_s)
        except SaveRestoreError as error:
            raise granted_to_xl(self._head, self._there, fact_of(error)) from error
        if is_there:
            return Running(self._head.migration, "paused" if self._request.paused else "running")
        return MigrationAborted(
            f"xl at {self.name} could not start the domain, and gave it back; it has nothing left of it"
        )

    # ---- the end -----------------------------------------------------------------------------------

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._aborted is not None and not self._peer.is_granted:
            self._note_what_is_left(self._aborted)  # the domain runs again: it does not wait for this
        super().__exit__(kind, error, trace)

    def _ended_by(self, error: BaseException) -> None:
        """See HandingOver. That xl ended is raised with where its reason is."""
        if self._side is None or self._side.journal is None:
            return
        with self._side.journal:
            if self._side.state not in BEFORE_GRANT:
                return
            better = self._ended_early(error) if isinstance(error, BrokenPeer) else error
            self._write_down(Event.FAILED, better)
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


def _save_of(request: MigrateRequest) -> SaveRequest:
    """The save that it is: an image as `xl save` writes it."""
    return replace(request.as_save(), plain=True)


def dry_run_to_xl(
    request: MigrateRequest,
    *,
    host: Host | None = None,
    journals: Journals | None = None,
    connect: ConnectXl = xl_receiver,
) -> Findings:
    """What stands in the way here, and whether xl is there. The domain is not touched; xl checks nothing before."""

    def ask(prepared: Prepared, findings: Findings) -> None:
        with findings.check():
            shared_disks.check_movable(prepared.written)
        with connect(request) as peer:
            peer.await_banner()
        findings.note(
            f"xl is there; what {request.destination.text} lacks for the domain, xl finds out during the migration "
            "only"
        )

    return dry_run_of(request, _save_of(request), ask, journals=journals, host=host)
