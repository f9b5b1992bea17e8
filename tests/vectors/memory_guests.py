"""In-memory domains, saved and restored: what several folders of tests need of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from stream_samples import MemorySink, source_of

from saverestore.engine.restore import restore
from saverestore.engine.save import save
from saverestore.engine.settings import SaveSettings
from saverestore.guest.common import hvm_params
from saverestore.guest.ports import Channels
from saverestore.stream.layout import PageType
from saverestore.stream.reader import LibxcReader
from saverestore.stream.trailer import TrailerBuffer
from saverestore.testing.domain import CONSOLE_RING, START_INFO, STORE_RING, MemoryDomain
from saverestore.testing.guest import MemoryRestore, MemorySave, empty_like

CHANNELS = Channels(store_port=7, console_port=8)
NR_PFNS = 10000
HOLE = range(900, 1400)

MAKERS: dict[str, Callable[[], MemoryDomain]] = {
    "pvh": lambda: MemoryDomain.pvh(NR_PFNS, hole=HOLE),
    "pv": lambda: MemoryDomain.pv(NR_PFNS),
}


@contextmanager
def opened(domain: MemoryDomain, *, log_dirty: bool = True) -> Iterator[MemorySave]:
    """A domain to be saved. At the end no buffer of it may be held by anybody, whatever happened."""
    guest = MemorySave(domain, log_dirty=log_dirty)
    yield guest
    assert guest.buffers.nr_open == 0
    domain.close()


def restored_from(image: bytes, like: MemoryDomain, *, workers: int = 2) -> MemoryDomain:
    """The domain that an image makes."""
    guest = MemoryRestore(empty_like(like))
    with source_of(image) as source:
        pages, _ = restore(LibxcReader(source), source, guest, CHANNELS, workers=workers)
        assert source.at_end()
    assert guest.buffers.nr_open == 0
    rings = (pages.store_gfn, pages.console_gfn)
    assert rings == tuple(guest.domain.p2m[[STORE_RING, CONSOLE_RING]].tolist())
    return guest.domain


def rewritten_pfns(domain: MemoryDomain) -> set[int]:
    """Pages that a restore changes by design."""
    if domain.is_pv:
        return {START_INFO, *domain.p2m_frames.tolist()}
    return {
        domain.state.hvm_params[i] for i in (hvm_params.HVM_PARAM_STORE_PFN, hvm_params.HVM_PARAM_CONSOLE_PFN)
    }


def assert_same(saved: MemoryDomain, restored: MemoryDomain) -> None:
    """All memory that the saved (suspended) domain has is the restored one's, and its processors are."""
    pfns = saved.populated()
    pfns = pfns[saved.types[pfns] < PageType.BROKEN]
    pfns = pfns[~np.isin(pfns, np.array(sorted(rewritten_pfns(saved)), dtype=np.uint64))]
    assert np.array_equal(saved.types[pfns], restored.types[pfns])
    different = (saved.content(pfns) != restored.content(pfns)).any(axis=1)
    assert not different.any(), f"pfns {pfns[different].tolist()} differ"
    before, after = saved.state, restored.state
    for name in ("leaves", "msr_policy", "tsc", "extra"):
        assert getattr(before, name) == getattr(after, name)
    if saved.is_pv:
        assert before.contexts.keys() == after.contexts.keys()
        table = restored.read(restored.p2m_frames).reshape(-1).view(np.uint64)
        assert np.array_equal(table[: restored.nr_pfns], restored.p2m)
    else:
        assert before.hvm_context == after.hvm_context
        assert before.hvm_params.items() <= after.hvm_params.items()


def image_of(
    guest: MemorySave, settings: SaveSettings | None = None, *, trailer: TrailerBuffer | None = None
) -> bytes:
    """Save to memory."""
    sink = MemorySink()
    save(guest, sink, settings or SaveSettings(), trailer=trailer)
    return bytes(sink.data)
