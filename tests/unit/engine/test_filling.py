"""Pages are read while others are filled in: the same domain comes of it, and the first failure is what is told."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from memory_guests import CHANNELS, MAKERS, assert_same, image_of, opened, restored_from
from stream_samples import MemorySink, source_of

from saverestore.engine.filling import BUFFER_PAGES
from saverestore.engine.policy import Limits
from saverestore.engine.progress import RestoreReport
from saverestore.engine.restore import restore
from saverestore.engine.settings import SaveSettings
from saverestore.errors import ImageError
from saverestore.stream.codecs import Codec, Coding
from saverestore.stream.errors import BadRecord
from saverestore.stream.layout import DomainType, entries_of
from saverestore.stream.reader import LibxcReader
from saverestore.stream.records import HvmContext, StaticDataEnd
from saverestore.stream.writer import LibxcWriter
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemoryRestore, MemorySave, empty_like
from saverestore.transport.base import EndOfStream

NR_PFNS = 10000


def restored(image: bytes, guest: MemoryRestore, workers: int = 2) -> None:
    with source_of(image) as source:
        restore(LibxcReader(source), source, guest, CHANNELS, workers=workers)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "coding", [None, Coding(Codec.ZSTD), Coding(Codec.XOR)], ids=["plain", "zstd", "xor"]
)
@pytest.mark.parametrize("kind", list(MAKERS))
def test_of_pages_sent_several_times_the_last_version_is_the_domains(kind, coding, workers):
    with opened(MAKERS[kind]()) as guest:
        domain, random = guest.domain, np.random.default_rng(1)

        def write_some() -> None:
            domain.write(
                random.choice(domain.data_pfns(), 300, replace=False).tolist(), int(random.integers(256))
            )

        for number in range(3):
            guest.moments.on("log_dirty.take", number, write_some)
        limits = Limits(max_rounds=4, few_pages=0)
        image = image_of(guest, SaveSettings(live=True, dirty="log", limits=limits, coding=coding))
        assert_same(domain, restored_from(image, domain, workers=workers))


def test_the_caller_reads_and_another_thread_fills():
    domain = MemoryDomain.pvh(NR_PFNS)
    guest = MemoryRestore(empty_like(domain))
    threads = set()
    guest.moments.on_every(lambda name, _: name == "write_pages" and threads.add(threading.current_thread()))
    restored(image_of(MemorySave(domain)), guest)
    assert threading.main_thread() not in threads
    assert len(threads) == 1
    assert not any(thread.is_alive() for thread in threads)


def test_a_record_that_is_not_of_pages_is_taken_when_all_pages_before_it_are_there():
    domain = MemoryDomain.pvh(NR_PFNS)
    guest = MemoryRestore(empty_like(domain))
    at_first_state: list[int] = []

    def look(name: str, _: int) -> None:
        if name == "take" and "write_pages" in guest.moments.calls and not at_first_state:
            at_first_state.append(len(guest.domain.populated()))

    guest.moments.on_every(look)
    restored(image_of(MemorySave(domain)), guest)
    assert at_first_state == [len(domain.populated())]


def test_a_record_of_more_pages_than_a_buffer_takes_is_read_straight_into_the_domain():
    nr = BUFFER_PAGES + 500
    domain = MemoryDomain.pvh(nr)
    pfns = np.arange(nr, dtype=np.uint64)
    sink = MemorySink()
    writer = LibxcWriter(sink, DomainType.X86_HVM, (4, 17))
    writer.record(StaticDataEnd())
    writer.page_data(entries_of(pfns, np.zeros(nr, dtype=np.uint32)), [domain.content(pfns).tobytes()])
    writer.record(HvmContext(b"context"))
    writer.end()
    guest = MemoryRestore(empty_like(domain))
    with pytest.raises(ImageError, match="lacks HVM parameters"):  # there are no others here
        restored(bytes(sink.data), guest)
    assert np.array_equal(guest.domain.content(pfns), domain.content(pfns))


def test_what_failed_first_is_told_though_the_image_ends_early_as_well():
    domain = MemoryDomain.pvh(NR_PFNS)
    image = image_of(MemorySave(domain), SaveSettings(batch_pfns=2048))
    guest = MemoryRestore(empty_like(domain))
    begun, ended = threading.Event(), threading.Event()

    def refuse() -> None:
        begun.set()
        assert ended.wait(10), "the end of the image was never read"
        raise MemoryError("no memory for it")

    guest.moments.on("write_pages", 1, refuse)
    with source_of(image[: 17 << 20]) as source:  # amid the third record
        reader = LibxcReader(source)
        read_carried = reader.read_carried

        def read_and_tell(buffer):
            try:
                return read_carried(buffer)
            except EndOfStream:
                assert begun.wait(10), "the second record was never filled in"
                ended.set()
                raise

        reader.read_carried = read_and_tell
        with pytest.raises(MemoryError, match="no memory for it") as caught:
            restore(reader, source, guest, CHANNELS, workers=2)
    assert isinstance(caught.value.__cause__, EndOfStream)
    assert guest.buffers.nr_open == 0


def test_after_a_failure_nothing_more_is_filled_in():
    domain = MemoryDomain.pvh(NR_PFNS)
    guest = MemoryRestore(empty_like(domain))
    guest.moments.fail("write_pages", 1, MemoryError("no memory for it"))
    with pytest.raises(MemoryError):
        restored(image_of(MemorySave(domain)), guest)
    assert guest.moments.calls.count("write_pages") == 2
    assert "complete" not in guest.moments.calls
    assert guest.buffers.nr_open == 0


def test_a_changed_byte_is_found_before_the_domain_is_completed_however_many_work():
    domain = MemoryDomain.pvh(NR_PFNS)
    image = bytearray(image_of(MemorySave(domain), SaveSettings(coding=Coding(Codec.NONE))))
    image[5 << 20] ^= 1
    guest = MemoryRestore(empty_like(domain))
    with pytest.raises(BadRecord):
        restored(bytes(image), guest)
    assert "complete" not in guest.moments.calls
    assert guest.buffers.nr_open == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_the_time_that_pages_took_is_known_of_a_restore_that_failed_amid_them(workers):
    domain = MemoryDomain.pvh(NR_PFNS)
    image = image_of(MemorySave(domain))[: 9 << 20]
    report = RestoreReport()
    with source_of(image) as source, pytest.raises(EndOfStream):
        restore(
            LibxcReader(source),
            source,
            MemoryRestore(empty_like(domain)),
            CHANNELS,
            None,
            report,
            workers=workers,
        )
    assert 0 < report.memory_s <= report.total_s
