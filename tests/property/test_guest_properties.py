"""Properties of guests: any domain that writes anything at any time is restored as it was when it stopped."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_guests import assert_same, image_of, opened, restored_from

from saverestore.engine.policy import Limits
from saverestore.engine.settings import SaveSettings
from saverestore.guest.ports import gather_runs, runs_of
from saverestore.guest.x86 import layout, tables, vcpu
from saverestore.stream.layout import PAGE_SIZE, PageType
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemorySave

MOMENTS = ["read_pages", "check_layout", "log_dirty.take", "suspend", "memory_records"]


@st.composite
def domains(draw: Any) -> MemoryDomain:
    nr_pfns = draw(st.integers(64, 400))
    seed = draw(st.integers(0, 99))
    if draw(st.booleans()):
        return MemoryDomain.pv(nr_pfns, seed=seed, run_pages=draw(st.sampled_from([1, 3, 64])))
    first = draw(st.integers(10, nr_pfns - 10))
    return MemoryDomain.pvh(nr_pfns, hole=range(first, draw(st.integers(first, nr_pfns - 5))))


class Guest:
    """Something that a guest does to itself, by a script of (moment, its number, what, where, value)."""

    def __init__(self, guest: MemorySave, script: list[tuple]) -> None:
        self._domain = guest.domain
        self._plain = guest.domain.data_pfns()
        for moment, number, what, where, value in script:
            guest.moments.on(moment, number, self._doing(what, where, value))

    def _doing(self, what: str, where: list[int], value: int) -> Callable[[], None]:
        def do() -> None:
            domain = self._domain
            if domain.suspended:
                return
            pfns = self._plain[np.unique(np.array(where, dtype=np.int64) % len(self._plain))]
            has_memory = domain.p2m[pfns] != tables.INVALID_MFN
            if what == "write":
                domain.write(pfns[has_memory], value)
            elif what == "give away":
                domain.balloon_out(pfns[has_memory])
            elif what == "take back":
                domain.balloon_in(pfns[~has_memory])
            elif what == "hide":
                domain.unmappable_until_suspended[pfns] = True

        return do


SCRIPT = st.lists(
    st.tuples(
        st.sampled_from(MOMENTS),
        st.integers(0, 5),
        st.sampled_from(["write", "write", "write", "give away", "take back", "hide"]),
        st.lists(st.integers(0, 500), min_size=1, max_size=20),
        st.integers(0, 255),
    ),
    max_size=8,
)


@given(domains(), SCRIPT, st.sampled_from(["suspended", "log", "digest"]), st.sampled_from([16, 100, 2048]))
@settings(max_examples=150, deadline=None)
def test_any_domain_that_does_anything_meanwhile_is_restored_as_it_was_when_it_stopped(
    domain, script, how, batch_pfns
):
    with opened(domain) as guest:
        Guest(guest, script)
        live = how != "suspended"
        chosen = SaveSettings(
            live=live,
            dirty=how if live else "auto",
            limits=Limits(few_pages=1, max_rounds=4),
            batch_pfns=batch_pfns,
        )
        restored = restored_from(image_of(guest, chosen), domain)
        assert_same(domain, restored)
        restored.close()


# ---- page tables ---------------------------------------------------------------------------------

NR_TABLES = 3
U64 = st.integers(0, 2**64 - 1)


@st.composite
def worlds(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    """p2m and m2p of a guest with holes in both."""
    nr_pfns = draw(st.integers(1, 40))
    nr_mfns = nr_pfns + draw(st.integers(0, 20))
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    p2m = random.permutation(nr_mfns)[:nr_pfns].astype(np.uint64)
    m2p = np.full(nr_mfns, tables.INVALID_MFN, dtype=np.uint64)
    m2p[p2m] = np.arange(nr_pfns)
    return p2m, m2p


@given(
    worlds(),
    st.integers(0, 10_000),
    st.lists(st.sampled_from(range(1, 5)), min_size=1, max_size=4),
    st.data(),
)
@settings(max_examples=100, deadline=None)
def test_localise_undoes_normalise_on_any_tables_that_xen_would_accept(world, seed, levels, data):
    p2m, m2p = world
    random = np.random.default_rng(seed)
    types = np.array([level | data.draw(st.sampled_from([0, 8])) for level in levels], dtype=np.uint8)
    raw = random.integers(0, 2**64, (len(levels), 512), dtype=np.uint64)
    raw[(types & 7) > 1] &= ~layout.PTE_PSE
    raw[(types & 7) == 4, layout.XEN_L4_SLOTS] = 0
    present = (raw & layout.PTE_PRESENT) != 0
    mfns = p2m[random.integers(0, len(p2m), raw.shape)]
    raw = np.where(present, (raw & ~layout.PTE_FRAME_MASK) | (mfns << np.uint64(12)), raw)
    normalised, good = tables.normalise(raw, types, m2p, p2m)
    assert good.all()
    named = tables.referenced_pfns(normalised)
    assert set(named.tolist()) == set(m2p[mfns[present]].tolist())
    assert np.array_equal(tables.localise(normalised, p2m), raw)
    # And on another host, where the same pfns lie elsewhere, back and forth again.
    elsewhere = np.arange(len(p2m), dtype=np.uint64)[::-1] + np.uint64(1000)
    back = np.full(2000, tables.INVALID_MFN, dtype=np.uint64)
    back[elsewhere] = np.arange(len(p2m))
    again, good = tables.normalise(tables.localise(normalised, elsewhere), types, back, elsewhere)
    assert good.all()
    assert np.array_equal(again, normalised)


@given(worlds(), st.integers(0, 10_000), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_a_table_is_good_exactly_when_every_frame_it_names_is_the_guests(world, seed, level):
    p2m, m2p = world
    random = np.random.default_rng(seed)
    frames = random.integers(0, len(m2p) + 3, (NR_TABLES, 512), dtype=np.uint64)
    few = random.random(frames.shape) < 1 / 200
    raw = np.where(few, frames << np.uint64(12) | layout.PTE_PRESENT, np.uint64(0))
    if level == 4:
        raw[:, layout.XEN_L4_SLOTS] = 0
    _, good = tables.normalise(raw, np.full(NR_TABLES, level, dtype=np.uint8), m2p, p2m)
    own = set(p2m.tolist())
    wanted = [all(pte >> 12 in own for pte in table if pte & 1) for table in raw.tolist()]
    assert good.tolist() == wanted


# ---- processors ----------------------------------------------------------------------------------


@given(
    st.binary(min_size=64, max_size=64),
    st.integers(0, 1),
    st.integers(0, layout.FIRST_RESERVED_GDT_ENTRY),
    st.booleans(),
    st.permutations(range(20)),
)
@settings(max_examples=100, deadline=None)
def test_contexts_go_to_pfns_and_back(noise, i, gdt_entries, has_user_table, order):
    raw = bytearray((noise * 100)[: layout.VCPU_CONTEXT.itemsize])
    context = np.frombuffer(raw, dtype=layout.VCPU_CONTEXT)[0]
    context["flags"] |= layout.VGCF_ONLINE
    context["gdt_ents"] = gdt_entries
    context["gdt_frames"][:] = np.array(order[:16]) + 100
    context["rdx"] = order[16] + 100
    context["ctrlreg"][3] = (order[17] + 100) << 12
    context["ctrlreg"][1] = (order[18] + 100) << 12 if has_user_table else 0
    told = vcpu.context_to_pfns(raw, i, lambda mfn, what: mfn - 100)
    maps = vcpu.FrameMaps(plain=lambda pfn, what: pfn + 100, top_table=lambda pfn, what: pfn + 100)
    assert vcpu.context_to_mfns(told, i, maps) == bytes(raw)
    seen = np.frombuffer(told, dtype=layout.VCPU_CONTEXT)[0]
    assert seen["ctrlreg"][3] == order[17] << 12
    assert seen["ctrlreg"][1] == (order[18] << 12 | 1 if has_user_table else 0)
    assert seen["rdx"] == (order[16] if i == 0 else order[16] + 100)
    nr_frames = -(-gdt_entries // 512)
    assert seen["gdt_frames"][:nr_frames].tolist() == order[:nr_frames]


# ---- runs ----------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), max_size=50))
def test_runs_cover_all_values_and_neighbours_differ(values):
    runs = runs_of(np.array(values, dtype=np.int8))
    assert [i for start, stop in runs for i in range(start, stop)] == list(range(len(values)))
    assert all(len(set(values[start:stop])) == 1 for start, stop in runs)
    assert all(values[a[0]] != values[b[0]] for a, b in itertools.pairwise(runs))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
def test_gathered_buffers_are_the_pages_in_order_each_from_where_it_lies(kinds):
    is_staged = np.array([one for one, _ in kinds], dtype=bool)
    dropped = np.array([two for _, two in kinds], dtype=bool)
    mapped = b"".join(bytes([i]) * PAGE_SIZE for i in range(len(kinds)))
    staged = b"".join(bytes([100 + i]) * PAGE_SIZE for i in np.flatnonzero(is_staged))
    buffers = gather_runs(memoryview(mapped), memoryview(staged), is_staged, dropped)
    found = b"".join(buffers)[::PAGE_SIZE]
    assert list(found) == [100 + i if is_staged[i] else i for i in range(len(kinds)) if not dropped[i]]
    assert len(b"".join(buffers)) == len(found) * PAGE_SIZE


def test_page_types_of_tables_are_told_from_all_others():
    found = tables.is_table(np.array([*PageType], dtype=np.uint8))
    assert [kind.name for kind, one in zip(PageType, found, strict=True) if one] == [
        kind.name for kind in PageType if "TAB" in kind.name and kind.name[0] == "L"
    ]
