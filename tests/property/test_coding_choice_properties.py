"""Whatever coding each record of a stream gets, what is decoded is what was sent: also over links that break.

The base of a delta is right because there is one row of bytes, each of which arrives once: a link that breaks has
its bytes sent again, and no record is ever coded anew. So what the encoder takes for sent last, the reader has.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_links import SCRIPTS, Ends
from stream_samples import MemorySink, source_of

from saverestore.stream import DomainType, LibxcReader, LibxcWriter, PageData, PageType
from saverestore.stream.codecs import Codec, Coding
from saverestore.stream.coding_choice import Trial
from saverestore.stream.layout import U8Array, entries_of, has_data
from saverestore.stream.records import HvmContext, StaticDataEnd
from saverestore.stream.versions import VersionCache
from saverestore.transport.base import ByteSink, ByteSource

NR_PFNS = 4
CODINGS = [
    Coding(),
    Coding(Codec.XOR),
    Coding(Codec.DEFLATE, 1),
    Coding(Codec.ZSTD, 1),
    Coding(Codec.ZSTD, 9),
    Coding(Codec.LZ4),
]


class AnyCoding:
    """A CodingChoice that goes by what was drawn: (coding, whether versions are kept) for each record."""

    def __init__(self, drawn: list[tuple[Coding, bool]]) -> None:
        self._drawn = drawn
        self._at = 0
        self.trials: list[Trial] = []

    @property
    def keeps_versions(self) -> bool:
        return self._drawn[self._at % len(self._drawn)][1]

    def choose(self, sample: Callable[[int], U8Array], known_share: Callable[[], float]) -> Coding:
        assert 0 < len(sample(2)) <= 2
        assert 0 <= known_share() <= 1
        coding, _ = self._drawn[self._at % len(self._drawn)]
        self._at += 1
        return coding

    def note(self, trial: Trial) -> None:
        assert 0 <= trial.known_bytes <= trial.in_bytes
        self.trials.append(trial)


@st.composite
def records(draw) -> list[tuple[U8Array, U8Array]]:
    """Rounds of a domain that writes: entries, and pages of those with data. The same pfns come again and again."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    memory = random.integers(0, 3, (NR_PFNS, 4096), dtype=np.uint8)
    found = []
    for _ in range(draw(st.integers(1, 8))):
        pfns = np.array(draw(st.lists(st.integers(0, NR_PFNS - 1), min_size=1, unique=True)))
        kinds = draw(st.lists(st.sampled_from([0] * 8 + [1, 2, 3]), min_size=len(pfns), max_size=len(pfns)))
        types = np.array([[PageType.NOTAB, PageType.XTAB, PageType.L1TAB, PageType.XALLOC][k] for k in kinds])
        for pfn in draw(st.lists(st.integers(0, NR_PFNS - 1), max_size=6)):
            # The same again after something else: with a wrong base, that is what would be missed.
            at = int(random.integers(2)) * 2000
            memory[pfn, at : at + 500] = int(random.integers(1, 3))
        for pfn in draw(st.lists(st.integers(0, NR_PFNS - 1), max_size=2)):
            memory[pfn] = 0
        found.append((entries_of(pfns, types), memory[pfns[has_data(types)]]))
    return found


DRAWN = st.lists(st.tuples(st.sampled_from(CODINGS), st.booleans()), min_size=1, max_size=6)
CACHE_PAGES = st.sampled_from([0, 1, 3, 8, 100])


def write(
    sink: ByteSink, found: list, choice: AnyCoding, cache_pages: int, *, checksums: bool
) -> LibxcWriter:
    writer = LibxcWriter(
        sink,
        DomainType.X86_HVM,
        (4, 17),
        1,
        coding=choice,
        versions=VersionCache(cache_pages * 4096),
        checksums=checksums,
    )
    writer.record(StaticDataEnd())
    for entries, pages in found:
        writer.page_data(entries, [pages.reshape(-1).data])
    writer.record(HvmContext(b"context"))
    writer.end()
    return writer


def read(source: ByteSource, found: list) -> None:
    """Each record has what was sent, over a domain that holds what came before."""
    reader, wanted = LibxcReader(source), iter(found)
    domain = np.full((NR_PFNS, 4096), 0xEE, dtype=np.uint8)
    while not reader.ended:
        record = reader.next()
        if not isinstance(record, PageData):
            continue
        entries, pages = next(wanted)
        assert np.array_equal(record.entries, entries)
        without = record.pfns[~has_data(record.types)].astype(int)
        domain[without] = 0xDD  # their memory is given back, and whatever comes in its place holds anything
        pfns = record.pfns[has_data(record.types)].astype(int)
        current = domain[pfns]
        reader.read_pages([current.reshape(-1).data])
        assert np.array_equal(current, pages)
        domain[pfns] = current
    assert next(wanted, None) is None


@given(records(), DRAWN, CACHE_PAGES, st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_coding_each_record_gets_what_is_decoded_is_what_was_sent(found, drawn, cache, checksums):
    sink, choice = MemorySink(), AnyCoding(drawn)
    writer = write(sink, found, choice, cache, checksums=checksums)
    with source_of(bytes(sink.data)) as source:
        read(source, found)
    carried = sum(int(np.count_nonzero(pages.any(axis=1))) for _, pages in found) * 4096
    coded = writer.coded.values()
    assert sum(one.in_bytes for one in coded) == carried
    assert sum(one.batches for one in coded) == len(choice.trials)
    assert all(one.out_bytes <= one.in_bytes for one in coded)


@given(SCRIPTS, st.sampled_from([1, 3]), records(), DRAWN, CACHE_PAGES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_deltas_are_against_what_the_reader_has_also_when_links_break(scripts, wanted, found, drawn, cache):
    ends = Ends(scripts, wanted)
    failures: list[BaseException] = []

    def send() -> None:
        try:
            write(ends.one.outgoing, found, AnyCoding(drawn), cache, checksums=True)
        except BaseException as error:
            failures.append(error)

    writer = threading.Thread(target=send, daemon=True)
    writer.start()
    read(ends.other.incoming, found)
    writer.join(30)
    assert failures == []
    ends.close()


@pytest.mark.parametrize("checksums", [True, False])
def test_a_version_that_was_not_kept_is_no_base_later(checksums):
    """Kept, sent again without being kept, and then as a delta: against the first it would be wrong."""
    one, two, three = (np.full((1, 4096), byte, dtype=np.uint8) for byte in (1, 2, 3))
    two[0, :2000] = 1
    three[0, :1000] = 1
    entries = entries_of(np.array([3]), np.array([PageType.NOTAB]))
    found = [(entries, one), (entries, two), (entries, three), (entries, three)]
    xor = Coding(Codec.XOR)
    choice = AnyCoding([(xor, True), (Coding(), False), (xor, True), (xor, True)])
    sink = MemorySink()
    write(sink, found, choice, 10, checksums=checksums)
    assert [trial.known_bytes for trial in choice.trials] == [0, 0, 0, 4096]
    with source_of(bytes(sink.data)) as source:
        read(source, found)
