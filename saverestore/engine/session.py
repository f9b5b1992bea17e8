"""One save as a session: its phases in order, and one owner of what is undone when it fails.

    begin ─► send_rounds ─► suspend ─► send_last_round ─► write_state ─┬─► end ─► (resume)
               ▲               ▲                                       └─► checkpoint ─► resume ─┐
               └───────────────┴─────────────────────────────────────────────────────────────────┘

`engine.save` has the story for one image. A caller that needs something of the suspended domain before END (its
device model), or that decides later what becomes of it, drives the session itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from enum import Enum
from types import TracebackType
from typing import Self

from saverestore.engine.dirty import DirtySource, open_dirty_source
from saverestore.engine.downtime import DowntimeClock
from saverestore.engine.pipeline import workers
from saverestore.engine.policy import ALL_OF_IT, Decision, catches_up, decide
from saverestore.engine.progress import DomainState, Progress, SaveReport, Silence, peak_memory_bytes
from saverestore.engine.sending import PageSender
from saverestore.engine.settings import SaveSettings
from saverestore.errors import Advice, DomainError, ErrorName, Remedy, TransportError, fact_of
from saverestore.guest.ports import SaveGuest
from saverestore.interrupts import shield
from saverestore.stream.digest_written import WrittenDigest
from saverestore.stream.header_digest import integrity_fields
from saverestore.stream.layout import DRAFT_B_VERSION
from saverestore.stream.records import Checkpoint, Provenance, Record, StaticDataEnd
from saverestore.stream.trailer import TrailerBuffer
from saverestore.stream.versions import VersionCache
from saverestore.stream.writer import LibxcWriter
from saverestore.transport.base import ByteSink


class Phase(Enum):
    """How far a session is."""

    FRESH = "not begun"
    RUNNING = "the domain runs"
    SUSPENDED = "the domain is suspended"
    ALL_SENT = "all pages are sent"
    STATE_WRITTEN = "processors and devices are written"
    CHECKPOINTED = "a checkpoint is written"
    ENDED = "the stream has ended"


class OutOfPhase(RuntimeError):
    """A step of a session at a moment when it makes no sense: a mistake of the caller's."""


class Stalled(DomainError):
    """The rounds of a live save do not help, and the save was to be given up then."""

    name = ErrorName.SAVE_STALLED


class SaveSession:
    """A context manager. `report` is filled in while it works: also of a save that fails.

    When the block ends without an error, the domain is as the last phase left it: suspended after `end`, unless
    `resume` was called, which may also be called later. When it ends with one, the domain has its processor time
    back, log-dirty is off and the domain runs, whatever the phase, unless it was given away; notes on the error name
    what could not be undone.
    """

    def __init__(
        self,
        guest: SaveGuest,
        sink: ByteSink,
        settings: SaveSettings,
        progress: Progress | None = None,
        report: SaveReport | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.report = SaveReport() if report is None else report
        self.report.limits = settings.limits
        self._guest = guest
        self._sink = sink
        self._settings = settings
        self._progress = progress or Silence()
        self._clock = clock
        self._phase = Phase.FRESH
        self._began_at = clock()
        self._begun_at_byte = sink.offset
        self._stack = ExitStack()  # worker threads
        self._source: DirtySource | None = None
        self._downtime: DowntimeClock | None = None
        self._writer: LibxcWriter
        self._sender: PageSender | None = None
        self._given_away = False

    # ---- phases ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start to track dirty pages, and write all that comes before pages."""
        self._expect(Phase.FRESH)
        settings = self._settings
        with shield():  # log-dirty must not be left on without anybody to turn it off
            self._source, how = open_dirty_source(self._guest, settings.dirty, live=settings.live)
        self.report.dirty_source = self._source.name
        if how:
            self._progress.phase(how)
        pool = self._stack.enter_context(workers(settings.workers, "pages"))
        digest = (
            None if settings.digest is None else self._stack.enter_context(WrittenDigest(settings.digest))
        )
        self._writer = _writer(self._sink, self._guest, settings, digest)
        _write_head(self._writer, self._guest, settings)
        self._sender = PageSender(
            self._guest, self._writer, self._sink, self._source, pool, self._progress, settings
        )
        self._phase = Phase.RUNNING

    def send_rounds(self) -> None:
        """Rounds while the domain runs, until the policy says that the rest is best sent suspended.

        Nothing slows it down any more when this returns. `Stalled` when the save is to be given up; TransportError
        when the rest would not fit where the image goes.
        """
        self._expect(Phase.RUNNING)
        assert self._sender is not None and self._source is not None
        report, throttle, cpu_percent = self.report, self._settings.throttle, ALL_OF_IT
        broken_before = self._broken_s()
        while True:
            storage = self._settings.storage
            stored = None if storage is None else storage.stored_bytes
            sent = self._sender.send_round(number=len(report.rounds), final=False)
            dirty_pages, broken_s = self._source.known_dirty(), self._broken_s()
            stats = replace(
                sent,
                dirty_pages=dirty_pages,
                cpu_percent=cpu_percent,
                broken_s=broken_s - broken_before,
            )
            broken_before = broken_s
            if storage is not None and stored is not None and storage.stored_bytes is not None:
                took = storage.stored_bytes - stored
                stats = replace(stats, stored_bytes=took, room_bytes=storage.free_bytes())
            report.rounds.append(stats)
            self._progress.round_done(stats)
            verdict = report.verdict = decide(report.rounds, self._settings.limits)
            if verdict.lacks_room:
                raise TransportError(
                    f"{self._sink.name} has no room for the rest: {verdict.why}",
                    name=ErrorName.DISK_FULL,
                    remedies=[Advice(Remedy.OTHER_PLACE)],
                )
            if verdict.decision is Decision.ABORT:
                raise Stalled(
                    f"{verdict.why}: the predicted downtime is {verdict.prediction.downtime_s:.2f} s; "
                    "the save was ended, as requested"
                )
            if verdict.decision is Decision.THROTTLE and throttle is not None:
                cpu_percent = verdict.cpu_percent
                self._progress.phase(
                    f"{verdict.why}: the domain is left {cpu_percent}% of its processor time"
                )
                with shield():
                    throttle.limit(cpu_percent)
            elif verdict.decision is not Decision.CONTINUE:
                if self._settings.catch_up is not None and catches_up(report.rounds):
                    self._settings.catch_up()
                # When the link breaks meanwhile, what is written until it is back would be part of the downtime.
                if (
                    self._broken_s() == broken_before
                    or len(report.rounds) >= self._settings.limits.rounds_in_all
                ):
                    break
        if not verdict.wanted:
            self._progress.phase(f"{verdict.why}: the domain is suspended all the same")
        if throttle is not None:
            # Before it is asked to suspend: that is work for it, and what it writes meanwhile grows with the work.
            with shield():
                throttle.lift()

    def _broken_s(self) -> float:
        """See SaveSettings."""
        return 0.0 if self._settings.broken_s is None else self._settings.broken_s()

    def suspend(self) -> None:
        """Suspend the domain: the downtime begins. DomainError when it does not suspend."""
        self._expect(Phase.RUNNING)
        self._progress.phase("suspending the domain")
        if self._settings.before_suspending is not None:
            self._settings.before_suspending()
        self._downtime = DowntimeClock(self._clock)
        self.report.downtime = self._downtime.measured
        self._guest.suspend()
        self._downtime.suspended()
        self.report.domain_state = DomainState.SUSPENDED
        self._phase = Phase.SUSPENDED

    def send_last_round(self) -> None:
        """All pages that are still dirty."""
        self._expect(Phase.SUSPENDED)
        assert self._sender is not None and self._downtime is not None
        self.report.rounds.append(self._sender.send_round(number=len(self.report.rounds), final=True))
        self._downtime.last_round_sent()
        self._phase = Phase.ALL_SENT

    def write_state(self) -> None:
        """Processors and devices."""
        self._expect(Phase.ALL_SENT)
        for record in self._guest.end_records():
            self._writer.record(record)
        self._phase = Phase.STATE_WRITTEN

    def note(self, record: Record) -> None:
        """Write an optional record of what the suspended domain has outside its memory."""
        self._expect(Phase.STATE_WRITTEN)
        self._writer.record(record)

    def end(self, trailer: TrailerBuffer | None = None) -> None:
        """The image's digest, END, and what comes behind it in the file: the stream is complete, log-dirty is off.

        `trailer`: what comes behind; the digest covers it.
        """
        self._expect(Phase.STATE_WRITTEN)
        assert self._source is not None and self._downtime is not None
        has_digest = self._settings.digest is not None
        self._writer.end(trailer.following() if trailer is not None and has_digest else None)
        self._account()
        if trailer is not None:
            trailer.write_to(self._sink)
        self._stack.close()
        with shield():
            self._source.close()
        self._downtime.stream_ended()
        self._phase = Phase.ENDED

    def checkpoint(self) -> None:
        """CHECKPOINT in the place of END: the caller adds its own records, resumes, and sends further rounds.

        Only of a live save: dirty pages are tracked from one checkpoint to the next.
        """
        self._expect(Phase.STATE_WRITTEN)
        if not self._settings.live:
            raise OutOfPhase("a save that is not live has no checkpoints")
        assert self._downtime is not None
        self._writer.record(Checkpoint())
        self._downtime.stream_ended()
        self._phase = Phase.CHECKPOINTED

    def give_away(self) -> None:
        """From now on somebody else says who runs the domain: no failure resumes it, until `resume` is called."""
        self._expect(Phase.ENDED)
        self._given_away = True

    def resume(self, *, paused: bool = False) -> None:
        """Let the domain run again, after `end` or `checkpoint`; nothing when it runs already.

        `paused`: the caller has paused it, so that it does not run yet and its downtime has no end here. What the
        guest raises when it cannot be resumed is raised here; then it may be tried again.
        """
        if self.report.domain_state is DomainState.RUNNING:
            return
        self._expect(Phase.CHECKPOINTED, Phase.ENDED)
        assert self._downtime is not None
        with shield():
            self._given_away = False
            self._downtime.resuming()
            self._guest.resume()
            if paused:
                self.report.domain_state = DomainState.PAUSED
                return
            self._downtime.resumed()
            self.report.domain_state = DomainState.RUNNING
            if self._phase is Phase.CHECKPOINTED:
                self._phase = Phase.RUNNING

    def _expect(self, *phases: Phase) -> None:
        if self._phase not in phases:
            wanted = " or ".join(phase.value for phase in phases)
            raise OutOfPhase(f"this step is for when {wanted}; now {self._phase.value}")

    # ---- failure -----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._undo_all(error)
            return
        try:
            with shield():
                self._stop_tracking()
        except BaseException as second:  # a signal, perhaps: the block has failed after all
            self._undo_all(second)
            raise

    def _stop_tracking(self) -> None:
        """Nothing tracks or slows the domain any more, also where the block is left before the stream's end."""
        self._stack.close()
        if self._phase is Phase.ENDED:
            return
        if self._settings.throttle is not None:
            self._settings.throttle.lift()
        if self._source is not None:
            self._source.close()
        self._account()

    def _undo_all(self, error: BaseException) -> None:
        """In this order, each also when the one before it failed. The caller sees the first failure of all."""
        with shield():
            _undo(error, self._stack.close, "a worker did not end")
            if self._settings.throttle is not None:
                _undo(error, self._settings.throttle.lift, "the domain is still slowed down")
            if self._source is not None:
                _undo(error, self._source.close, "log-dirty is still on")
            if not self._given_away:
                self._resume_after(error)
            if self._phase is not Phase.ENDED:
                self._account()

    def _resume_after(self, error: BaseException) -> None:
        """The domain runs as before, unless it has stopped. Tried twice, as a device model may have been busy."""
        report = self.report
        was_running = report.domain_state is DomainState.RUNNING
        if (first := _failure_of(self._guest.resume)) is not None:
            second = _failure_of(self._guest.resume)
            if second is None:
                error.add_note(f"the domain was resumed by a second attempt only ({fact_of(first)})")
            else:
                error.add_note(f"the domain could not be resumed ({fact_of(second)})")
                report.domain_state = DomainState.STUCK
        if self._downtime is not None and not was_running:
            self._downtime.broken_off()
            if report.domain_state is not DomainState.STUCK:
                report.domain_state = DomainState.RUNNING

    def _account(self) -> None:
        """What the stream has cost so far."""
        report = self.report
        report.total_s = self._clock() - self._began_at
        report.stream_bytes = self._sink.offset - self._begun_at_byte
        report.pages_sent = sum(one.sent_pages for one in report.rounds)
        report.peak_memory_bytes = peak_memory_bytes()
        if self._sender is not None:
            report.resent_pages = max(0, report.pages_sent - self._sender.different_pages)
            report.zero_pages = self._sender.zero_pages
            report.coded = self._writer.coded


def _undo(error: BaseException, undo: Callable[[], None], otherwise: str) -> None:
    """Take a step back because of `error`, which gets a note with `otherwise` when that fails."""
    if (second := _failure_of(undo)) is not None:
        error.add_note(f"{otherwise} ({fact_of(second)})")


def _failure_of(step: Callable[[], None]) -> Exception | None:
    try:
        step()
    except Exception as error:
        return error
    return None


def _writer(
    sink: ByteSink, guest: SaveGuest, settings: SaveSettings, digest: WrittenDigest | None
) -> LibxcWriter:
    if settings.coding is None:
        return LibxcWriter(sink, guest.domain_type, guest.xen_version, digest=digest)
    return LibxcWriter(
        sink,
        guest.domain_type,
        guest.xen_version,
        DRAFT_B_VERSION,
        coding=settings.coding,
        checksums=settings.checksums,
        versions=VersionCache(settings.xor_cache_bytes) if settings.keeps_versions else None,
        digest=digest,
    )


def _write_head(writer: LibxcWriter, guest: SaveGuest, settings: SaveSettings) -> None:
    fields = dict(settings.provenance or {})
    if settings.digest is not None:
        fields["integrity"] = integrity_fields(settings.digest, settings.header_digest)
    if fields or settings.provenance is not None:
        writer.record(Provenance(fields))
    for record in guest.static_records():
        writer.record(record)
    writer.record(StaticDataEnd())
    for record in guest.memory_records():
        writer.record(record)
