"""Room for an image: told from a sample of memory, refused where it cannot fit, watched while rounds are sent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_host import FakeHost, FakeToolstack

from saverestore.engine.policy import Limits
from saverestore.engine.progress import DomainState, SaveReport, Silence
from saverestore.errors import ErrorName, Remedy, TransportError
from saverestore.operations import room
from saverestore.operations.prepare_save import check_room
from saverestore.operations.requests import FinalState, SaveRequest
from saverestore.operations.room import Storing, estimate, full_size
from saverestore.operations.save import save_domain
from saverestore.stream.codecs import Coding
from saverestore.stream.layout import PAGE_SIZE
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemorySave
from saverestore.transport.newfile import NewFile

NR_PFNS = 40_000
MIB = 1 << 20


def filled(part: float = 1.0, nr_pfns: int = NR_PFNS, *, hole: range = range(0)) -> MemorySave:
    """A PVH guest that has noise in this part of its memory, and zeroes in the rest."""
    domain = MemoryDomain.pvh(nr_pfns, hole=hole)
    noise = np.random.default_rng(1).integers(0, 256, (nr_pfns, PAGE_SIZE), dtype=np.uint8)
    pfns = domain.populated()
    content = noise[: len(pfns)]
    content[int(len(pfns) * part) :] = 0
    domain.write(pfns, content)
    return MemorySave(domain)


@pytest.fixture(scope="module")
def half_empty():
    guest = filled(0.5)
    yield guest
    guest.close()


def saved_size(tmp_path: Path, guest: MemorySave, **how) -> int:
    path = tmp_path / "real.img"
    request = SaveRequest("web1", str(path), FinalState.RUN, overwrite=True, **how)
    report = save_domain(request, Silence(), SaveReport(), host=FakeHost(guest, FakeToolstack()))
    assert report.stored_bytes is not None
    return report.stored_bytes


@pytest.mark.parametrize(
    ("storing", "how"),
    [
        (Storing(True), {}),
        (Storing(True, compress=1), {"compress": 1}),
        (Storing(True, coding=Coding.parse("zstd")), {"coding": Coding.parse("zstd")}),
        (Storing(True, coding=Coding.parse("none")), {"coding": Coding.parse("none")}),
    ],
    ids=["plain", "zstd", "draft-b", "draft-b uncoded"],
)
def test_the_estimate_is_near_what_a_save_then_takes(tmp_path, half_empty, storing, how):
    found = estimate(half_empty, storing)
    size = saved_size(tmp_path, half_empty, **how)
    assert found.least <= size + 2 * MIB
    assert size <= found.most
    assert abs(found.likely - size) < 0.1 * size
    assert found.most <= full_size(half_empty)


def test_without_holes_or_compression_it_is_all_of_the_memory(half_empty):
    found = estimate(half_empty, Storing(False))
    assert found.least == found.likely == found.most == full_size(half_empty)


def reads(guest: MemorySave, work) -> int:
    before = len(guest.moments.calls)
    work()
    return guest.moments.calls[before:].count("read_pages")


def test_memory_is_read_in_large_pieces_and_only_some_of_it(half_empty):
    assert 0 < reads(half_empty, lambda: estimate(half_empty, Storing(True))) <= room.PIECES
    assert room.PIECES * room.PIECE_PFNS < NR_PFNS


def test_holes_of_the_guests_memory_are_not_taken_for_the_sample():
    guest = filled(1.0, 3000, hole=range(200, 2800))
    try:
        found = estimate(guest, Storing(True))
    finally:
        guest.close()
    assert found.likely == pytest.approx(full_size(guest), rel=0.1)


def test_a_slow_compressor_gets_fewer_pieces(half_empty):
    ticks = iter(range(1000))
    slow = reads(
        half_empty, lambda: estimate(half_empty, Storing(True, compress=1), clock=lambda: 6.0 * next(ticks))
    )
    assert slow == room.LEAST_PIECES


# ---- before the save -------------------------------------------------------------------------------


class Disk:
    """A commit whose place has this much room."""

    name = "a.img"
    has_holes = True

    def __init__(self, free: int | None) -> None:
        self.free = free

    def free_bytes(self) -> int | None:
        return self.free


def check(free: int | None, guest: MemorySave, **how) -> None:
    check_room(Disk(free), SaveRequest("web1", "a.img", **how), guest, "web1")


def test_what_cannot_fit_is_refused_with_what_it_needs(half_empty):
    with pytest.raises(
        TransportError, match=r"web1 needs about [78]\d MiB, a\.img has room for 50 MiB"
    ) as caught:
        check(50 * MIB, half_empty)
    assert caught.value.name is ErrorName.DISK_FULL
    assert [one.remedy for one in caught.value.remedies] == [Remedy.OTHER_PLACE, Remedy.NO_SPACE_CHECK]


def test_an_image_that_fits_by_its_zero_pages_or_compressed_is_not_refused(half_empty, caplog):
    check(120 * MIB, half_empty)
    check(120 * MIB, half_empty, compress=1)
    assert caplog.text == ""
    empty = filled(0.02)
    try:
        check(25 * MIB, empty, compress=1)
    finally:
        empty.close()
    assert caplog.text == ""


def test_where_it_may_not_fit_that_is_said_and_the_save_begins(half_empty, caplog, monkeypatch):
    monkeypatch.setattr(room, "SAMPLE_S", -1.0)  # a smaller sample is less sure
    monkeypatch.setattr(room, "UNSURE_SAMPLE_S", -1.0)
    found = estimate(half_empty, Storing(True))
    assert found.least < found.most
    check((found.least + found.most) // 2, half_empty)
    assert "it may not fit" in caplog.text


@pytest.mark.parametrize(("part", "looked_s"), [(0.0, 1), (0.5, 5)], ids=["alike", "half and half"])
def test_where_a_second_does_not_tell_enough_more_of_the_memory_is_looked_at(part, looked_s, monkeypatch):
    monkeypatch.setattr(room, "PIECE_PFNS", 32)  # so few that most of it stays unknown
    times = iter(range(1000))
    guest = filled(part)
    try:
        found = estimate(guest, Storing(True), clock=lambda: next(times) / 8)
    finally:
        guest.close()
    assert looked_s < next(times) / 8 <= looked_s + 1
    assert found.least <= found.likely <= found.most


def test_a_live_save_is_told_that_rounds_need_more(half_empty, caplog):
    check(120 * MIB, half_empty, live=True)
    assert "and more for pages that are sent again" in caplog.text


@pytest.mark.parametrize(("free", "how"), [(None, {}), (1, {"space_check": False})], ids=str)
def test_nobody_looks_where_room_means_nothing_or_was_not_to_be_looked_at(half_empty, free, how):
    check(free, half_empty, **how)


# ---- during the rounds -----------------------------------------------------------------------------


@pytest.fixture
def busy():
    """A guest that writes a quarter of its memory in each round."""
    guest = filled(1.0, 8000)
    domain = guest.domain

    def write() -> None:
        if not domain.suspended:
            domain.write(domain.data_pfns()[:2000], len(guest.moments.calls) % 251)

    for number in range(40):
        guest.moments.on("check_layout", number, write)
    yield guest
    guest.close()


def live_save(tmp_path, guest, monkeypatch, free_after_first: int, **how) -> SaveReport:
    """With so much room once the first round is written, which shrinks by what is written then."""
    first = 8000 * PAGE_SIZE

    def free_bytes(file: NewFile) -> int:
        return first + free_after_first - file.sink.stored_bytes

    monkeypatch.setattr(NewFile, "free_bytes", free_bytes)
    monkeypatch.setattr("saverestore.operations.save.check_room", lambda *_: None)
    request = SaveRequest(
        "web1", str(tmp_path / "a.img"), FinalState.RUN, live=True, limits=Limits(max_rounds=9), **how
    )
    report = SaveReport()
    save_domain(request, Silence(), report, host=FakeHost(guest, FakeToolstack()))
    return report


ROUND = 2000 * PAGE_SIZE


def test_no_round_is_begun_that_could_take_the_room_of_the_last_one(tmp_path, busy, monkeypatch):
    report = live_save(tmp_path, busy, monkeypatch, int(1.8 * ROUND) + 2 * MIB, dirty="log")
    assert [one.final for one in report.rounds] == [False, True]
    assert "too little room for the last one" in report.verdict.why
    assert (tmp_path / "a.img").exists()


def test_where_not_even_the_last_one_fits_the_save_ends_and_the_domain_was_never_suspended(
    tmp_path, busy, monkeypatch
):
    with pytest.raises(
        TransportError, match="has no room for the rest: the dirty pages that are left"
    ) as caught:
        live_save(tmp_path, busy, monkeypatch, ROUND // 2, dirty="log")
    assert caught.value.name is ErrorName.DISK_FULL
    assert "suspend" not in list(busy.moments.calls)
    assert not busy.domain.suspended
    assert list(tmp_path.iterdir()) == []


def test_by_digests_too(tmp_path, busy, monkeypatch):
    report = live_save(tmp_path, busy, monkeypatch, int(1.8 * ROUND) + 2 * MIB, dirty="digest")
    assert [one.final for one in report.rounds] == [False, True]


def test_with_room_there_are_as_many_rounds_as_without_anybody_looking(tmp_path, busy, monkeypatch):
    report = live_save(tmp_path, busy, monkeypatch, 100 * ROUND, dirty="log", overwrite=True)
    assert len(report.rounds) > 2
    assert report.domain_state is DomainState.RUNNING


def test_who_does_not_want_that_to_be_looked_at_gets_all_rounds(tmp_path, busy, monkeypatch):
    report = live_save(tmp_path, busy, monkeypatch, 0, dirty="log", space_check=False)
    assert len(report.rounds) > 2
