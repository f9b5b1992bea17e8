"""The search for vcpu_info, on memory into which a model of Xen's event channels writes."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

try:
    import pyxc  # noqa: F401
except ImportError as error:
    pytest.skip(f"needs the compiled binding: {error}", allow_module_level=True)

from saverestore.errors import DomainError
from saverestore.guest.arm64 import resuming, vcpu
from saverestore.guest.arm64.journal import Journal
from saverestore.guest.arm64.layout import Control, Layout
from saverestore.guest.arm64.memory import KeptMemory
from saverestore.guest.arm64.vcpu_info import VcpuInfoSearch

FIRST, PAGES = 0x40000, 64
SHARED_INFO = FIRST + 3
PENDING_AT = (FIRST + 10 << 12) + 0x140, (FIRST + 40 << 12) + 0x80


class FakeXen:
    """A guest's memory with a vcpu_info for each of two vCPUs, and event channels of the FIFO kind."""

    def __init__(self) -> None:
        random = np.random.default_rng(3)
        self.pages = random.integers(0, 256, (PAGES, 4096), dtype=np.uint8)
        self.pages[SHARED_INFO - FIRST] = 0
        self.pages[20:30].reshape(-1).view("<u8")[::32] = 1  # what only looks like one with an event pending
        self.pages[20:30].reshape(-1).view("<u8")[2::32] = 0
        self.pages[25] = 0
        self.pages[25].view("<u8")[::64] = 1
        self.ready = [0, 0]
        self.data = np.zeros((2, 4096), dtype=np.uint8)
        self.meanwhile: Callable[[int], None] = lambda number: None
        self.maps = 0
        for number in range(2):
            self.info(number)[:] = [0, 2**64 - 1, 0, 0, 0, 0]
        self._before = self.pages.copy()

    def is_as_it_was_but_for_events(self) -> bool:
        now = self.pages.copy()
        pending = [int(self.info(number)[0]) for number in range(2)]
        for number in range(2):
            self.info(number)[0] = 0
        same = bool((self.pages == self._before).all())
        self.pages[:] = now
        return same and pending == [1, 1]

    def info(self, number: int) -> np.ndarray:
        at = PENDING_AT[number] - (FIRST << 12)
        return self.pages.reshape(-1).view("<u8")[at // 8 : at // 8 + 6]

    def event(self, number: int, priority: int) -> None:
        if not self.ready[number] >> priority & 1:
            self.ready[number] |= 1 << priority
            self.info(number)[0] |= np.uint64(1)

    def run(self, piece, contexts, on, start) -> None:
        (number,) = on
        priority = int(self.data[number][Control.PRIORITY + 4 : Control.PRIORITY + 8].view("<u4")[0])
        assert 7 < priority <= 15, "a guest's own priority"
        self.meanwhile(number)
        self.event(number, priority)

    @contextmanager
    def map_page(self, domid: int, gfn: int, writable: bool = False) -> Iterator[SimpleNamespace]:
        page = self.pages[gfn - FIRST : gfn - FIRST + 1]
        yield SimpleNamespace(pages=page, buffer=memoryview(page.reshape(-1)))

    def map(
        self, domid: int, gfns: np.ndarray, *, writable: bool = False, partial: bool = False
    ) -> FakeMapping:
        return FakeMapping(self, gfns, writable)


class FakeMapping:
    """A copy, written back when it is unmapped; one of memory in a row is no copy, as with real ones."""

    def __init__(self, xen: FakeXen, gfns: np.ndarray, writable: bool) -> None:
        rows = (gfns - np.uint64(FIRST)).astype(np.intp)
        in_a_row = (np.diff(rows) == 1).all()
        self._xen, self._rows, self._writable = xen, rows, writable
        self.pages = xen.pages[rows[0] : rows[-1] + 1] if in_a_row else xen.pages[rows]
        self.errors = np.zeros(len(gfns), dtype=np.int32)
        self.nr_pages = len(gfns)
        self.buffer = memoryview(self.pages.reshape(-1))

    def close(self) -> None:
        if self._writable:
            self._xen.pages[self._rows] = self.pages

    def __enter__(self) -> FakeMapping:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def context() -> vcpu.Context:
    names = [f.name for f in dataclasses.fields(vcpu.Context) if f.name not in ("x", "online")]
    return vcpu.Context(x=(0,) * 31, **dict.fromkeys(names, 0), online=True)


@pytest.fixture
def xen() -> FakeXen:
    return FakeXen()


def search(xen: FakeXen, kept: list[Journal] | None = None) -> tuple[int, ...]:
    handles = SimpleNamespace(xen=None, memory=xen)
    memory = KeptMemory(handles, 1, Layout(((FIRST, PAGES),)))
    scratch = SimpleNamespace(data=lambda number: xen.data[number], run=xen.run)
    journal = Journal(1, uuid.uuid4(), (context(), context()), SHARED_INFO, bytes(4096))
    kept = [] if kept is None else kept
    return VcpuInfoSearch(handles, memory, scratch, kept.append).addresses(journal)


def test_they_are_found_and_memory_is_as_it_was_but_for_an_event_pending(xen):
    assert search(xen) == PENDING_AT
    assert xen.is_as_it_was_but_for_events()


@pytest.mark.parametrize("pending", [[0], [1], [0, 1]])
def test_one_that_had_an_event_pending_is_found_by_clearing_what_could_be_it(xen, pending):
    for number in pending:
        xen.event(number, 7)
    assert search(xen) == PENDING_AT
    assert xen.is_as_it_was_but_for_events()


def test_events_of_back_ends_that_come_meanwhile_are_not_taken_for_ours(xen):
    came = []

    def back_end(number: int) -> None:
        came.append(number)
        if len(came) in (2, 3):  # a busy network card of vCPU 0 while vCPU 1 is looked for
            xen.ready[0] = 0
            xen.event(0, 7)

    xen.meanwhile = back_end
    xen.event(1, 7)
    assert search(xen) == PENDING_AT


def test_when_an_event_comes_for_another_vcpu_each_time_it_is_given_up(xen):
    def back_end(number: int) -> None:
        xen.ready[1 - number] &= ~(1 << 7)
        xen.event(1 - number, 7)

    xen.meanwhile = back_end
    for number in range(2):
        xen.event(number, 7)
    with pytest.raises(DomainError, match="only one can be it; the domain is running"):
        search(xen)


def test_two_that_seem_to_be_at_one_place_are_told_as_that(xen):
    def back_end(number: int) -> None:
        if number == 1:  # of vCPU 1 itself Xen has nothing to tell, its queues being full
            xen.ready[0] &= ~(1 << 7)
            xen.event(0, 7)

    xen.meanwhile = back_end
    for number in range(2):
        xen.event(number, 7)
    xen.ready[1] = 2**16 - 1
    with pytest.raises(DomainError, match="vCPUs 0 and 1 seem to have their vcpu_info at one place, 0x40"):
        search(xen)
    assert xen.is_as_it_was_but_for_events()


@pytest.mark.parametrize("dies_at", range(1, 8))
def test_whoever_dies_meanwhile_leaves_a_journal_by_which_memory_is_put_back(xen, dies_at):
    for number in range(2):
        xen.event(number, 7)
    calls = []

    def dies(number: int) -> None:
        calls.append(number)
        if len(calls) == dies_at:
            raise KeyboardInterrupt

    xen.meanwhile = dies
    kept: list[Journal] = []
    try:
        search(xen, kept)
    except KeyboardInterrupt:
        handles = SimpleNamespace(memory=xen)
        if kept:
            journal = kept[-1]
            resuming.put_back_cleared(handles, 1, journal.cleared)
            resuming.put_back_cleared(handles, 1, journal.cleared)
    assert xen.is_as_it_was_but_for_events()
