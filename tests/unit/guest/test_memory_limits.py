"""A domain that has more than its target is restored; one whose memory is owed to it is not read."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from pyxc.memory import PodTarget
from saverestore.errors import Advice, DomainError, ErrorName, Remedy
from saverestore.guest.common.limit import STEP_PAGES, MemoryLimit
from saverestore.guest.x86 import hvm, pv
from saverestore.testing.store import MemoryStore

MIB = 256  # pages


class Xen:
    """A domain that may have `allowed` pages and has `held`; Xen refuses more, as it does."""

    def __init__(self, allowed: int, held: int = 0) -> None:
        self.allowed, self.held = allowed, held
        self.limits: list[int] = []

    def set_max_memory(self, _domid: int, kib: int) -> None:
        self.allowed = kib // 4
        self.limits.append(kib)

    def populate(self, _xen: object, _domid: int, pfns: np.ndarray) -> np.ndarray:
        if self.held + len(pfns) > self.allowed:
            raise OSError("EBUSY: populate")
        self.held += len(pfns)
        return pfns

    def try_populate(self, _xen: object, domid: int, pfns: np.ndarray, *, order: int) -> int:
        given = min(len(pfns), max(0, self.allowed - self.held) >> order)
        self.held += given << order
        return given

    def release(self, _xen: object, _domid: int, pfns: np.ndarray) -> None:
        self.held -= len(pfns)

    def info(self) -> SimpleNamespace:
        return SimpleNamespace(
            domid=7, hvm=True, max_pages=self.allowed, tot_pages=self.held, max_vcpu_id=0, shared_info_frame=1
        )


def test_the_limit_is_raised_only_when_more_comes_and_is_put_back_at_the_end():
    xen = Xen(allowed=100, held=10)
    limit = MemoryLimit(xen, xen.info())
    limit.make_room(90)
    assert xen.limits == []
    limit.make_room(1)
    assert xen.limits == [(101 + STEP_PAGES) * 4]
    limit.make_room(STEP_PAGES)
    assert len(xen.limits) == 1
    limit.put_back()
    limit.put_back()
    assert xen.limits[1:] == [400]


def test_pages_that_were_taken_away_make_room():
    xen = Xen(allowed=100)
    limit = MemoryLimit(xen, xen.info())
    limit.make_room(100)
    limit.taken_away(50)
    limit.make_room(50)
    limit.put_back()
    assert xen.limits == []


@pytest.fixture
def xen(monkeypatch) -> Xen:
    """Of a domain whose target is 128 MiB."""
    made = Xen(128 * MIB + 256)
    for module in (hvm, pv):
        for name in ("populate", "try_populate", "release"):
            monkeypatch.setattr(module.xen_memory, name, getattr(made, name))
    return made


MEMORY = SimpleNamespace(map=lambda *_, **__: None, unmap_lingering=lambda *_: None)


def test_a_pvh_image_of_256_mib_fills_a_domain_whose_target_is_128(xen):
    guest = hvm.HvmRestore(SimpleNamespace(xen=xen, memory=MEMORY), xen.info())
    for first in range(0, 256 * MIB, 4096):
        pfns = np.arange(first, first + 4096, dtype=np.uint64)
        guest.write_pages(pfns, np.zeros(4096, dtype=np.uint8))
    assert xen.held == 256 * MIB
    assert guest._superpages == 128  # and none of its 2 MiB pages is lost at the limit
    guest._limit.put_back()
    assert xen.allowed == 128 * MIB + 256


def test_a_pv_image_of_256_mib_fills_a_domain_whose_target_is_128(xen):
    guest = pv.PvRestore(SimpleNamespace(xen=xen, memory=MEMORY), xen.info())
    guest._p2m = np.zeros(256 * MIB, dtype=np.uint64)
    for first in range(0, 256 * MIB, 4096):
        guest._populate(np.arange(first, first + 4096, dtype=np.uint64))
    assert xen.held == 256 * MIB


# ---- populate on demand --------------------------------------------------------------------------


class OnDemand:
    """A PVH domain of which `pod` is populated on demand; notes when its pages are looked at."""

    def __init__(
        self,
        monkeypatch,
        pod: PodTarget,
        static_max_kib: int | None = 384 << 10,
        video_kib: str | None = None,
    ) -> None:
        self.pod, self.asked, self.looked = pod, 0, 0
        nodes = {} if static_max_kib is None else {"/local/domain/7/memory/static-max": str(static_max_kib)}
        if video_kib is not None:
            nodes["/local/domain/7/memory/videoram"] = video_kib
        xen = SimpleNamespace(version=lambda: SimpleNamespace(major=4, minor=17))
        self.handles = SimpleNamespace(xen=xen, store=MemoryStore(nodes or {"/x": ""}), memory=self)
        monkeypatch.setattr(hvm.xen_memory, "nr_gpfns", lambda *_: 384 * MIB)
        monkeypatch.setattr(hvm.xen_memory, "pod_target", self._pod)
        monkeypatch.setattr(hvm.xen_memory, "page_types", self._types)

    def _pod(self, *_: object) -> PodTarget:
        self.asked += 1
        return self.pod

    def _types(self, _xen: object, _domid: int, pfns: np.ndarray) -> np.ndarray:
        self.looked += 1
        return np.zeros(len(pfns), dtype=np.uint8)

    def opened(self) -> hvm.HvmSave:
        return hvm.HvmSave(self.handles, SimpleNamespace(domid=7, tot_pages=self.pod.tot_pages), None)


PFNS = np.arange(4, dtype=np.uint64)


def test_a_guest_that_owes_memory_is_refused_before_any_page_of_it_is_looked_at(monkeypatch):
    owing = OnDemand(monkeypatch, PodTarget(tot_pages=128 * MIB, cache_pages=40 * MIB, entries=296 * MIB))
    with pytest.raises(DomainError, match="296 MiB that are populated on demand and only 40 MiB") as caught:
        owing.opened()
    assert caught.value.name is ErrorName.DOMAIN_UNSUPPORTED
    assert caught.value.remedies == (Advice(Remedy.GIVE_ALL_MEMORY, "7 384"),)
    assert owing.looked == 0


@pytest.mark.parametrize(
    ("video_kib", "whole_mib"), [("16384", 400), ("0", 384), ("-1", 384), ("16385", 401), ("nonsense", 384)]
)
def test_the_advice_counts_the_video_memory_that_xl_takes_off_again(monkeypatch, video_kib, whole_mib):
    """'xl mem-set' asks Xen for so much less, while what QEMU has for its screen counts as populated."""
    owing = OnDemand(monkeypatch, PodTarget(128 * MIB, 40 * MIB, 296 * MIB), video_kib=video_kib)
    with pytest.raises(DomainError) as caught:
        owing.opened()
    assert caught.value.remedies == (Advice(Remedy.GIVE_ALL_MEMORY, f"7 {whole_mib}"),)


def test_without_a_node_of_its_maximum_that_is_what_it_would_have(monkeypatch):
    pod = PodTarget(tot_pages=128 * MIB, cache_pages=40 * MIB, entries=296 * MIB)
    with pytest.raises(DomainError) as caught:
        OnDemand(monkeypatch, pod, None).opened()
    assert caught.value.remedies == (Advice(Remedy.GIVE_ALL_MEMORY, "7 384"),)


def test_a_guest_that_has_given_back_what_it_owed_is_read(monkeypatch):
    paid = OnDemand(monkeypatch, PodTarget(tot_pages=128 * MIB, cache_pages=40 * MIB, entries=40 * MIB))
    assert len(paid.opened().types_of(PFNS)) == len(PFNS)


def test_one_whose_pool_shrinks_meanwhile_is_not_looked_at_any_more(monkeypatch):
    """As by `xl mem-set` during the rounds of a live save."""
    shrinking = OnDemand(monkeypatch, PodTarget(128 * MIB, 40 * MIB, 40 * MIB))
    guest = shrinking.opened()
    guest.types_of(PFNS)
    shrinking.pod = PodTarget(100 * MIB, 12 * MIB, 40 * MIB)
    for look in (lambda: guest.types_of(PFNS), lambda: guest.read_pages(PFNS, final=False)):
        with pytest.raises(DomainError, match="only 12 MiB for them"):
            look()
    assert shrinking.looked == 1


def test_a_domain_without_such_memory_is_asked_once(monkeypatch):
    plain = OnDemand(monkeypatch, PodTarget(128 * MIB, 0, 0))
    guest = plain.opened()
    for _ in range(3):
        guest.types_of(PFNS)
    assert (plain.asked, plain.looked) == (1, 3)
