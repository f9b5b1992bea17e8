"""A round's pages on their way into the stream: read, selected and encoded on workers, written here, in order."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from saverestore.engine.copies import CopiedBatch, Copies
from saverestore.engine.dirty import DirtySource
from saverestore.engine.pipeline import ahead
from saverestore.engine.policy import RoundStats
from saverestore.engine.progress import Progress
from saverestore.engine.settings import SaveSettings
from saverestore.guest.ports import U8, U64, SaveGuest
from saverestore.stream.codecs import Coding
from saverestore.stream.coding_choice import Coded
from saverestore.stream.layout import entries_of, has_memory
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
"""The same where content digests find dirty pages: what of a batch is dirty is copied once more."""

SMALL_BATCH_PFNS = 512
"""Rounds with few pages are cut so that each worker has some, and some are written meanwhile, but not into less."""

CODED_BATCH_PFNS = 1024
"""The same where pages are coded, and so are in memory twice for a while."""

XOR_BATCH_PFNS = 512
"""The same where last versions are kept: these have the memory, and a page is there three times while it is coded."""

AHEAD = 2
CODED_AHEAD = 3
"""Batches begun, with one worker, before the one being written is done. Bounds memory, whatever the domain's size."""


@dataclass
class _PreparedBatch:
    """A batch on its way: read, and its PAGE_DATA record (None where none is needed)."""

    batch: CopiedBatch
    record: PreparedPages | None

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


class PageSender:
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
        self._coding = None if isinstance(settings.coding, Coding) else settings.coding
        is_coded = isinstance(settings.coding, Coding)
        self._depth = settings.workers + (CODED_AHEAD if is_coded else AHEAD) - 1
        self._workers = settings.workers
        self._batch_pfns = _batch_pfns(settings, source)
        self._hole_pfns = settings.hole_pfns or HOLE_PFNS
        self._copies = Copies(self._batch_pfns)
        self.zero_pages = 0
        self._was_sent = np.zeros(guest.nr_pfns, dtype=bool)
        self._deferred: list[U64] = []
        self._begun_pfns: deque[int] = deque()  # pfns of each batch begun and not yet written

    def send_round(self, *, number: int, final: bool) -> RoundStats:
        """One round. Pages that could not be read in a round are read again in the next."""
        started, begun_at, zero_before = time.monotonic(), self._sink.offset, self.zero_pages
        coded_before = self._writer.coded
        pfns = self._source.start_round(final=final)
        if self._deferred:
            pfns = np.union1d(pfns, np.concatenate(self._deferred))
            self._deferred = []
        # Holes and what is ballooned out take no time, and are nothing to a person.
        everything = len(pfns) == self._guest.nr_pfns
        left = min(len(pfns), self._guest.populated_pages) if everything else len(pfns)
        self._progress.round(number, left, final=final)
        sent = 0
        # One for each worker, and one that is written meanwhile: with more, what a batch costs by itself tells.
        fair = -(-len(pfns) // (self._workers + 1))
        batch_pfns = min(self._batch_pfns, max(fair, SMALL_BATCH_PFNS))

        def read(piece: _Piece) -> _PreparedBatch:
            return self._prepare(
                self._copies.of(self._guest.read_pages(piece.pfns, final=final, types=piece.types))
            )

        with (
            self._without_holes(pfns) as pieces,
            ahead(self._pool, read, self._batches(pieces, batch_pfns), depth=self._depth) as batches,
        ):
            for prepared in batches:
                batch = prepared.batch
                with batch:
                    sent += self._write(prepared)
                if len(batch.deferred):
                    self._deferred.append(batch.deferred)
                done = min(self._begun_pfns.popleft(), left)
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
            zero_pages=self.zero_pages - zero_before,
            coded=_since(coded_before, self._writer.coded),
        )

    @property
    def different_pages(self) -> int:
        """Of how many pfns a page was sent, however often."""
        return int(np.count_nonzero(self._was_sent))

    def _prepare(self, batch: CopiedBatch) -> _PreparedBatch:
        """What of a batch is to be sent, as one PAGE_DATA record. The batch is closed when this raises.

        Any thread: within a round, no two batches have a pfn in common. A pfn without memory gets an entry only
        when it had some before: holes cost nothing.
        """
        try:
            batch = self._source.select(batch)
            pfns, types = batch.pfns, batch.types
            wanted = has_memory(types)
            if not wanted.all():
                wanted |= self._was_sent[pfns]
                pfns, types = pfns[wanted], types[wanted]
            record = None
            if len(pfns):
                record = self._writer.prepare_pages(entries_of(pfns, types), batch.pages, zero=batch.zero)
            return _PreparedBatch(batch, record)
        except BaseException:
            batch.close()
            raise

    def _write(self, prepared: _PreparedBatch) -> int:
        """Write a record that has been prepared: how many pages of data it had."""
        if prepared.record is None:
            return 0
        self._writer.write_prepared(prepared.record)
        self.zero_pages += prepared.record.nr_zero
        batch = prepared.batch
        self._was_sent[batch.pfns[batch.with_data]] = True
        return batch.nr_data

    def _batches(self, pieces: Iterable[_Piece], batch_pfns: int) -> Iterator[_Piece]:
        """The pieces of a round, cut into batches of about as many pfns."""
        for piece in pieces:
            start = 0
            while start < len(piece.pfns):
                most = min(self._batch_pfns, self._batch_pfns_now())
                stop = end_of_batch(piece.pfns, start, min(batch_pfns, most), most)
                batch = piece.part(slice(start, stop))
                self._begun_pfns.append(len(batch.pfns))
                yield batch
                start = stop

    def _batch_pfns_now(self) -> int:
        return self._batch_pfns if self._coding is None else self._coding.batch_pfns

    @contextmanager
    def _without_holes(self, pfns: U64) -> Iterator[Iterable[_Piece]]:
        """The pfns of a round. When it is all of them, holes are left out: most of a PVH guest's pfns.

        Those that had memory when they were sent are no holes.
        """
        if len(pfns) != self._guest.nr_pfns:
            yield [_Piece(pfns)]
            return

        def populated_part(pfns: U64) -> _Piece:
            types = self._guest.types_of(pfns)
            if types is None:
                return _Piece(pfns)
            wanted = has_memory(types) | self._was_sent[pfns]
            return _Piece(pfns, types) if wanted.all() else _Piece(pfns[wanted], types[wanted])

        pieces = [pfns[start : start + self._hole_pfns] for start in range(0, len(pfns), self._hole_pfns)]
        with ahead(self._pool, populated_part, pieces, depth=HOLES_AHEAD) as populated_pieces:
            yield populated_pieces


def end_of_batch(pfns: U64, start: int, wanted: int, most: int) -> int:
    """Where a batch of sorted pfns ends that begins at `start` and has about `wanted` of them, and never over `most`.

    Not amid the pfns of a large page where that can be helped: whoever restores them gives it memory in one piece
    then. It has all of the last one rather than none, so that a round cut into equal batches has no small one left.
    """
    stop = start + wanted
    if stop >= len(pfns):
        return len(pfns)
    large = int(pfns[stop]) // LARGE_PAGE_PFNS
    # Not numpy's searchsorted: it gives the GIL back, which then takes far longer to come by than the search does.
    before = bisect_left(pfns, large * LARGE_PAGE_PFNS, start, stop)
    behind = bisect_left(pfns, (large + 1) * LARGE_PAGE_PFNS, stop, min(len(pfns), start + most + 1))
    if before == stop:
        return stop
    if behind - start <= most:
        return behind
    return before if before > start else stop


def _since(before: dict[str, Coded], now: dict[str, Coded]) -> dict[str, Coded]:
    """What was coded in between."""
    found = {name: one - before.get(name, Coded()) for name, one in now.items()}
    return {name: one for name, one in found.items() if one.batches}


def _batch_pfns(settings: SaveSettings, source: DirtySource) -> int:
    wanted = settings.batch_pfns or BATCH_PFNS
    if isinstance(settings.coding, Coding):
        return min(wanted, XOR_BATCH_PFNS if settings.keeps_versions else CODED_BATCH_PFNS)
    return min(wanted, DIGESTED_BATCH_PFNS) if source.select_copies else wanted
