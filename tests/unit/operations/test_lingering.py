"""What may stay mapped for a while after it was closed, and what must not."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_host import FakeMemory, RestoringHost, image_in

from saverestore.engine.progress import Silence
from saverestore.errors import ImageError
from saverestore.guest.common.pages import map_for_save
from saverestore.guest.x86 import hvm
from saverestore.operations.requests import RestoreRequest
from saverestore.operations.restore import restore_domain
from saverestore.stream.layout import PageType
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemoryRestore, empty_like

PFNS = np.arange(3, dtype=np.uint64)


class MappingMemory(FakeMemory):
    """Notes of each mapping whether it may linger."""

    def __init__(self) -> None:
        super().__init__()
        self.may_linger: list[bool] = []

    def map(self, _domid, gfns, *, may_linger=False, **_) -> SimpleNamespace:
        self.may_linger.append(may_linger)
        return SimpleNamespace(
            errors=np.zeros(len(gfns), dtype=np.int32), buffer=memoryview(bytes(4096 * len(gfns)))
        )


@pytest.mark.parametrize("final", [False, True])
def test_pages_of_a_save_linger_only_when_the_domain_stands_still(final):
    memory = MappingMemory()
    map_for_save(SimpleNamespace(memory=memory), 7, PFNS, PFNS, final=final)
    assert memory.may_linger == [final]


@pytest.fixture
def restore(monkeypatch):
    """A restore of a PVH domain, and its memory."""
    for name in ("populate", "release"):
        monkeypatch.setattr(hvm.xen_memory, name, lambda *_, **__: None)
    handles = SimpleNamespace(xen=None, memory=MappingMemory())
    return hvm.HvmRestore(handles, SimpleNamespace(domid=7, max_pages=1 << 20, tot_pages=0)), handles.memory


@pytest.mark.parametrize("kinds", [[PageType.NOTAB] * 3, [PageType.NOTAB, PageType.BROKEN, PageType.NOTAB]])
def test_pages_of_a_restored_pvh_domain_linger(restore, kinds):
    guest, memory = restore
    guest.write_pages(PFNS, np.array(kinds, dtype=np.uint8))
    assert memory.may_linger == [True]


def test_before_memory_is_taken_back_it_is_mapped_no_more(restore):
    guest, memory = restore
    guest.write_pages(PFNS, np.zeros(3, dtype=np.uint8))
    assert memory.unmapped == 0
    guest.write_pages(PFNS, np.full(3, PageType.XTAB, dtype=np.uint8))
    assert memory.unmapped == 1


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_lingers_of_a_domain_that_is_destroyed_whatever_failed(tmp_path, fails):
    domain = MemoryDomain.pvh(64)
    path = image_in(tmp_path, domain)
    if fails:
        path.write_bytes(path.read_bytes() + b"what follows the image")
    host = RestoringHost(MemoryRestore(empty_like(domain)))
    with suppress(ImageError):
        restore_domain(RestoreRequest(str(path), watch=False), Silence(), host=host)
    assert host.unmapped_when_destroyed == ([1] if fails else [])
    assert host.memory.unmapped == fails
    assert host.running == (set() if fails else {host.DOMID})
