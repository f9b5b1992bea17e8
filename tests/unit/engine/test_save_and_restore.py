"""Whole saves and restores through the in-memory domains: nothing is lost, whatever the guest does meanwhile."""

from __future__ import annotations

import numpy as np
import pytest
from memory_guests import CHANNELS, HOLE, MAKERS, assert_same, image_of, opened, restored_from
from stream_samples import MemorySink, source_of

from saverestore.engine.policy import Limits
from saverestore.engine.restore import restore
from saverestore.engine.save import save
from saverestore.engine.sending import BATCH_PFNS, LARGE_PAGE_PFNS
from saverestore.engine.settings import SaveSettings
from saverestore.errors import DomainError, ImageError
from saverestore.guest.ports import LogDirtyUnavailable
from saverestore.stream.layout import DomainType, PageType, entries_of
from saverestore.stream.reader import LibxcReader, PageData
from saverestore.stream.records import (
    HvmContext,
    HvmParams,
    Provenance,
    SharedInfo,
    StaticDataEnd,
    Verify,
    X86PvInfo,
    X86PvP2mFrames,
    X86PvVcpuBasic,
    X86TscInfo,
)
from saverestore.stream.writer import LibxcWriter
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemoryRestore, MemorySave, empty_like

KINDS = pytest.mark.parametrize("kind", MAKERS)
HOW = pytest.mark.parametrize("how", ["suspended", "log", "digest"])


def settings_for(how: str, **more) -> SaveSettings:
    return SaveSettings(**more) if how == "suspended" else SaveSettings(live=True, dirty=how, **more)


def page_data_records(image: bytes) -> list[PageData]:
    with source_of(image) as source:
        reader, found = LibxcReader(source), []
        while not reader.ended:
            if isinstance(record := reader.next(), PageData):
                found.append(record)
        return found


def page_data_of(image: bytes) -> list[tuple[int, int]]:
    """(pfn, type) of every entry of an image, in order."""
    return [
        entry
        for record in page_data_records(image)
        for entry in zip(record.pfns.tolist(), record.types.tolist(), strict=True)
    ]


def check_round_trip(guest: MemorySave, how: str, **more) -> bytes:
    image = image_of(guest, settings_for(how, **more))
    assert guest.domain.suspended
    assert guest.domain.dirty is None
    restored = restored_from(image, guest.domain)
    assert_same(guest.domain, restored)
    restored.close()
    return image


# ---- round trips ---------------------------------------------------------------------------------


@KINDS
@HOW
def test_a_domain_at_rest_is_restored_as_it_was(kind, how):
    with opened(MAKERS[kind]()) as guest:
        check_round_trip(guest, how)


@KINDS
@HOW
@pytest.mark.parametrize("workers", [1, 4])
def test_pages_written_at_any_moment_are_restored_as_they_were_at_suspend(kind, how, workers):
    with opened(MAKERS[kind]()) as guest:
        domain = guest.domain
        random = np.random.default_rng(5)
        plain = domain.data_pfns()

        def scribble(name: str, total: int) -> None:
            if not domain.suspended:
                domain.write(random.choice(plain, 40, replace=False), int(random.integers(256)))

        guest.moments.on_every(scribble)
        check_round_trip(guest, how, workers=workers, limits=Limits(few_pages=1, max_rounds=4))
        assert guest.moments.calls.count("read_pages") >= 3


def test_of_a_round_with_few_pages_each_worker_has_some_and_there_are_some_to_write_meanwhile():
    with opened(MemoryDomain.pvh(2 * BATCH_PFNS)) as guest:
        domain = guest.domain
        dirty = domain.data_pfns()[: BATCH_PFNS - 1]
        guest.moments.on("check_layout", 0, lambda: domain.write(dirty, 1))
        settings = settings_for("log", workers=2, limits=Limits(few_pages=1, max_rounds=2))
        records = page_data_records(image_of(guest, settings))
    told = np.cumsum([len(record.pfns) for record in records])
    second = [record.nr_data for record in records[int(np.searchsorted(told, 2 * BATCH_PFNS)) + 1 :]]
    assert sum(second) == len(dirty)
    assert len(second) == 3
    assert max(second) <= BATCH_PFNS // 3 + LARGE_PAGE_PFNS


@KINDS
@HOW
def test_what_the_guest_writes_last_before_it_stops_is_in_the_image(kind, how):
    with opened(MAKERS[kind]()) as guest:
        last = guest.domain.data_pfns()[[0, -1]]
        guest.moments.on("suspend", 0, lambda: guest.domain.write(last, 0x5A))
        image = check_round_trip(guest, how)
        if how != "suspended":
            assert [pfn for pfn, _ in page_data_of(image)][-2:] == last.tolist()


@pytest.mark.parametrize("holes", [[], [3], [3, 700, 701, 5000], range(0, 6000, 2)])
def test_the_pfns_of_a_large_page_are_in_one_record(holes):
    """So whoever restores them can give it memory in one piece, wherever the domain has holes before it."""
    domain = MemoryDomain.pvh(6 * BATCH_PFNS)
    domain.balloon_out(np.array(holes, dtype=np.uint64))
    with opened(domain) as guest:
        records = [record.pfns for record in page_data_records(image_of(guest, SaveSettings()))]
    assert sum(map(len, records)) == 6 * BATCH_PFNS - len(holes)
    assert max(map(len, records)) <= BATCH_PFNS
    large_pages = [set((pfns // 512).tolist()) for pfns in records]
    assert sum(map(len, large_pages)) == len(set.union(*large_pages))


@HOW
def test_page_tables_rewritten_between_rounds_are_restored(how):
    with opened(MemoryDomain.pv(3000)) as guest:
        domain = guest.domain
        l1 = int(np.flatnonzero(domain.types == PageType.L1TAB)[1])
        swapped = domain.frames[domain.p2m[l1]].view(np.uint64)[[7, 9]].tolist()

        def swap() -> None:
            domain.write_entry(l1, 7, swapped[1])
            domain.write_entry(l1, 9, swapped[0])

        guest.moments.on("check_layout", 0, swap) if how != "suspended" else swap()
        check_round_trip(guest, how)


@KINDS
def test_frames_of_the_restored_domain_are_its_own_and_hold_nothing_of_the_old_ones(kind):
    with opened(MAKERS[kind]()) as guest:
        domain = guest.domain
        restored = restored_from(image_of(guest), domain)
        if domain.is_pv:
            differ = restored.p2m != domain.p2m
            assert np.count_nonzero(differ) > 0.9 * domain.nr_pfns
            tables = np.flatnonzero(domain.types != PageType.NOTAB).astype(np.uint64)
            assert (restored.read(tables) != domain.read(tables)).any(axis=1).all()
        restored.close()


def test_digests_are_taken_where_there_is_no_log():
    with opened(MAKERS["pv"](), log_dirty=False) as guest:
        report = save(guest, MemorySink(), SaveSettings(live=True))
        assert report.dirty_source == "digest"


def test_a_log_that_was_demanded_and_is_not_there_is_an_error_and_the_guest_is_left_alone():
    with opened(MAKERS["pv"](), log_dirty=False) as guest:
        with pytest.raises(LogDirtyUnavailable):
            save(guest, MemorySink(), SaveSettings(live=True, dirty="log"))
        assert "suspend" not in guest.moments.calls


def test_a_save_that_is_not_live_suspends_before_it_reads_and_needs_no_log():
    with opened(MAKERS["pvh"]()) as guest:
        image_of(guest)
        calls = guest.moments.calls
        assert calls.index("suspended") < calls.index("read_pages")
        assert "open_log_dirty" not in calls


def test_processors_are_read_only_after_the_last_page():
    with opened(MAKERS["pvh"]()) as guest:
        image_of(guest, SaveSettings(live=True))
        calls = guest.moments.calls
        assert len(calls) - 1 - calls[::-1].index("read_pages") < calls.index("end_records")


def test_the_report_counts_what_was_done():
    with opened(MAKERS["pvh"]()) as guest:
        plain = guest.domain.data_pfns()
        guest.moments.on("check_layout", 0, lambda: guest.domain.write(plain[:100], 1))
        guest.moments.on("suspend", 0, lambda: guest.domain.write(plain[:10], 2))
        sink = MemorySink()
        report = save(guest, sink, SaveSettings(live=True))
        assert [one.sent_pages for one in report.rounds] == [guest.populated_pages, 100, 10]
        assert [one.dirty_pages for one in report.rounds] == [100, 0, 0]
        assert report.pages_sent == guest.populated_pages + 110
        assert report.stream_bytes == len(sink.data)
        assert 0 <= report.downtime.suspend_s <= report.downtime.total_s <= report.total_s


def test_provenance_is_written_only_when_given():
    for given in (None, {"tool": "pysave"}):
        with opened(MemoryDomain.pvh(64)) as guest:
            image = image_of(guest, SaveSettings(provenance=given))
        with source_of(image) as source:
            assert isinstance(LibxcReader(source).next(), Provenance) == (given is not None)


# ---- pages that cannot be read just now ----------------------------------------------------------


@KINDS
@pytest.mark.parametrize("how", ["log", "digest"])
def test_pages_that_cannot_be_mapped_while_it_runs_are_sent_in_the_final_round(kind, how):
    with opened(MAKERS[kind]()) as guest:
        domain = guest.domain
        late = domain.data_pfns()[[0, 17, BATCH_PFNS + 3, -1]]
        domain.unmappable_until_suspended[late] = True
        told = page_data_of(check_round_trip(guest, how))
        assert [pfn for pfn, _ in told if pfn in late] == late.tolist()
        assert [pfn for pfn, _ in told][-len(late) :] == late.tolist()


def test_a_page_that_can_be_mapped_again_is_sent_in_the_next_round():
    with opened(MAKERS["pvh"]()) as guest:
        domain = guest.domain
        domain.unmappable[20] = True

        def mend() -> None:
            domain.unmappable[20] = False
            domain.write(domain.data_pfns()[-60:], 1)

        guest.moments.on("check_layout", 0, mend)
        told = [pfn for pfn, _ in page_data_of(check_round_trip(guest, "log"))]
        assert told.count(20) == 1
        assert told.index(20) < len(told) - 1


@pytest.mark.parametrize("how", ["log", "digest"])
def test_a_torn_page_table_is_sent_once_it_is_whole(how):
    with opened(MAKERS["pv"]()) as guest:
        domain = guest.domain
        l1 = int(np.flatnonzero(domain.types == PageType.L1TAB)[-1])
        domain.tear(l1)
        guest.moments.on("suspend", 0, lambda: domain.mend(l1))
        told = page_data_of(check_round_trip(guest, how))
        assert told.count((l1, PageType.L1TAB)) == 1


@pytest.mark.parametrize("how", ["suspended", "log", "digest"])
def test_a_table_still_torn_at_the_end_fails_names_the_pfn_and_the_guest_runs(how):
    with opened(MAKERS["pv"]()) as guest:
        l1 = int(np.flatnonzero(guest.domain.types == PageType.L1TAB)[-1])
        guest.domain.tear(l1)
        with pytest.raises(DomainError, match=f"{l1:#x}"):
            image_of(guest, settings_for(how))
        assert not guest.domain.suspended
        assert guest.domain.dirty is None


@KINDS
@HOW
def test_a_page_never_to_be_mapped_fails_names_the_pfn_and_the_guest_runs(kind, how):
    with opened(MAKERS[kind]()) as guest:
        guest.domain.unmappable[2 * BATCH_PFNS + 99] = True
        with pytest.raises(DomainError, match=f"{2 * BATCH_PFNS + 99:#x}"):
            image_of(guest, settings_for(how))
        assert not guest.domain.suspended


def test_a_domain_that_moves_its_p2m_fails_and_runs():
    with opened(MAKERS["pv"]()) as guest:

        def move() -> None:
            guest.domain.generation += 1

        guest.moments.on("read_pages", 1, move)
        with pytest.raises(DomainError, match="p2m"):
            image_of(guest, SaveSettings(live=True))
        assert not guest.domain.suspended
        assert guest.domain.dirty is None


# ---- memory that comes and goes ------------------------------------------------------------------


@HOW
def test_pfns_that_never_had_memory_are_not_told(how):
    with opened(MAKERS["pvh"]()) as guest:
        told = page_data_of(check_round_trip(guest, how))
        assert not {pfn for pfn, _ in told} & set(HOLE)


@KINDS
@pytest.mark.parametrize("how", ["log", "digest"])
def test_a_page_sent_and_then_given_away_is_told_as_xtab_at_the_end(kind, how):
    with opened(MAKERS[kind]()) as guest:
        domain = guest.domain
        gone = domain.data_pfns()[50:53]
        guest.moments.on("check_layout", 0, lambda: domain.balloon_out(gone))
        told = page_data_of(check_round_trip(guest, how))
        for pfn in gone.tolist():
            assert [type for one, type in told if one == pfn] == [PageType.NOTAB, PageType.XTAB]


@KINDS
@pytest.mark.parametrize("how", ["log", "digest"])
def test_memory_that_was_given_away_and_came_back_is_restored(kind, how):
    with opened(MAKERS[kind]()) as guest:
        domain = guest.domain
        moving = domain.data_pfns()[50:53]

        def come_back() -> None:
            domain.balloon_in(moving)
            domain.write(moving, 0x77)

        guest.moments.on("check_layout", 0, lambda: domain.balloon_out(moving))
        guest.moments.on("suspend", 0, come_back)
        check_round_trip(guest, how)


@KINDS
def test_memory_that_came_only_after_the_first_round_is_restored(kind):
    with opened(MAKERS[kind]()) as guest:
        domain = guest.domain
        late = domain.data_pfns()[50:53]
        domain.balloon_out(late)
        guest.moments.on("check_layout", 0, lambda: domain.balloon_in(late))
        check_round_trip(guest, "digest")


# ---- images that cannot be restored --------------------------------------------------------------


def hvm_image(
    *, pfn: int = 0, params: bool = True, context: bytes = b"context", verify: bool = False
) -> bytes:
    sink = MemorySink()
    writer = LibxcWriter(sink, DomainType.X86_HVM, (4, 17))
    writer.record(StaticDataEnd())
    page = entries_of(np.array([pfn]), np.array([0]))
    writer.page_data(page, [b"x" * 4096])
    if verify:
        writer.record(Verify())
        writer.page_data(page, [b"y" * 4096])
    if params:
        writer.record(HvmParams(((1, 5), (17, 6))))
    writer.record(HvmContext(context))
    writer.end()
    return bytes(sink.data)


def pv_image(
    *, top_type: int = PageType.L4TAB_PINNED, vcpus: tuple[int, ...] = (0,), nr_pages: int = 9
) -> bytes:
    """A domain of 16 pfns: 0 is start_info, 1 the p2m, 2 the level-4 table, 3 and 4 rings."""
    sink = MemorySink()
    writer = LibxcWriter(sink, DomainType.X86_PV, (4, 17))
    writer.record(X86PvInfo(8, 4))
    writer.record(StaticDataEnd())
    writer.record(X86PvP2mFrames(0, 15, np.array([1], dtype=np.uint64)))
    types = np.zeros(9, dtype=np.uint8)
    types[2] = top_type
    pages = np.zeros((9, 4096), dtype=np.uint8)
    pages[0].view(np.uint64)[[7, 9]] = 3, 4
    writer.page_data(entries_of(np.arange(nr_pages), types[:nr_pages]), [pages[:nr_pages].reshape(-1).data])
    writer.record(SharedInfo(bytes(4096)))
    context = np.zeros(5168, dtype=np.uint8)
    context.view(np.uint64)[5008 // 8] = 2 << 12  # cr3
    for i in vcpus:
        writer.record(X86PvVcpuBasic(i, context.tobytes()))
    writer.end()
    return bytes(sink.data)


def restore_into(domain: MemoryDomain, image: bytes) -> MemoryRestore:
    guest = MemoryRestore(domain)
    try:
        with source_of(image) as source:
            restore(LibxcReader(source), source, guest, CHANNELS)
    finally:
        assert guest.buffers.nr_open == 0
    return guest


def test_the_images_below_are_restored_when_nothing_is_wrong_with_them():
    for kind, image in ((DomainType.X86_HVM, hvm_image()), (DomainType.X86_PV, pv_image())):
        domain = MemoryDomain(kind, 16)
        assert restore_into(domain, image).moments.calls[-1] == "complete"
        domain.close()


@pytest.mark.parametrize(
    ("image", "why"),
    [
        pytest.param(lambda: hvm_image(pfn=16), "pfn 0x10 is beyond", id="a pfn beyond the last"),
        pytest.param(lambda: hvm_image(params=False), "HVM parameters", id="no rings"),
        pytest.param(lambda: pv_image(vcpus=(1,)), "vcpu 0", id="no vcpu 0"),
        pytest.param(lambda: pv_image(top_type=PageType.NOTAB), "level-4", id="cr3 is no table"),
        pytest.param(lambda: pv_image(nr_pages=1), "no memory", id="the p2m has no memory"),
        pytest.param(lambda: hvm_image()[:-30], "ends after", id="cut short"),
    ],
)
def test_an_image_that_lacks_something_is_an_image_error_that_says_what(image, why):
    data = image()
    kind = DomainType(data[24])
    domain = MemoryDomain(kind, 16)
    with pytest.raises(ImageError, match=why):
        restore_into(domain, data)
    domain.close()


def test_pages_to_be_compared_are_not_stored():
    domain = MemoryDomain(DomainType.X86_HVM, 16)
    restore_into(domain, hvm_image(verify=True))
    assert domain.read(np.array([0], dtype=np.uint64))[0, 0] == ord("x")
    domain.close()


def test_static_data_are_done_once_and_before_anything_else_is_taken():
    with opened(MAKERS["pv"]()) as saved:
        image = image_of(saved)
        guest = MemoryRestore(empty_like(saved.domain))
        with source_of(image) as source:
            restore(LibxcReader(source), source, guest, CHANNELS)
        calls = guest.moments.calls
        assert calls.count("static_data_done") == 1
        assert calls.index("static_data_done") == 3  # width and two policies
        assert calls[-1] == "complete"
        guest.domain.close()


def test_a_version_2_image_tells_the_end_of_static_data_by_its_first_page():
    sink = MemorySink()
    writer = LibxcWriter(sink, DomainType.X86_HVM, (4, 11), version=2)
    writer.record(X86TscInfo(0, 1, 2, 3))
    writer.page_data(entries_of(np.array([0]), np.array([0])), [bytes(4096)])
    writer.record(HvmParams(((1, 5), (17, 6))))
    writer.record(HvmContext(b"context"))
    writer.end()
    domain = MemoryDomain(DomainType.X86_HVM, 16)
    guest = restore_into(domain, bytes(sink.data))
    assert guest.moments.calls.index("static_data_done") < guest.moments.calls.index("write_pages")
    domain.close()


def test_a_restore_that_fails_at_any_call_leaves_no_window_open():
    with opened(MAKERS["pv"]()) as saved:
        image = image_of(saved)
        clean = MemoryRestore(empty_like(saved.domain))
        with source_of(image) as source:
            restore(LibxcReader(source), source, clean, CHANNELS)
        clean.domain.close()
        for fail_at in range(len(clean.moments.calls)):
            guest = MemoryRestore(empty_like(saved.domain))

            def fail(name: str, total: int, fail_at: int = fail_at) -> None:
                if total == fail_at:
                    raise DomainError(f"{name} failed")

            guest.moments.on_every(fail)
            with source_of(image) as source, pytest.raises(DomainError, match="failed"):
                restore(LibxcReader(source), source, guest, CHANNELS)
            assert guest.buffers.nr_open == 0
            guest.domain.close()


@pytest.mark.parametrize("final", [False, True])
def test_a_page_that_has_gone_since_its_type_was_told_is_never_read_from_elsewhere(final):
    with opened(MemoryDomain.pvh(64)) as guest:
        pfns = np.arange(8, dtype=np.uint64)
        types = guest.types_of(pfns)
        guest.domain.balloon_out([3])
        if final:
            with pytest.raises(DomainError, match="pfn 0x3 cannot be mapped"):
                guest.read_pages(pfns, final=True, types=types)
            return
        with guest.read_pages(pfns, final=False, types=types) as batch:
            assert batch.deferred.tolist() == [3]
            assert batch.pfns.tolist() == [0, 1, 2, 4, 5, 6, 7]


def test_holes_are_looked_for_once_a_round_and_no_type_is_asked_for_twice(monkeypatch):
    with opened(MemoryDomain.pvh(3 * 4096)) as guest:
        told = []
        read_pages = guest.read_pages
        monkeypatch.setattr(
            guest, "read_pages", lambda *args, **more: told.append(more["types"]) or read_pages(*args, **more)
        )
        image_of(guest, SaveSettings(hole_pfns=4096, batch_pfns=2048))
        assert guest.moments.calls.count("types_of") == 3
        assert len(told) == 6
        assert all(types is not None for types in told)
