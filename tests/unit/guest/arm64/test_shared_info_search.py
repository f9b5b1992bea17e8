"""The proof of which page is shared_info, on pages into which a model of Xen writes its clock."""

from __future__ import annotations

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
from saverestore.guest.arm64 import find, shared
from saverestore.guest.arm64.layout import Layout
from saverestore.guest.arm64.memory import KeptMemory

FIRST, PAGES = 0x40000, 8
OFFSET_S = 12345
CLOCK = slice(find.WC_AT // 4, find.WC_AT // 4 + 3)


class FakeXen:
    """Writes the clock into some pages of a domain when it is told the time."""

    def __init__(self, *written: int) -> None:
        self.pages = np.zeros((PAGES, 4096), dtype=np.uint8)
        self.written = list(written)
        self.times: list[int] = []
        self.interfere: Callable[[], None] = lambda: None

    def set_host_time(self, _xen: object, time_ns: int, system_ns: int) -> None:
        self.times.append(time_ns - system_ns)
        self.write(time_ns - system_ns)
        self.interfere()

    def write(self, base_ns: int) -> None:
        for index in self.written:
            sec, nsec = divmod(base_ns, find.NS_PER_S)
            self.pages[index].view("<u4")[CLOCK] = len(self.times) * 2, sec + OFFSET_S, nsec

    @contextmanager
    def map_page(self, _domid: int, gfn: int) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(pages=self.pages[gfn - FIRST : gfn - FIRST + 1])

    def map(self, _domid: int, gfns: np.ndarray, *, partial: bool) -> SimpleNamespace:
        return SimpleNamespace(
            pages=self.pages, errors=np.zeros(len(gfns), dtype=np.int32), nr_pages=len(gfns)
        )


def found(monkeypatch: pytest.MonkeyPatch, xen: FakeXen, *lookalikes: int) -> int:
    monkeypatch.setattr(shared.arm64, "set_host_time", xen.set_host_time)
    monkeypatch.setattr(shared.time, "time_ns", lambda: 1_790_000_000_900_000_000)
    for index in (*xen.written, *lookalikes):
        xen.pages[index].view("<u4")[CLOCK] = 2, 1_790_000_000, 5
    handles = SimpleNamespace(xen=None, memory=xen)
    return shared.find_shared_info(handles, 1, KeptMemory(handles, 1, Layout(((FIRST, PAGES),))))


def test_the_page_into_which_xen_writes_its_clock_is_it_and_one_that_looks_so_is_not(monkeypatch):
    xen = FakeXen(5)
    assert found(monkeypatch, xen, 2) == FIRST + 5


def test_xen_has_the_right_time_again_afterwards(monkeypatch):
    xen = FakeXen(5)
    found(monkeypatch, xen)
    assert xen.times[0] == xen.times[-1] != xen.times[1]


@pytest.mark.parametrize(("written", "lookalikes", "told"), [((), (2,), "no page"), ((1, 6), (), "2 pages")])
def test_a_domain_with_none_or_several_is_refused(monkeypatch, written, lookalikes, told):
    with pytest.raises(DomainError, match=f"{told} of its memory .* cannot be saved, and is running"):
        found(monkeypatch, FakeXen(*written), *lookalikes)


def test_a_kernel_that_tells_xen_the_time_meanwhile_costs_another_attempt(monkeypatch):
    xen = FakeXen(5)

    def interfere() -> None:
        if len(xen.times) == 2:
            xen.write(1_789_999_000_000_000_000)

    xen.interfere = interfere
    assert found(monkeypatch, xen) == FIRST + 5
    assert len(xen.times) == 6
