"""A domain that exists in this process only: anonymous memory, page tables in it, and what a guest does.

    PVH-like   guest frames are pfns; a hole, as a real one has below 4 GiB
    PV-like    machine frames are handed out in shuffled runs; the guest maps all its memory by real page
               tables of four levels, which hold machine frames, and keeps its p2m in frames of its own

`testing.guest` opens it through the ports. Nothing here needs Xen, and nothing here shows that Xen agrees.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from saverestore.errors import DomainError, ImageError
from saverestore.guest.common import hvm_params
from saverestore.guest.ports import U8, U64, Bool
from saverestore.guest.x86 import layout, tables
from saverestore.stream.layout import PAGE_SIZE, DomainType, PageType

INVALID = tables.INVALID_MFN
FOREIGN_FRAMES = 16
"""Machine frames at the front of a PV host that are not the domain's: Xen's, and other guests'."""

ENTRIES = layout.ENTRIES_A_TABLE
PTE_FLAGS = np.uint64(0x67)  # present, writable, user, accessed, dirty

STORE_RING, CONSOLE_RING, START_INFO, GDT_FRAME = 1, 2, 3, 4
FIRST_P2M_PFN = 5
SMALLEST_PFNS = 64
FIRST_VCPU_STATE = {"extended": b"extended" * 16, "xsave": b"xsave..." * 80, "msrs": b"msr+value=16byte"}


@dataclass
class Processors:
    """State besides memory, opaque where only Xen knows what is in it. PV contexts hold machine frames."""

    leaves: bytes = b"leaf" * 12
    msr_policy: bytes = b"msr " * 8
    tsc: tuple[int, int, int, int] = (0, 2_400_000, 123_456_789, 0)
    hvm_context: bytes = b"context of an HVM domain"
    hvm_params: dict[int, int] = field(default_factory=dict)
    contexts: dict[int, bytes] = field(default_factory=dict)
    extra: dict[int, dict[str, bytes]] = field(default_factory=dict)
    shared_info: bytes = bytes(PAGE_SIZE)


class MemoryDomain:
    """Pages by pfn, shape (nr_pfns,) all arrays: `p2m` (frame, or INVALID), `types` (PageType).

    What the guest does to itself is `write`, `balloon_out`, `balloon_in`, `tear`, `mend`, `suspend`; each is seen by
    log-dirty. `unmappable` and `unmappable_until_suspended` mark pages that cannot be mapped just now.
    `close` raises BufferError while anybody still holds a view of its memory.
    """

    def __init__(self, kind: DomainType, nr_frames: int, *, seed: int = 0, run_pages: int = 1) -> None:
        """An empty domain on a host with room for `nr_frames` pages; frames come in runs of `run_pages`."""
        self.kind = kind
        self.is_pv = kind is DomainType.X86_PV
        self.nr_pfns = 0
        self.p2m: U64 = np.empty(0, dtype=np.uint64)
        self.types: U8 = np.empty(0, dtype=np.uint8)
        self.unmappable: Bool = np.empty(0, dtype=bool)
        self.unmappable_until_suspended: Bool = np.empty(0, dtype=bool)
        self.p2m_frames: U64 = np.empty(0, dtype=np.uint64)
        self.generation = 0
        self.state = Processors()
        self.suspended = False
        self.cpu_percent = 100  # of its processor time: scripts that make it write go by it
        self.dirty: Bool | None = None  # log-dirty is off
        first = FOREIGN_FRAMES if self.is_pv else 0
        runs = np.arange(-(-nr_frames // run_pages), dtype=np.uint64)
        if self.is_pv:
            np.random.default_rng(seed).shuffle(runs)
        in_run = np.arange(run_pages, dtype=np.uint64)
        self._free: U64 = np.add.outer(runs * np.uint64(run_pages) + np.uint64(first), in_run).reshape(-1)
        self._nr_used = 0
        self.capacity_pfns = len(self._free)  # how many pages it can be given
        nr_host_frames = len(self._free) + first
        self.m2p: U64 = np.full(nr_host_frames, INVALID, dtype=np.uint64)
        self._mmap = mmap.mmap(-1, nr_host_frames * PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # as Xen gives it; a kernel without huge pages is only slower
            self._mmap.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(self._mmap)
        self._frames: U8 | None = np.frombuffer(self.view, dtype=np.uint8).reshape(-1, PAGE_SIZE)

    @classmethod
    def pvh(cls, nr_pfns: int, *, hole: range = range(0), seed: int = 0) -> MemoryDomain:
        """A PVH-like domain, memory zero but for a word a page; no memory at the pfns of `hole`."""
        domain = cls(DomainType.X86_HVM, nr_pfns, seed=seed)
        domain.grow(nr_pfns)
        has_memory = np.ones(nr_pfns, dtype=bool)
        has_memory[hole.start : hole.stop] = False
        domain.populate(np.flatnonzero(has_memory).astype(np.uint64))
        domain._number_pages()
        rings = {hvm_params.HVM_PARAM_STORE_PFN: STORE_RING, hvm_params.HVM_PARAM_CONSOLE_PFN: CONSOLE_RING}
        domain.state.hvm_params = rings
        return domain

    @classmethod
    def pv(cls, nr_pfns: int, *, nr_vcpus: int = 2, seed: int = 0, run_pages: int = 1) -> MemoryDomain:
        """A PV-like domain, memory zero but for a word a page, and all of it mapped by its tables."""
        if nr_pfns < SMALLEST_PFNS:
            raise ValueError(f"a PV domain needs {SMALLEST_PFNS} pages")
        domain = cls(DomainType.X86_PV, nr_pfns, seed=seed, run_pages=run_pages)
        domain.grow(nr_pfns)
        domain.populate(np.arange(nr_pfns, dtype=np.uint64))
        domain._number_pages()
        nr_p2m = -(-nr_pfns // ENTRIES)
        domain.p2m_frames = np.arange(FIRST_P2M_PFN, FIRST_P2M_PFN + nr_p2m, dtype=np.uint64)
        domain._build_tables(FIRST_P2M_PFN + nr_p2m)
        domain.store_p2m()
        domain._build_processors(nr_vcpus)
        return domain

    # ---- frames ----------------------------------------------------------------------------------

    @property
    def frames(self) -> U8:
        """All frames of the host, shape (n, 4096), by frame number. Keep no part of it."""
        if self._frames is None:
            raise ValueError("the domain is closed")
        return self._frames

    def grow(self, nr_pfns: int) -> None:
        """Let pfns go up to `nr_pfns`; the new ones have no memory. ImageError when the host is too small."""
        if nr_pfns > self.capacity_pfns:
            raise ImageError(f"pfn {nr_pfns - 1:#x} is beyond the domain's last, {self.capacity_pfns - 1:#x}")
        more = max(0, nr_pfns - self.nr_pfns)
        self.p2m = np.append(self.p2m, np.full(more, INVALID))
        self.types = np.append(self.types, np.full(more, PageType.NOTAB, dtype=np.uint8))
        self.unmappable = np.append(self.unmappable, np.zeros(more, dtype=bool))
        self.unmappable_until_suspended = np.append(
            self.unmappable_until_suspended, np.zeros(more, dtype=bool)
        )
        self.nr_pfns += more

    def populate(self, pfns: U64) -> None:
        """Give memory, all zero, to those of `pfns` (each once) that have none."""
        new = pfns[self.p2m[pfns] == INVALID]
        if self.is_pv:
            mfns = self._free[self._nr_used : self._nr_used + len(new)]
            if len(mfns) < len(new):
                raise DomainError("the host has no memory left")
            self._nr_used += len(new)
        else:
            mfns = new
        self.p2m[new] = mfns
        self.m2p[mfns] = new

    def populated(self) -> U64:
        """Pfns that have memory."""
        return np.flatnonzero(self.p2m != INVALID).astype(np.uint64)

    def read(self, pfns: U64) -> U8:
        """A copy of these pages as they are, shape (n, 4096)."""
        return self.frames[self.p2m[pfns]]

    def content(self, pfns: U64) -> U8:
        """A copy of these pages in the stream's form: page tables hold pfns."""
        pages = self.read(pfns)
        types = self.types[pfns]
        at = np.flatnonzero(tables.is_table(types)) if self.is_pv else np.empty(0, dtype=np.intp)
        normalised, _ = tables.normalise(tables.as_tables(pages[at]), types[at], self.m2p, self.p2m)
        pages[at] = normalised.view(np.uint8).reshape(-1, PAGE_SIZE)
        return pages

    # ---- what the guest does ---------------------------------------------------------------------

    def data_pfns(self) -> U64:
        """Pfns whose content means nothing to anybody: free to be written."""
        plain = (self.p2m != INVALID) & (self.types == PageType.NOTAB)
        plain[: GDT_FRAME + 1] = False
        plain[self.p2m_frames] = False
        return np.flatnonzero(plain).astype(np.uint64)

    def write(self, pfns: U64 | Sequence[int], data: U8 | int) -> None:
        """Write pages; `data` is broadcast to shape (n, 4096)."""
        where = np.asarray(pfns, dtype=np.uint64)
        self.frames[self.p2m[where]] = data
        self._mark(where)

    def write_entry(self, table_pfn: int, slot: int, pte: int) -> None:
        """Write one entry of a page table, as the hypervisor does on a PV guest's behalf."""
        self.frames[self.p2m[table_pfn]].view(np.uint64)[slot] = pte
        self._mark(np.array([table_pfn], dtype=np.uint64))

    def tear(self, table_pfn: int, slot: int = ENTRIES - 1) -> None:
        """Let a page table name a frame that is not the domain's: as in the middle of an update."""
        self.write_entry(table_pfn, slot, 1 << layout.PAGE_SHIFT | int(PTE_FLAGS))

    def mend(self, table_pfn: int, slot: int = ENTRIES - 1) -> None:
        """Undo `tear`."""
        self.write_entry(table_pfn, slot, 0)

    def balloon_out(self, pfns: U64) -> None:
        """Give memory back to the host."""
        mfns = self.p2m[pfns]
        self._map_by_tables(pfns, np.zeros(len(pfns), dtype=np.uint64))
        self.frames[mfns] = 0
        self.m2p[mfns] = INVALID
        self.p2m[pfns] = INVALID
        if self.is_pv:
            self._free = np.append(self._free[self._nr_used :], mfns)
            self._nr_used = 0
            self.store_p2m()
        self._mark(pfns)

    def balloon_in(self, pfns: U64) -> None:
        """Take memory for these pfns."""
        self.populate(pfns)
        self._map_by_tables(pfns, self.p2m[pfns] << np.uint64(layout.PAGE_SHIFT) | PTE_FLAGS)
        if self.is_pv:
            self.store_p2m()
        self._mark(pfns)

    def suspend(self) -> None:
        """Stop. A PV kernel first turns the rings' frames in start_info into pfns, as it will not know the next."""
        self._put_rings(np.array([STORE_RING, CONSOLE_RING], dtype=np.uint64))
        self.suspended = True

    def resume(self) -> None:
        """Go on, where no other domain was made of this one."""
        self.suspended = False
        self._put_rings(self.p2m[[STORE_RING, CONSOLE_RING]])

    def _put_rings(self, frames: U64) -> None:
        if self.is_pv:
            info = self.frames[self.p2m[START_INFO]].view(layout.START_INFO)[0]
            info["store_mfn"], info["console_mfn"] = frames
            self._mark(np.array([START_INFO], dtype=np.uint64))

    def _mark(self, pfns: U64) -> None:
        if self.dirty is not None:
            self.dirty[pfns] = True

    # ---- building --------------------------------------------------------------------------------

    def _number_pages(self) -> None:
        """Every page differs from every other, at the cost of one word."""
        pfns = self.populated()
        self.frames.view(np.uint64)[self.p2m[pfns], 7] = pfns + np.uint64(1)

    def store_p2m(self) -> None:
        """Write the p2m where the guest keeps it; entries behind the last are invalid."""
        table = np.full(len(self.p2m_frames) * ENTRIES, INVALID)
        table[: self.nr_pfns] = self.p2m
        self.frames[self.p2m[self.p2m_frames]] = table.view(np.uint8).reshape(-1, PAGE_SIZE)
        self._mark(self.p2m_frames)

    def _build_tables(self, first: int) -> None:
        """Tables from pfn `first` on: all L1, all L2, one L3, the kernel's and the user's L4."""
        nr_l1 = -(-self.nr_pfns // ENTRIES)
        nr_l2 = -(-nr_l1 // ENTRIES)
        self._first_l1 = first
        at, below = first, np.arange(self.nr_pfns, dtype=np.uint64)
        for level, number in ((PageType.L1TAB, nr_l1), (PageType.L2TAB, nr_l2), (PageType.L3TAB, 1)):
            pfns = np.arange(at, at + number, dtype=np.uint64)
            self._fill_tables(pfns, below, level)
            at, below = at + number, pfns
        self.top_tables = np.array([at, at + 1], dtype=np.uint64)
        for top in self.top_tables:
            self._fill_tables(top[None], below, PageType.L4TAB_PINNED)
            # Xen's own slots are in every L4 table, and name frames that no guest has.
            words = self.frames[self.p2m[top]].view(np.uint64)
            words[layout.XEN_L4_SLOTS] = np.uint64(2 << layout.PAGE_SHIFT) | PTE_FLAGS

    def _fill_tables(self, pfns: U64, below: U64, kind: PageType) -> None:
        words = np.zeros(len(pfns) * ENTRIES, dtype=np.uint64)
        words[: len(below)] = self.p2m[below] << np.uint64(layout.PAGE_SHIFT) | PTE_FLAGS
        self.frames[self.p2m[pfns]] = words.view(np.uint8).reshape(-1, PAGE_SIZE)
        self.types[pfns] = kind

    def _map_by_tables(self, pfns: U64, ptes: U64) -> None:
        if not self.is_pv:
            return
        l1 = pfns // np.uint64(ENTRIES) + np.uint64(self._first_l1)
        self.frames.view(np.uint64)[self.p2m[l1], pfns % np.uint64(ENTRIES)] = ptes
        self._mark(l1)

    def _build_processors(self, nr_vcpus: int) -> None:
        for i in range(nr_vcpus):
            raw = bytearray(np.random.default_rng(i).bytes(layout.VCPU_CONTEXT.itemsize))
            context = np.frombuffer(raw, dtype=layout.VCPU_CONTEXT)[0]
            context["flags"] = layout.VGCF_ONLINE
            context["rdx"] = self.p2m[START_INFO] if i == 0 else 0
            context["gdt_ents"] = layout.GDT_ENTRIES_A_FRAME
            context["gdt_frames"][0] = self.p2m[GDT_FRAME]
            context["ctrlreg"][3] = int(self.p2m[self.top_tables[0]]) << layout.PAGE_SHIFT
            context["ctrlreg"][1] = int(self.p2m[self.top_tables[1]]) << layout.PAGE_SHIFT if i else 0
            self.state.contexts[i] = bytes(raw)
            self.state.extra[i] = {name: blob + bytes([i]) for name, blob in FIRST_VCPU_STATE.items()}
        page = np.zeros(PAGE_SIZE, dtype=np.uint8)
        shared = page.view(layout.SHARED_INFO)[0]
        shared["arch"]["max_pfn"] = self.nr_pfns
        shared["arch"]["p2m_generation"] = 1
        shared["evtchn_pending"] = 5
        self.state.shared_info = page.tobytes()
        info = self.frames[self.p2m[START_INFO]].view(layout.START_INFO)[0]
        info["nr_pages"] = self.nr_pfns
        self._put_rings(self.p2m[[STORE_RING, CONSOLE_RING]])

    def close(self) -> None:
        """Give the memory up; BufferError when a view of it is still held. Twice is fine."""
        self._frames = None
        self.view.release()
        self._mmap.close()
