"""Which pages are sent again: by the hypervisor's record, and by what was sent."""

from __future__ import annotations

import numpy as np
import pytest
from memory_guests import opened, restored_from
from stream_samples import MemorySink

from saverestore.engine.copies import CopiedBatch, Copies
from saverestore.engine.dirty import DigestSource, EverythingOnce, LogDirtySource
from saverestore.engine.policy import Limits
from saverestore.engine.save import save
from saverestore.engine.settings import SaveSettings
from saverestore.guest.ports import LogDirtyUnavailable, PageBatch
from saverestore.stream.layout import PAGE_SIZE, PageType
from saverestore.testing.domain import MemoryDomain

NR_PFNS = 100
A, B = 0xAA, 0xBB


@pytest.fixture
def guest():
    with opened(MemoryDomain.pvh(NR_PFNS, hole=range(50, 60))) as found:
        yield found


def read(guest, pfns, *, final: bool = False) -> CopiedBatch:
    return Copies(NR_PFNS).of(guest.read_pages(np.array(pfns, dtype=np.uint64), final=final))


def selected(source, guest, pfns, *, final: bool = False):
    """Pfns that are to be sent of those read now, and their first bytes."""
    with source.select(read(guest, pfns, final=final)) as batch:
        pages = batch.copy_data(np.empty((len(pfns), PAGE_SIZE), dtype=np.uint8))
        return batch.pfns.tolist(), pages[:, 0].tolist()


# ---- everything once -----------------------------------------------------------------------------


def test_without_tracking_everything_is_read_and_sent_and_nothing_waits(guest):
    source = EverythingOnce(guest.nr_pfns)
    assert source.start_round(final=True).tolist() == list(range(NR_PFNS))
    assert selected(source, guest, [3, 55])[0] == [3, 55]
    assert source.known_dirty() == 0
    source.close()


# ---- the hypervisor's record ---------------------------------------------------------------------


def test_the_log_begins_before_the_first_round_and_ends_with_close(guest):
    source = LogDirtySource(guest)
    assert guest.domain.dirty is not None
    assert source.start_round(final=False).tolist() == list(range(NR_PFNS))
    source.close()
    assert guest.domain.dirty is None


def test_pages_written_in_a_round_are_read_in_the_next(guest):
    source = LogDirtySource(guest)
    source.start_round(final=False)
    guest.domain.write([4, 9], 1)
    assert source.start_round(final=False).tolist() == [4, 9]
    assert source.start_round(final=False).tolist() == []


def test_pages_written_before_the_first_round_is_asked_for_are_not_forgotten(guest):
    source = LogDirtySource(guest)
    guest.domain.write([4], 1)
    source.start_round(final=False)
    assert source.start_round(final=False).tolist() == [4]


def test_what_was_told_when_counting_is_read_in_the_next_round_with_what_came_since(guest):
    source = LogDirtySource(guest)
    source.start_round(final=False)
    guest.domain.write([4], 1)
    assert source.known_dirty() == 1
    guest.domain.write([9], 1)
    assert source.known_dirty() == 2
    guest.domain.write([4, 11], 1)
    assert source.start_round(final=True).tolist() == [4, 9, 11]


def test_all_that_is_read_by_the_log_is_sent(guest):
    source = LogDirtySource(guest)
    for _ in range(2):
        assert selected(source, guest, [3, 4, 55])[0] == [3, 4, 55]


def test_a_guest_without_a_log_says_so():
    with opened(MemoryDomain.pvh(NR_PFNS), log_dirty=False) as guest, pytest.raises(LogDirtyUnavailable):
        LogDirtySource(guest)


# ---- digests of what was sent --------------------------------------------------------------------


def test_digests_read_everything_in_every_round_and_know_no_number(guest):
    source = DigestSource(NR_PFNS)
    for final in (False, False, True):
        assert source.start_round(final=final).tolist() == list(range(NR_PFNS))
        assert source.known_dirty() is None
    source.close()


def test_the_first_time_every_page_is_sent_zero_pages_too(guest):
    guest.domain.write([3, 4], 0)
    assert selected(DigestSource(NR_PFNS), guest, [3, 4, 55])[0] == [3, 4, 55]


def test_only_pages_with_other_content_are_sent_again(guest):
    source = DigestSource(NR_PFNS)
    selected(source, guest, range(NR_PFNS))
    guest.domain.write([3], 7)
    guest.domain.write([4], guest.domain.read(np.array([4], dtype=np.uint64)))
    assert selected(source, guest, range(NR_PFNS)) == ([3], [7])
    assert selected(source, guest, range(NR_PFNS)) == ([], [])


def test_a_single_changed_bit_is_noticed_anywhere_in_a_page(guest):
    source = DigestSource(NR_PFNS)
    selected(source, guest, range(NR_PFNS))
    for place in (0, 1, 2047, 4095):
        guest.domain.frames[17, place] ^= 0x80
        assert selected(source, guest, range(NR_PFNS))[0] == [17]


def test_a_page_of_another_type_is_sent_whatever_its_content(guest):
    source = DigestSource(NR_PFNS)
    selected(source, guest, range(NR_PFNS))
    guest.domain.types[5] = PageType.BROKEN
    guest.domain.balloon_out(np.array([6], dtype=np.uint64))
    assert selected(source, guest, range(NR_PFNS))[0] == [5, 6]
    guest.domain.types[5] = PageType.NOTAB
    guest.domain.balloon_in(np.array([6], dtype=np.uint64))
    assert selected(source, guest, range(NR_PFNS))[0] == [5, 6]
    assert selected(source, guest, range(NR_PFNS))[0] == []


def test_a_deferred_page_is_still_deferred_after_selection_and_sent_once_it_can_be_read(guest):
    source = DigestSource(NR_PFNS)
    guest.domain.unmappable[8] = True
    with source.select(read(guest, range(10))) as batch:
        assert batch.deferred.tolist() == [8]
        assert 8 not in batch.pfns
    guest.domain.unmappable[8] = False
    assert selected(source, guest, range(10))[0] == [8]


def test_what_is_selected_does_not_change_with_the_domain(guest):
    source = DigestSource(NR_PFNS)
    guest.domain.write([3], A)
    with source.select(read(guest, [3])) as batch:
        assert guest.buffers.nr_open == 0
        guest.domain.write([3], B)
        assert bytes(batch.pages[0]) == bytes([A]) * PAGE_SIZE


class DirtyingSink(MemorySink):
    """While it runs, the domain writes a page right before its bytes are taken, and back right after."""

    def __init__(self, domain: MemoryDomain, pfn: int) -> None:
        super().__init__()
        self._domain = domain
        self._pfn = pfn

    def writev(self, buffers):
        if self._domain.suspended:
            super().writev(buffers)
            return
        self._domain.write([self._pfn], B)
        super().writev(buffers)
        self._domain.write([self._pfn], A)


class LiveBatch(CopiedBatch):
    """What must not be done: digest the domain's own memory, and write it out later."""

    def __init__(self, live: PageBatch) -> None:
        zero = np.zeros(live.nr_data, dtype=bool)
        data = live.copy_data(np.empty((live.nr_data, PAGE_SIZE), dtype=np.uint8), zero)
        super().__init__(live.pfns, live.types, data, zero, live.deferred)
        self.pages = live.pages
        self._live = live

    def close(self) -> None:
        self._live.close()


def saved_with_a_page_that_changes_and_back(domain: MemoryDomain, dirty: str) -> tuple[int, int]:
    """First byte of that page as it is, and as it is restored."""
    pfn = domain.data_pfns()[-1:]
    with opened(domain) as guest:
        domain.write(pfn, A)
        sink = DirtyingSink(domain, int(pfn[0]))
        report = save(guest, sink, SaveSettings(live=True, dirty=dirty, limits=Limits(max_rounds=3)))
        assert report.dirty_source == dirty
        restored = restored_from(bytes(sink.data), domain)
        found = int(domain.read(pfn)[0, 0]), int(restored.read(pfn)[0, 0])
        restored.close()
        return found


@pytest.mark.parametrize("kind", [MemoryDomain.pvh, MemoryDomain.pv])
@pytest.mark.parametrize("dirty", ["digest", "log"])
def test_a_page_that_changes_while_it_is_written_and_back_is_not_lost(kind, dirty):
    assert saved_with_a_page_that_changes_and_back(kind(200), dirty) == (A, A)


def test_digests_of_live_memory_would_lose_that_page(monkeypatch):
    """A, B, A: B was sent, and the page seems never to have changed. Shows that the test above can fail."""
    monkeypatch.setattr(Copies, "of", lambda _, batch: LiveBatch(batch))
    assert saved_with_a_page_that_changes_and_back(MemoryDomain.pvh(200), "digest") == (A, B)
