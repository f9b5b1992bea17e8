"""Saving a domain's memory and state as a libxc stream. `save` reads as the phases of the specification."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from saverestore.engine.copies import CopiedBatch, Copies
from saverestore.engine.dirty import (
    DigestSource,
    DirtySource,
    EverythingOnce,
    LogDirtySource,
)
from saverestore.engine.pipeline import ahead, workers
from saverestore.engine.policy import ALL_OF_IT, Decision, Limits, OnStall, RoundStats, decide
from saverestore.engine.progress import Progress, SaveReport, Silence, peak_memory_bytes
from saverestore.errors import Advice, DomainError, ErrorName, Remedy, advise
from saverestore.guest.ports import U8, U64, LogDirtyUnavailable, SaveGuest, Throttle
from saverestore.interrupts import shield
from saverestore.stream.codecs import Codec, Coding
from saverestore.stream.digest import Before, DigestAlgorithm, WrittenDigest, integrity_fields
from saverestore.stream.layout import DRAFT_B_VERSION, MIB, entries_of, has_memory
from saverestore.stream.records import Following, Provenance, StaticDataEnd
from saverestore.stream.versions import VersionCache
from saverestore.stream.writer import LibxcWriter, PreparedPages
from saverestore.transport.base import ByteSink

BATCH_PFNS = 4096
"""Pfns read at a time, and at most in one PAGE_DATA record: 16 MiB, four times what Xen's tools write, an eighth of
what they read. With 1024, what a batch costs beside its bytes (Python, threads waking one another) is half of all
processor time; under emulation, still a third with 2048. More would take more memory than a save may."""

LARGE_PAGE_PFNS = 512
"""Of 2 MiB: what a batch does not cut in two."""

HOLE_PFNS = 1 << 16
"""Pfns asked about at a time when looking for those that have memory at all."""

HOLES_AHEAD = 3
"""As many times are they asked about before the batches of the first are read."""

DIGESTED_BATCH_PFNS = 2048
"""The same where content digests tell what was written: what of a batch was is copied once more."""

SMALL_BATCH_PFNS = 512
"""Rounds with few pages are cut so that each worker has some, but not into less than this."""

CODED_BATCH_PFNS = 1024
"""The same where pages are coded, and so are in memory twice for a while."""

XOR_BATCH_PFNS = 512
"""The same where last versions are kept: these have the memory, and a page is there three times while it is coded."""

WORKERS = 2
AHEAD = 2
CODED_AHEAD = 3
"""Batches begun, with one worker, before the one being written is done. Bounds memory, whatever the domain's size."""

XOR_CACHE_BYTES = 48 * MIB
"""With the batches, last versions stay below 64 MiB and 16 MiB for each worker, as `tools/bench memory` finds."""


@dataclass(frozen=True)
class SaveSettings:
    """How to save. `dirty`: "auto", "log" or "digest", where pages written meanwhile are known from (live).

    `digest`: the algorithm of the image's digest, or None for an image without. `before`: what of the file comes
    before the stream, for PROVENANCE to tell next to the digest. `following`: gives what will come behind it, for the
    digest to cover; it is called when the guest is suspended, and only where there is a digest.
    `coding`: how pages are coded in an image of the dialect `draft-b`; None for Xen's own format. `xor_cache_bytes`:
    how much memory is spent on last versions of pages, for `Codec.XOR` and a live save.
    `throttle`: what slows the domain down, when `limits` say that it is to be.
    """

    live: bool = False
    dirty: str = "auto"
    limits: Limits = field(default_factory=Limits)
    provenance: dict[str, Any] | None = None
    digest: DigestAlgorithm | None = None
    before: Before | None = None
    following: Callable[[], Following] | None = None
    workers: int = WORKERS
    coding: Coding | None = None
    xor_cache_bytes: int = XOR_CACHE_BYTES
    throttle: Throttle | None = None

    def __post_init__(self) -> None:
        if self.limits.on_stall is OnStall.THROTTLE and self.throttle is None:
            raise ValueError("there is nothing to throttle the domain with")


class Stalled(DomainError):
    """The rounds of a live save do not help, and the save was to be given up then."""

    name = ErrorName.SAVE_STALLED


def save(
    guest: SaveGuest,
    sink: ByteSink,
    settings: SaveSettings,
    progress: Progress | None = None,
    report: SaveReport | None = None,
) -> SaveReport:
    """Write `guest` to `sink` as one libxc stream, from image header to END.

    When it returns, the guest is suspended, log-dirty is off, and nothing slows it down: what becomes of it is the
    caller's to say. When it raises, log-dirty is off and the guest runs as before.
    What was done goes into `report` while it is done, so it is known of a save that fails, too.
    """
    progress = progress or Silence()
    report = SaveReport() if report is None else report
    report.limits = settings.limits
    started, begun_at = time.monotonic(), sink.offset
    source: DirtySource | None = None
    sender: _PageSender | None = None
    try:
        with shield():  # log-dirty must not be left on without anybody to turn it off
            source, how = _dirty_source(guest, settings)
        report.dirty_source = source.name
        if how:
            progress.phase(how)
        with ExitStack() as stack:
            pool = stack.enter_context(workers(settings.workers, "pages"))
            digest = None if settings.digest is None else stack.enter_context(WrittenDigest(settings.digest))
            writer = _writer(sink, guest, settings, digest)
            _write_head(writer, guest, settings)
            sender = _PageSender(guest, writer, sink, source, pool, progress, settings)
            if settings.live:
                _send_live(sender, source, settings, report, progress)
            progress.phase("suspending the domain")
            report.suspended_at = time.monotonic()
            guest.suspend()
            report.suspend_s = time.monotonic() - report.suspended_at
            report.rounds.append(sender.send_round(number=len(report.rounds), final=True))
            state_at = time.monotonic()
            for record in guest.end_records():
                writer.record(record)
            covers = settings.following if settings.digest is not None else None
            writer.end(covers and covers())
        with shield():
            source.close()
        report.state_s = time.monotonic() - state_at
        report.downtime_s = time.monotonic() - report.suspended_at
        return report
    except BaseException as error:
        with shield():
            # In this order, each also when the one before it failed; what is told is the first failure of all.
            if settings.throttle is not None:
                _undo(error, settings.throttle.lift, "the domain is still slowed down")
            if source is not None:
                _undo(error, source.close, "log-dirty is still on")
            _undo(error, guest.resume, "it did not go on at once")
            if report.suspended_at:
                report.downtime_s = time.monotonic() - report.suspended_at
        raise
    finally:
        report.total_s = time.monotonic() - started
        report.stream_bytes = sink.offset - begun_at
        report.pages_sent = sum(one.sent_pages for one in report.rounds)
        report.peak_memory_bytes = peak_memory_bytes()
        if sender is not None:
            report.resent_pages = max(0, report.pages_sent - sender.different_pages)
            report.zero_pages = sender.zero_pages


def _undo(error: BaseException, undo: Callable[[], None], otherwise: str) -> None:
    """Take a step back because of `error`; should that fail as well, `error` is told with `otherwise`."""
    try:
        undo()
    except Exception as second:
        error.add_note(f"{otherwise} ({second})")


def _dirty_source(guest: SaveGuest, settings: SaveSettings) -> tuple[DirtySource, str]:
    """The hypervisor's record where it can be had, content digests elsewhere; and the words to tell it by."""
    if not settings.live:
        return EverythingOnce(guest.nr_pfns), ""
    why = ""
    if settings.dirty != "digest":
        try:
            return LogDirtySource(guest), "pages written meanwhile are found by the hypervisor's log-dirty"
        except LogDirtyUnavailable as error:
            if settings.dirty == "log":
                advise(error, Advice(Remedy.DIRTY_BY_DIGEST))
                raise
            why = f" ({error})"
    return DigestSource(guest.nr_pfns), f"pages written meanwhile are found by content digests{why}"


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
        versions=VersionCache(settings.xor_cache_bytes) if _keeps_versions(settings) else None,
        digest=digest,
    )


def _keeps_versions(settings: SaveSettings) -> bool:
    """Whether pages are coded by what was sent before: in a single round none has a version before."""
    return settings.live and settings.coding is not None and settings.coding.codec is Codec.XOR


def _batch_pfns(settings: SaveSettings, source: DirtySource) -> int:
    if settings.coding is None:
        return min(BATCH_PFNS, DIGESTED_BATCH_PFNS) if isinstance(source, DigestSource) else BATCH_PFNS
    return min(BATCH_PFNS, XOR_BATCH_PFNS if _keeps_versions(settings) else CODED_BATCH_PFNS)


def _write_head(writer: LibxcWriter, guest: SaveGuest, settings: SaveSettings) -> None:
    fields = dict(settings.provenance or {})
    if settings.digest is not None:
        fields["integrity"] = integrity_fields(settings.digest, settings.before)
    if fields or settings.provenance is not None:
        writer.record(Provenance(fields))
    for record in guest.static_records():
        writer.record(record)
    writer.record(StaticDataEnd())
    for record in guest.memory_records():
        writer.record(record)


def _send_live(
    sender: _PageSender, source: DirtySource, settings: SaveSettings, report: SaveReport, progress: Progress
) -> None:
    """Rounds while the domain runs, until the policy says that the rest is best sent suspended.

    Nothing slows it down any more when this returns.
    """
    throttle, cpu_percent = settings.throttle, ALL_OF_IT
    while True:
        sent = sender.send_round(number=len(report.rounds), final=False)
        stats = replace(sent, dirty_pages=source.known_dirty(), cpu_percent=cpu_percent)
        report.rounds.append(stats)
        progress.round_done(stats)
        verdict = report.verdict = decide(report.rounds, settings.limits)
        if verdict.decision is Decision.ABORT:
            raise Stalled(
                f"{verdict.why}: the domain would stand still for about {verdict.prediction.downtime_s:.2f} s; "
                "the save was given up, as was asked for"
            )
        if verdict.decision is Decision.THROTTLE and throttle is not None:
            cpu_percent = verdict.cpu_percent
            progress.phase(f"{verdict.why}: the domain is left {cpu_percent}% of its processor time")
            with shield():
                throttle.limit(cpu_percent)
        elif verdict.decision is not Decision.CONTINUE:
            break
    if not verdict.wanted:
        progress.phase(f"{verdict.why}: the domain is suspended all the same")
    if throttle is not None:
        # Before it is asked: suspending is work, and what a domain writes meanwhile goes by work, not by time.
        with shield():
            throttle.lift()


@dataclass
class _Ready:
    """A batch on its way: read, and its record prepared (None where there is nothing to tell)."""

    batch: CopiedBatch
    prepared: PreparedPages | None

    def close(self) -> None:
        self.batch.close()


@dataclass
class _Piece:
    """Some of a round's pfns, and their types where these are known already."""

    pfns: U64
    types: U8 | None = None

    def part(self, part: slice) -> _Piece:
        """Some of it."""
        return _Piece(self.pfns[part], None if self.types is None else self.types[part])

    def close(self) -> None:
        """Nothing is held."""


class _PageSender:
    """Sends rounds of pages: read, select and encode on workers, write in order on this thread."""

    def __init__(
        self,
        guest: SaveGuest,
        writer: LibxcWriter,
        sink: ByteSink,
        source: DirtySource,
        pool: ThreadPoolExecutor,
        progress: Progress,
        settings: SaveSettings,
    ) -> None:
        self._guest = guest
        self._writer = writer
        self._sink = sink
        self._source = source
        self._pool = pool
        self._progress = progress
        self._depth = settings.workers + (AHEAD if settings.coding is None else CODED_AHEAD) - 1
        self._workers = settings.workers
        self._batch_pfns = _batch_pfns(settings, source)
        self._copies = Copies(self._batch_pfns)
        self.zero_pages = 0
        self._was_sent = np.zeros(guest.nr_pfns, dtype=bool)
        self._deferred: list[U64] = []
        self._asked: deque[int] = deque()  # pfns of each batch begun and not yet written

    def send_round(self, *, number: int, final: bool) -> RoundStats:
        """One round. Pages that could not be read in a round are read again in the next."""
        started, begun_at = time.monotonic(), self._sink.offset
        pfns = self._source.start_round(final=final)
        if self._deferred:
            pfns = np.union1d(pfns, np.concatenate(self._deferred))
            self._deferred = []
        # Holes and what is ballooned out take no time, and are nothing to a person.
        everything = len(pfns) == self._guest.nr_pfns
        left = min(len(pfns), self._guest.populated_pages) if everything else len(pfns)
        self._progress.round(number, left, final=final)
        sent = 0
        fair = -(-len(pfns) // (2 * self._workers))
        batch_pfns = min(self._batch_pfns, max(fair, SMALL_BATCH_PFNS))

        def read(some: _Piece) -> _Ready:
            return self._prepare(
                self._copies.of(self._guest.read_pages(some.pfns, final=final, types=some.types))
            )

        with (
            self._without_holes(pfns) as pieces,
            ahead(self._pool, read, self._batches(pieces, batch_pfns), depth=self._depth) as batches,
        ):
            for ready in batches:
                batch = ready.batch
                with batch:
                    sent += self._write(ready)
                if len(batch.deferred):
                    self._deferred.append(batch.deferred)
                done = min(self._asked.popleft(), left)
                left -= done
                self._progress.pages(done, self._sink.offset)
        self._progress.pages(left, self._sink.offset)
        self._guest.check_layout()
        return RoundStats(
            number,
            sent,
            dirty_pages=0 if final else None,
            seconds=time.monotonic() - started,
            sent_bytes=self._sink.offset - begun_at,
            final=final,
        )

    @property
    def different_pages(self) -> int:
        """Of how many pfns a page was sent, however often."""
        return int(np.count_nonzero(self._was_sent))

    def _prepare(self, batch: CopiedBatch) -> _Ready:
        """What of a batch is to be sent, as one PAGE_DATA record. The batch is closed when this raises.

        Any thread: within a round, no two batches have a pfn in common. A pfn without memory is only told when it
        had some before: holes cost nothing.
        """
        try:
            batch = self._source.select(batch)
            pfns, types = batch.pfns, batch.types
            told = has_memory(types)
            if not told.all():
                told |= self._was_sent[pfns]
                pfns, types = pfns[told], types[told]
            prepared = None
            if len(pfns):
                prepared = self._writer.prepare_pages(entries_of(pfns, types), batch.pages, zero=batch.zero)
            return _Ready(batch, prepared)
        except BaseException:
            batch.close()
            raise

    def _write(self, ready: _Ready) -> int:
        """Write a record that has been prepared: how many pages of data it had."""
        if ready.prepared is None:
            return 0
        self._writer.write_prepared(ready.prepared)
        self.zero_pages += ready.prepared.nr_zero
        batch = ready.batch
        self._was_sent[batch.pfns[batch.with_data]] = True
        return batch.nr_data

    def _batches(self, pieces: Iterable[_Piece], batch_pfns: int) -> Iterator[_Piece]:
        """The pieces of a round, cut into batches of as many pfns at most."""
        for piece in pieces:
            start = 0
            while start < len(piece.pfns):
                stop = start + batch_pfns
                if stop < len(piece.pfns):
                    # Not amid the pfns of a large page: whoever restores them gives it memory in one piece then.
                    head = piece.pfns[stop] - piece.pfns[stop] % np.uint64(LARGE_PAGE_PFNS)
                    cut = int(np.searchsorted(piece.pfns, head))
                    stop = cut if cut > start else stop
                batch = piece.part(slice(start, stop))
                self._asked.append(len(batch.pfns))
                yield batch
                start = stop

    @contextmanager
    def _without_holes(self, pfns: U64) -> Iterator[Iterable[_Piece]]:
        """The pfns of a round. When it is all of them, holes are left out: most of a PVH guest's pfns.

        Those that had memory when they were sent are no holes.
        """
        if len(pfns) != self._guest.nr_pfns:
            yield [_Piece(pfns)]
            return

        def look(some: U64) -> _Piece:
            types = self._guest.types_of(some)
            if types is None:
                return _Piece(some)
            wanted = has_memory(types) | self._was_sent[some]
            return _Piece(some, types) if wanted.all() else _Piece(some[wanted], types[wanted])

        pieces = [pfns[start : start + HOLE_PFNS] for start in range(0, len(pfns), HOLE_PFNS)]
        with ahead(self._pool, look, pieces, depth=HOLES_AHEAD) as looked_at:
            yield looked_at
