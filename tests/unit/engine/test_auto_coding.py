"""Which coding is chosen, by what is known of the link, the codings and the cores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saverestore.engine import auto_coding
from saverestore.engine.auto_coding import CANDIDATES, NONE, XOR, AutoCoding
from saverestore.engine.sending import BATCH_PFNS, CODED_BATCH_PFNS, SMALL_BATCH_PFNS
from saverestore.engine.settings import XOR_CACHE_BYTES
from saverestore.stream.codecs import Codec, Coding
from saverestore.stream.coding_choice import Trial

LZ4, ZSTD1, ZSTD3, ZSTD9, _ = CANDIDATES
MB = 1e6
COSTS = {LZ4: (700, 0.55), ZSTD1: (400, 0.40), ZSTD3: (200, 0.36), ZSTD9: (40, 0.33)}
"""MB of pages a second of one core, and what is left of them."""


@dataclass
class World:
    """A link and cores as a test says, and a clock."""

    bytes_per_s: float | None = None
    cores: float = 2.0
    now: float = 0.0
    worked_s: float = 0.0

    def worked(self, seconds: float) -> None:
        self.worked_s += seconds

    def available(self) -> float:
        return self.cores

    def clock(self) -> float:
        return self.now


def choice_in(world: World, measured=COSTS, candidates=CANDIDATES) -> AutoCoding:
    choice = AutoCoding(candidates, world, world, workers=2, clock=world.clock)
    for coding, (rate, left) in measured.items():
        choice.note(Trial(coding, 1000_000, int(left * 1000_000), 1 / rate))
    return choice


def pages(nr: int) -> np.ndarray:
    return np.ones((nr, 4096), dtype=np.uint8)


def chosen(choice: AutoCoding, known: float = 0.0) -> Coding:
    return choice.choose(pages, lambda: known)


def test_until_the_link_is_known_batches_are_small_and_sent_as_they_are():
    choice = choice_in(World())
    assert chosen(choice) == NONE
    assert choice.batch_pfns == SMALL_BATCH_PFNS
    assert not choice.keeps_versions
    assert choice.samples == 0


def test_the_slower_the_link_the_stronger_the_coding():
    found = [chosen(choice_in(World(rate * MB))) for rate in (5000, 500, 120, 12)]
    assert found[0] == NONE
    assert found[1] in (LZ4, ZSTD1)
    assert found[2] == ZSTD3  # the strongest cannot keep up
    assert found[3] == ZSTD9


def test_without_idle_cores_nothing_is_coded_on_a_link_that_a_core_could_not_feed():
    assert chosen(choice_in(World(120 * MB, cores=0.1))) == NONE
    assert chosen(choice_in(World(3 * MB, cores=0.1))) != NONE


def test_pages_that_do_not_compress_are_sent_as_they_are():
    useless = {coding: (rate, 0.97) for coding, (rate, _) in COSTS.items()}
    assert chosen(choice_in(World(12 * MB), useless)) == NONE


def test_batches_that_are_coded_are_smaller():
    world = World(5000 * MB)
    choice = choice_in(world)
    chosen(choice)
    assert choice.batch_pfns == BATCH_PFNS
    world.bytes_per_s = 12 * MB
    chosen(choice)
    assert choice.batch_pfns == CODED_BATCH_PFNS


def test_who_is_as_good_does_not_take_over():
    world = World(120 * MB)
    choice = choice_in(world)
    before = chosen(choice)
    for coding in CANDIDATES[:-1]:  # all as good as one another now
        for _ in range(50):
            choice.note(Trial(coding, 1000_000, 399_000 if coding == ZSTD3 else 400_000, 0.001))
    assert chosen(choice) == before


def test_on_a_link_faster_than_any_coding_samples_are_rare():
    world = World(20_000 * MB)
    choice = choice_in(world, measured={})
    for _ in range(6000):  # a minute
        assert chosen(choice) == NONE
        world.now += 0.01
    # One of the fastest at first, and then each half a minute: those behind it are not even looked at.
    assert choice.samples <= 3


def test_each_coding_is_measured_by_a_sample_and_again_when_that_is_old():
    world = World(1 * MB)
    choice = choice_in(world, measured={})
    for _ in range(10):
        chosen(choice)
    assert choice.samples == 4
    world.now += auto_coding.LOOK_AGAIN_S
    for _ in range(10):
        chosen(choice)
    assert choice.samples == 8
    assert chosen(choice) != NONE


def test_deltas_are_tried_where_many_pages_are_known_and_kept_where_they_gain():
    choice = choice_in(World(12 * MB))
    assert choice.keeps_versions
    assert chosen(choice, known=0.1) != XOR
    assert chosen(choice, known=0.9) == XOR
    choice.note(Trial(XOR, 1000_000, 100_000 + 50_000, 0.001, known_bytes=900_000))
    assert chosen(choice, known=0.9) == XOR
    assert chosen(choice, known=0.2) != XOR
    for _ in range(50):
        choice.note(Trial(XOR, 1000_000, 950_000, 0.001, known_bytes=900_000))
    assert chosen(choice, known=0.9) != XOR


def test_on_a_fast_link_no_versions_are_kept_nor_where_the_destination_knows_no_deltas():
    assert not choice_in(World(1000 * MB)).keeps_versions
    assert not choice_in(World(12 * MB), candidates=CANDIDATES[:-1]).keeps_versions


def test_what_coding_took_counts_as_cores_that_are_there():
    world = World(12 * MB)
    choice = choice_in(world, measured={})
    choice.note(Trial(Coding(Codec.ZSTD, 1), 1000, 500, 0.25))
    assert world.worked_s == 0.25


def test_the_cache_of_the_command_line_is_the_engines():
    from saverestore.cli.pymigrate.codec import XOR_CACHE_MIB

    assert XOR_CACHE_MIB << 20 == XOR_CACHE_BYTES
