"""What `guest.ports` promises, tried on every kind of domain there is.

Only the ports are used. Sizes come from `nr_pfns`; nothing is assumed about content, which a real guest may
change at any moment while it runs: what is compared was read while it was suspended.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from guest_makers import GuestMaker

from saverestore.errors import SaveRestoreError
from saverestore.guest.ports import U64, LogDirty, LogDirtyUnavailable, PageBatch, RestoreGuest, SaveGuest
from saverestore.guest.x86.vcpu import start_info_pfn
from saverestore.stream.grammar import Grammar
from saverestore.stream.layout import PAGE_SIZE, DomainType, PageType, RecordType, has_data
from saverestore.stream.records import (
    HvmContext,
    Record,
    SharedInfo,
    StaticDataEnd,
    X86PvP2mFrames,
    X86PvVcpuBasic,
)

BATCH = 2048
RINGS = 4  # pages that a backend may still write to, of a domain that stands still


def batches(nr_pfns: int) -> Iterator[U64]:
    for start in range(0, nr_pfns, BATCH):
        yield np.arange(start, min(start + BATCH, nr_pfns), dtype=np.uint64)


def bytes_of(batch: PageBatch) -> np.ndarray:
    return batch.copy_data(np.empty((batch.nr_data, PAGE_SIZE), dtype=np.uint8))


def log_dirty_of(guest: SaveGuest) -> LogDirty:
    try:
        return guest.open_log_dirty()
    except LogDirtyUnavailable as error:
        pytest.skip(f"no log-dirty here: {error}")


@pytest.fixture
def suspended(guest: SaveGuest) -> Iterator[SaveGuest]:
    guest.memory_records()
    guest.suspend()
    yield guest
    guest.resume()


# ---- what a domain says of itself ----------------------------------------------------------------


def test_headers_and_bounds_are_told(guest):
    assert guest.domain_type in DomainType
    assert guest.xen_version >= (4, 0)
    assert guest.populated_pages > 0
    assert guest.nr_pfns >= guest.populated_pages // 2


def test_all_records_are_such_that_a_writer_takes_them_in_their_order(suspended):
    grammar = Grammar(suspended.domain_type, 3)
    records: list[Record] = [*suspended.static_records(), StaticDataEnd(), *suspended.memory_records()]
    for record in records:
        assert isinstance(record.pack(), bytes)
        grammar.advance(record.type, 0)
    grammar.advance(RecordType.PAGE_DATA, 0)
    for record in suspended.end_records():
        assert isinstance(record.pack(), bytes)
        grammar.advance(record.type, 0)
    grammar.advance(RecordType.END, 0)
    assert grammar.ended


def test_static_records_are_the_same_when_asked_again(guest):
    assert [one.pack() for one in guest.static_records()] == [one.pack() for one in guest.static_records()]


def test_pfns_of_a_pv_table_are_all_told_below_nr_pfns(guest):
    frames = [one for one in guest.memory_records() if isinstance(one, X86PvP2mFrames)]
    assert bool(frames) == (guest.domain_type is DomainType.X86_PV)
    for record in frames:
        assert record.first_pfn == 0
        assert record.last_pfn == guest.nr_pfns - 1
        assert (record.frames < guest.nr_pfns).all()


# ---- reading pages -------------------------------------------------------------------------------


def test_every_pfn_asked_for_is_told_or_deferred_once_and_in_order(guest):
    guest.memory_records()
    for asked in batches(guest.nr_pfns):
        with guest.read_pages(asked, final=False) as batch:
            assert np.array_equal(np.union1d(batch.pfns, batch.deferred), asked)
            assert len(batch.pfns) + len(batch.deferred) == len(asked)
            assert (np.diff(batch.pfns.astype(np.int64)) > 0).all()


def test_buffers_hold_one_page_for_each_pfn_with_data(guest):
    guest.memory_records()
    for asked in batches(guest.nr_pfns):
        with guest.read_pages(asked, final=False) as batch:
            assert len(batch.types) == len(batch.pfns)
            assert np.array_equal(batch.with_data, has_data(batch.types))
            assert sum(view.nbytes for view in batch.pages) == batch.nr_data * PAGE_SIZE
            assert all(view.nbytes % PAGE_SIZE == 0 for view in batch.pages)


def test_a_suspended_domain_defers_nothing_and_all_its_memory_is_there(suspended):
    nr_data = 0
    for asked in batches(suspended.nr_pfns):
        with suspended.read_pages(asked, final=True) as batch:
            assert np.array_equal(batch.pfns, asked)
            assert not len(batch.deferred)
            nr_data += batch.nr_data
    # Xen counts a few pages of its own among a domain's.
    assert 0.9 * suspended.populated_pages <= nr_data <= suspended.populated_pages


def test_a_pv_guest_without_memory_somewhere_is_deferred_while_it_runs_and_xtab_at_the_end(guest):
    if guest.domain_type is not DomainType.X86_PV:
        pytest.skip("only PV guests move memory about by themselves")
    guest.memory_records()
    found = []
    for asked in batches(guest.nr_pfns):
        with guest.read_pages(asked, final=False) as batch:
            found.append(batch.deferred)
    deferred = np.concatenate(found)
    guest.suspend()
    try:
        for asked in (deferred[start : start + BATCH] for start in range(0, len(deferred), BATCH)):
            with guest.read_pages(asked, final=True) as batch:
                assert np.array_equal(batch.pfns, asked)
                # A real guest may have taken memory there, or mended a torn table, before it suspended.
                assert (batch.types[~batch.with_data] == PageType.XTAB).all()
    finally:
        guest.resume()


def test_the_same_pages_read_twice_from_a_suspended_domain_are_the_same(suspended):
    for asked in batches(suspended.nr_pfns):
        with suspended.read_pages(asked, final=True) as one, suspended.read_pages(asked, final=True) as two:
            assert np.array_equal(one.entries, two.entries)
            assert np.count_nonzero((bytes_of(one) != bytes_of(two)).any(axis=1)) <= RINGS


def test_with_types_that_were_told_before_the_same_pages_are_read(suspended):
    for pfns in batches(suspended.nr_pfns):
        if (types := suspended.types_of(pfns)) is None:
            continue
        with (
            suspended.read_pages(pfns, final=True) as asked,
            suspended.read_pages(pfns, final=True, types=types) as told,
        ):
            assert np.array_equal(told.entries, asked.entries)
            assert np.count_nonzero((bytes_of(told) != bytes_of(asked)).any(axis=1)) <= RINGS
            assert not len(told.deferred)


def test_pfns_may_be_asked_for_with_gaps_and_one_at_a_time(suspended):
    asked = next(batches(suspended.nr_pfns))[::7]
    with suspended.read_pages(asked, final=True) as batch:
        together = dict(zip(batch.pfns[batch.with_data].tolist(), bytes_of(batch), strict=True))
    for pfn in [*together][1::40]:
        with suspended.read_pages(np.array([pfn], dtype=np.uint64), final=True) as single:
            assert single.nr_data == 1
            # Not the content: a ring may be among them. Which page it is shows in most of it.
            assert np.count_nonzero(bytes_of(single)[0] != together[pfn]) < PAGE_SIZE // 4


def test_no_pfns_at_all_are_an_empty_batch(guest):
    guest.memory_records()
    with guest.read_pages(np.empty(0, dtype=np.uint64), final=False) as batch:
        assert batch.nr_data == len(batch.pfns) == len(batch.deferred) == 0


def test_after_the_block_there_are_no_buffers_and_closing_again_is_fine(guest):
    guest.memory_records()
    batch = guest.read_pages(next(batches(guest.nr_pfns)), final=False)
    assert len(batch.pages)
    with batch:
        pass
    assert not len(batch.pages)
    batch.close()


def test_a_domain_at_rest_keeps_its_layout(guest):
    guest.memory_records()
    guest.check_layout()


# ---- suspend, resume -----------------------------------------------------------------------------


def test_suspend_stops_the_domain_and_resume_lets_it_go_on_any_number_of_times(maker, guest):
    for _ in range(2):
        assert maker.is_running()
        guest.suspend()
        assert not maker.is_running()
        guest.resume()
        assert maker.is_running()


def test_resume_without_suspend_does_nothing(maker, guest):
    guest.resume()
    assert maker.is_running()


# ---- log-dirty -----------------------------------------------------------------------------------


def test_log_dirty_tells_of_every_pfn_and_starts_afresh(guest):
    log = log_dirty_of(guest)
    try:
        log.take()
        dirty = log.take()
        assert dirty.dtype == np.bool_
        assert dirty.shape == (guest.nr_pfns,)
    finally:
        log.close()


def test_a_suspended_domain_writes_nothing_after_the_final_take(guest):
    log = log_dirty_of(guest)
    try:
        guest.suspend()
        log.take(final=True)
        assert np.count_nonzero(log.take(final=True)) <= 64  # frames that Xen itself has mapped stay dirty
    finally:
        log.close()
        guest.resume()


def test_log_dirty_can_be_closed_twice_and_opened_again(guest):
    for _ in range(2):
        log = log_dirty_of(guest)
        log.close()
        log.close()


# ---- restoring -----------------------------------------------------------------------------------


def copy_all(guest: SaveGuest, target: RestoreGuest) -> dict[int, np.ndarray]:
    """The pages of a suspended domain, put into an empty one; and what they were, by pfn."""
    contents: dict[int, np.ndarray] = {}
    for asked in batches(guest.nr_pfns):
        with guest.read_pages(asked, final=True) as batch:
            told = batch.types != PageType.XTAB
            data = bytes_of(batch)
            contents.update(zip(batch.pfns[batch.with_data].tolist(), data, strict=True))
            write(target, batch.pfns[told], batch.types[told], data)
    return contents


def write(target: RestoreGuest, pfns: np.ndarray, types: np.ndarray, data: np.ndarray) -> None:
    window = target.write_pages(pfns, types)
    view = memoryview(b"")
    try:
        buffers = list(window.buffers)
        assert sum(view.nbytes for view in buffers) == data.nbytes
        at, flat = 0, data.reshape(-1)
        for view in buffers:
            view[:] = flat[at : at + view.nbytes].data
            at += view.nbytes
        window.commit()
    finally:
        buffers.clear()
        del view
        window.close()
        window.close()


def give_head(guest: SaveGuest, target: RestoreGuest) -> None:
    for record in guest.static_records():
        target.take(record)
    target.static_data_done()
    for record in guest.memory_records():
        target.take(record)


def test_a_restored_domain_reads_back_as_what_was_written(maker: GuestMaker, suspended: SaveGuest):
    with maker.empty() as fresh:
        give_head(suspended, fresh.guest)
        contents = copy_all(suspended, fresh.guest)
        changed = {
            int(pfn)
            for record in suspended.memory_records()
            if isinstance(record, X86PvP2mFrames)
            for pfn in record.frames
        }
        for record in suspended.end_records():
            fresh.guest.take(record)
            if isinstance(record, X86PvVcpuBasic) and record.vcpu == 0:
                changed.add(start_info_pfn(record.context))
        pages = fresh.guest.complete(fresh.channels)
        if suspended.domain_type is DomainType.X86_HVM:
            changed |= {pages.store_gfn, pages.console_gfn}
        with fresh.reopened() as restored:
            assert restored.domain_type is suspended.domain_type
            if restored.domain_type is DomainType.X86_PV:
                assert restored.nr_pfns == suspended.nr_pfns
            restored.memory_records()
            wanted = np.array([pfn for pfn in contents if pfn not in changed], dtype=np.uint64)
            assert len(wanted)
            for start in range(0, len(wanted), BATCH):
                some = wanted[start : start + BATCH]
                with restored.read_pages(some, final=True) as batch:
                    assert batch.nr_data == len(some)
                    different = [
                        pfn
                        for pfn, page in zip(some.tolist(), bytes_of(batch), strict=True)
                        if not np.array_equal(page, contents[pfn])
                    ]
                # HVM: requests to a device model, had there been one, are cleared, too.
                assert len(different) <= (2 if suspended.domain_type is DomainType.X86_HVM else 0), different


def test_the_same_pfns_may_be_written_again_and_the_last_word_counts(maker, suspended):
    with maker.empty() as fresh:
        give_head(suspended, fresh.guest)
        contents = copy_all(suspended, fresh.guest)
        middle = len(contents) // 2  # at both ends lie pages that completing a domain writes
        again = np.array(sorted(contents)[middle : middle + 5], dtype=np.uint64)
        with suspended.read_pages(again, final=True) as batch:
            types, data = batch.types.copy(), bytes_of(batch)
        write(fresh.guest, again, types, np.zeros_like(data))
        write(fresh.guest, again, types, data)
        for record in suspended.end_records():
            fresh.guest.take(record)
        fresh.guest.complete(fresh.channels)
        with fresh.reopened() as restored:
            restored.memory_records()
            with restored.read_pages(again, final=True) as batch:
                assert np.array_equal(bytes_of(batch), data)


def test_pfns_without_data_take_no_buffers(maker, suspended):
    with maker.empty() as fresh:
        give_head(suspended, fresh.guest)
        for kind in (PageType.XTAB, PageType.BROKEN):
            window = fresh.guest.write_pages(np.arange(5, dtype=np.uint64), np.full(5, kind, dtype=np.uint8))
            assert sum(view.nbytes for view in window.buffers) == 0
            window.commit()
            window.close()


def test_a_window_closed_without_commit_gives_its_buffers_back(maker, suspended):
    with maker.empty() as fresh:
        give_head(suspended, fresh.guest)
        window = fresh.guest.write_pages(np.arange(5, dtype=np.uint64), np.zeros(5, dtype=np.uint8))
        assert sum(view.nbytes for view in window.buffers) == 5 * PAGE_SIZE
        window.close()
        assert not len(window.buffers)


def test_a_record_of_another_kind_of_guest_is_refused(maker, suspended):
    is_pv = suspended.domain_type is DomainType.X86_PV
    record = HvmContext(b"context") if is_pv else SharedInfo(bytes(PAGE_SIZE))
    with maker.empty() as fresh, pytest.raises(SaveRestoreError, match="is not valid in"):
        fresh.guest.take(record)


def test_a_domain_without_processors_cannot_be_completed(maker, suspended):
    with maker.empty() as fresh:
        give_head(suspended, fresh.guest)
        copy_all(suspended, fresh.guest)
        with pytest.raises(SaveRestoreError, match="image"):
            fresh.guest.complete(fresh.channels)


def test_both_sides_can_be_closed_twice(maker, guest):
    guest.close()
    guest.close()
    with maker.empty() as fresh:
        fresh.guest.close()
        fresh.guest.close()
