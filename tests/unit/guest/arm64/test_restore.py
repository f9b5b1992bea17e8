"""What a domain has in its memory when it has been filled: the image's pages, and nothing of who made it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

try:
    import pyxc  # noqa: F401
except ImportError as error:
    pytest.skip(f"needs the compiled binding: {error}", allow_module_level=True)

from saverestore.errors import ImageError
from saverestore.guest.arm64 import restore
from saverestore.guest.common.hvm_params import HVM_PARAM_CONSOLE_PFN, HVM_PARAM_STORE_PFN
from saverestore.guest.ports import Channels, RestoredPages
from saverestore.stream.layout import PageType
from saverestore.stream.records import Arm64Platform, Arm64SharedInfo, HvmParams

FIRST, PAGES = 0x40000, 8
CONSOLE, STORE = 0x39000, 0x39001
PLATFORM = Arm64Platform(gic=3, nr_vcpus=1, midr=1, cntfrq=1, banks=((FIRST, PAGES),))


class FakeDomain:
    """Which frames of a domain have memory, and its HVM parameters."""

    def __init__(self, *built: int) -> None:
        self.has = set(built)
        self.params = {HVM_PARAM_STORE_PFN: STORE, HVM_PARAM_CONSOLE_PFN: CONSOLE} if built else {}
        self.cleared: list[int] = []

    def populate(self, _xen: object, _domid: int, gfns: np.ndarray) -> None:
        assert not self.has & {*gfns.tolist()}, "given twice"
        self.has |= {*gfns.tolist()}

    def release(self, _xen: object, _domid: int, gfns: np.ndarray) -> None:
        assert self.has >= {*gfns.tolist()}
        self.has -= {*gfns.tolist()}

    def map(self, _domid: int, gfns: np.ndarray, *, writable: bool) -> SimpleNamespace:
        assert self.has >= {*gfns.tolist()}
        return SimpleNamespace(buffer=memoryview(bytearray(4096 * len(gfns))), close=lambda: None)


def restoring(monkeypatch: pytest.MonkeyPatch, domain: FakeDomain) -> restore.Arm64Restore:
    monkeypatch.setattr(restore, "code_of", lambda piece, gic: b"")
    monkeypatch.setattr(restore, "check_platform", lambda *_, **__: None)
    monkeypatch.setattr(restore, "seed_grant_table", lambda *_: None)
    monkeypatch.setattr(restore.Arm64Restore, "_processors", lambda _: ([], []))
    monkeypatch.setattr(restore.Arm64Restore, "_load", lambda *_: None)
    memory = restore.xen_memory
    monkeypatch.setattr(memory, "nr_gpfns", lambda xen, domid: max(domain.has, default=0) + 1)
    monkeypatch.setattr(memory, "populate", domain.populate)
    monkeypatch.setattr(memory, "release", domain.release)
    monkeypatch.setattr(memory, "clear_page", lambda xen, domid, gfn: domain.cleared.append(gfn))
    monkeypatch.setattr(restore.arm64, "flush_caches", lambda *_: None)
    monkeypatch.setattr(restore.arm64, "map_shared_info", lambda *_: None)
    monkeypatch.setattr(restore.cpu, "hvm_param", lambda xen, domid, index: domain.params[index])
    monkeypatch.setattr(
        restore.cpu, "set_hvm_param", lambda xen, domid, index, value: domain.params.update({index: value})
    )
    info = SimpleNamespace(domid=1, max_vcpu_id=0, tot_pages=len(domain.has))
    handles = SimpleNamespace(xen=None, memory=domain)
    found = restore.Arm64Restore(handles, info, 3, is_built=bool(domain.has))
    found.take(PLATFORM)
    found.take(HvmParams(((HVM_PARAM_STORE_PFN, STORE), (HVM_PARAM_CONSOLE_PFN, CONSOLE))))
    found.take(Arm64SharedInfo(FIRST + 2, (0,)))
    return found


def fill(guest: restore.Arm64Restore) -> RestoredPages:
    """Pages 0, 1, 4 and 5 of eight; 2 and 3 are holes that the image tells of, of 6 and 7 it says nothing."""
    pfns = np.arange(FIRST, FIRST + 6, dtype=np.uint64)
    types = np.array([PageType.NOTAB] * 2 + [PageType.XTAB] * 2 + [PageType.NOTAB] * 2, dtype=np.uint8)
    guest.write_pages(pfns, types).close()
    return guest.complete(Channels(store_port=1, console_port=2))


OF_THE_IMAGE = {FIRST, FIRST + 1, FIRST + 4, FIRST + 5}


def test_an_empty_domain_is_given_what_the_image_has_and_its_rings(monkeypatch):
    domain = FakeDomain()
    assert fill(restoring(monkeypatch, domain)) == RestoredPages(STORE, CONSOLE)
    assert domain.has == OF_THE_IMAGE | {CONSOLE, STORE}
    assert domain.cleared == [CONSOLE, STORE]
    assert domain.params[HVM_PARAM_STORE_PFN] == STORE


@pytest.mark.parametrize("last", [2, 5, 8])
def test_of_one_that_libxl_built_pages_that_the_image_has_not_are_taken_away(monkeypatch, last):
    domain = FakeDomain(CONSOLE, STORE, *range(FIRST, FIRST + last))
    assert fill(restoring(monkeypatch, domain)) == RestoredPages(STORE, CONSOLE)
    assert domain.has == OF_THE_IMAGE | {CONSOLE, STORE}
    assert domain.cleared == [], "the daemons may have written into the rings already"


def test_a_page_that_the_image_brings_after_it_was_a_hole_is_there(monkeypatch):
    domain = FakeDomain(CONSOLE, STORE, *range(FIRST, FIRST + PAGES))
    guest = restoring(monkeypatch, domain)
    pfns = np.array([FIRST + 7], dtype=np.uint64)
    guest.write_pages(pfns, np.array([PageType.XTAB], dtype=np.uint8)).close()
    guest.write_pages(pfns, np.array([PageType.NOTAB], dtype=np.uint8)).close()
    fill(guest)
    assert domain.has == OF_THE_IMAGE | {FIRST + 7, CONSOLE, STORE}


def test_rings_at_another_place_than_libxls_are_refused(monkeypatch):
    domain = FakeDomain(CONSOLE, STORE, FIRST)
    domain.params[HVM_PARAM_CONSOLE_PFN] = CONSOLE + 2
    with pytest.raises(
        ImageError, match="has its console ring at 0x39000, libxl's of this host have it at 0x39002"
    ):
        fill(restoring(monkeypatch, domain))
