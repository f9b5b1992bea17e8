"""Which coding lets a batch arrive first: chosen for each batch, from what was measured so far.

    seconds a byte of pages takes      workers      processor time of the coding / (cores that are free, workers)
                                       link         bytes after coding / bytes before / rate of the link
    the longer of both counts, as workers code the next batches while this one is sent

Without coding there is only the link. What a coding takes and gains is a moving average over the batches that had it
or over samples that are coded to find out: at most one a batch, rarely, and none of a coding that could not win
even if it made pages vanish. On a link that is faster than any coding that is all this costs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from saverestore.engine.sending import BATCH_PFNS, CODED_BATCH_PFNS, SMALL_BATCH_PFNS
from saverestore.stream.codecs import Codec, Coding, compress
from saverestore.stream.coding_choice import Trial
from saverestore.stream.layout import U8Array

NONE = Coding()
XOR = Coding(Codec.XOR)
CANDIDATES = (Coding(Codec.LZ4), Coding(Codec.ZSTD, 1), Coding(Codec.ZSTD, 3), Coding(Codec.ZSTD, 9), XOR)
"""From fast to small; those of them that both sides have are tried."""

SAMPLE_PAGES = 64
"""Coded to find out: a quarter of a MiB, a millisecond for most."""

LOOK_AGAIN_S = 5.0
"""Pages of another part of memory compress otherwise."""

HOPELESS_AGAIN_S = 30.0
"""The same for a coding that takes longer than the link would: also how fast the link is may change."""

WEIGHT = 0.3
"""Of the latest batch in a moving average."""

WORTH = 0.9
"""A coding must take so much of the time that sending as it is would take, or of the coding before: no more."""

VERSIONS_BELOW = 400e6
"""Bytes per second: on a faster link no version of a page is kept, as the copy costs more than a delta could gain."""

KNOWN_SHARE = 0.25
"""Of a batch: from here on deltas are tried, where nothing is known of them yet."""

LEAST_CORES = 0.05


class Rate(Protocol):
    """How fast the link is, see `transport.link_rate`."""

    @property
    def bytes_per_s(self) -> float | None:
        """None: nothing is known yet."""


class Cores(Protocol):
    """Which cores are free, see `transport.cores.IdleCores`."""

    def worked(self, seconds: float) -> None:
        """So much processor time was used for coding."""

    def available(self) -> float:
        """How many cores there are for coding."""


@dataclass
class _Measured:
    """Of one coding, for each byte of pages: processor seconds, and bytes that are left; and when that was.

    Of `Codec.XOR` the bytes that are left are of pages that have a version before.
    """

    seconds: float
    left: float
    at: float

    def update(self, seconds: float, left: float, at: float) -> None:
        self.seconds += WEIGHT * (seconds - self.seconds)
        self.left += WEIGHT * (left - self.left)
        self.at = at


class AutoCoding:
    """See above, and `settings.BatchCoding`. From any thread."""

    def __init__(
        self,
        candidates: Sequence[Coding],
        rate: Rate,
        cores: Cores,
        *,
        workers: int,
        clock: Callable[[], float] = time.monotonic,
        thread_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """`candidates`: codings that both sides have, from fast to small. `workers`: who code batches at one time."""
        self._candidates = tuple(candidates)
        self._rate = rate
        self._cores = cores
        self._workers = workers
        self._clock = clock
        self._thread_clock = thread_clock
        self._lock = threading.Lock()
        self._measured: dict[Coding, _Measured] = {}
        self._probing = False
        self._before = NONE
        """What was chosen last."""
        self.samples = 0
        """How many were coded to find out."""

    @property
    def batch_pfns(self) -> int:
        """See BatchCoding: small ones until the link is known, as these are sent as they are."""
        if self._rate.bytes_per_s is None:
            return SMALL_BATCH_PFNS
        return BATCH_PFNS if self._before == NONE else CODED_BATCH_PFNS

    @property
    def keeps_versions(self) -> bool:
        """See CodingChoice."""
        rate = self._rate.bytes_per_s
        return XOR in self._candidates and rate is not None and rate < VERSIONS_BELOW

    def choose(self, sample: Callable[[int], U8Array], known_share: Callable[[], float]) -> Coding:
        """See CodingChoice."""
        rate = self._rate.bytes_per_s
        if rate is None:
            return NONE
        with self._lock:
            cores = max(LEAST_CORES, min(self._workers, self._cores.available()))
            wanted = None if self._probing else self._to_be_measured(rate, cores)
            self._probing = self._probing or wanted is not None
        if wanted is not None:
            self._probe(wanted, sample)
        share = known_share() if self.keeps_versions else 0.0
        with self._lock:
            self._before = self._best(rate, cores, share)
            return self._before

    def note(self, trial: Trial) -> None:
        """See CodingChoice."""
        with self._lock:
            self._cores.worked(trial.seconds)
            if trial.coding == NONE or not trial.in_bytes:
                return
            left = trial.out_bytes / trial.in_bytes
            if trial.coding == XOR:
                if not trial.known_bytes:
                    return
                others = trial.in_bytes - trial.known_bytes
                left = max(0.0, (trial.out_bytes - others) / trial.known_bytes)
            self._measure(trial.coding, trial.seconds / trial.in_bytes, left)

    def _measure(self, coding: Coding, seconds: float, left: float) -> None:
        now = self._clock()
        if (found := self._measured.get(coding)) is None:
            self._measured[coding] = _Measured(seconds, left, now)
        else:
            found.update(seconds, left, now)

    def _to_be_measured(self, rate: float, cores: float) -> Coding | None:
        """Of which coding a sample is to be coded now: of none behind one that takes longer than the link would."""
        now = self._clock()
        for coding in self._candidates:
            if coding == XOR:
                continue
            found = self._measured.get(coding)
            if found is None:
                return coding
            is_hopeless = found.seconds / cores > WORTH / rate
            if now - found.at >= (HOPELESS_AGAIN_S if is_hopeless else LOOK_AGAIN_S):
                return coding
            if is_hopeless:
                return None
        return None

    def _is_old(self, coding: Coding) -> bool:
        found = self._measured.get(coding)
        return found is None or self._clock() - found.at >= LOOK_AGAIN_S

    def _probe(self, coding: Coding, sample: Callable[[int], U8Array]) -> None:
        try:
            pages = sample(SAMPLE_PAGES)
            began = self._thread_clock()
            coded = compress(coding, pages.reshape(-1).data)
            seconds = self._thread_clock() - began
            with self._lock:
                self.samples += 1
                self._measure(coding, seconds / pages.nbytes, len(coded) / pages.nbytes)
        finally:
            with self._lock:
                self._probing = False

    def _best(self, rate: float, cores: float, known_share: float) -> Coding:
        as_it_is = 1 / rate
        times = {NONE: as_it_is}
        for coding, found in self._measured.items():
            left = found.left if coding != XOR else known_share * found.left + 1 - known_share
            seconds = max(found.seconds / cores, left / rate)
            if seconds < WORTH * as_it_is:
                times[coding] = seconds
        if known_share >= KNOWN_SHARE and self._is_old(XOR):
            return XOR  # the batch is its own sample, and no larger than as it is
        best = min(times, key=lambda coding: times[coding])
        before = times.get(self._before)
        is_as_good = before is not None and times[best] > WORTH * before
        return self._before if is_as_good else best
