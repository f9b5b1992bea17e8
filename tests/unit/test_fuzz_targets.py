"""Every target of `tests.fuzz` takes what its fuzzing begins with: without atheris, and once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from saverestore.stream.survey import survey
from tests.fuzz.corpus import SEEDS
from tests.fuzz.targets import TARGETS, opened, with_right_checksums

LONGEST_CORPUS_BYTES = 200_000


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_its_seeds_whole_cut_and_changed(name):
    seeds = SEEDS[name]()
    assert seeds
    assert sum(len(seed) for seed in seeds) < LONGEST_CORPUS_BYTES
    for seed in seeds:
        TARGETS[name](seed)
        TARGETS[name](seed[: len(seed) // 2])
        for at in range(0, len(seed), max(1, len(seed) // 40)):
            changed = bytearray(seed)
            changed[at] ^= 0x21
            TARGETS[name](bytes(changed))


@pytest.mark.parametrize("name", ["image", "draft-b"])
def test_the_seeds_are_whole_images(name):
    for seed in SEEDS[name]():
        with opened(seed) as source:
            assert survey(source).is_whole


def test_damage_in_a_body_gets_past_the_checksum():
    seed = bytearray(SEEDS["draft-b"]()[0])
    seed[-40] ^= 1
    with opened(bytes(seed)) as source:
        assert "CRC-32" in str(survey(source).error)
    with opened(with_right_checksums(bytes(seed))) as source:
        assert "CRC-32" not in str(survey(source).error)
