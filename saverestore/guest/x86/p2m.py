"""Where a PV guest keeps its pfn-to-mfn table, and reading it in place.

Linux since 4.0 maps the table at one virtual address and tells the page tables that map it (`p2m_cr3`,
`p2m_vaddr`); older guests link its frames in a tree of three levels (`frame_list_list`). Both come out as
the same thing: the mfns of the frames that hold the table, mapped read-only and one after the other, so
that `table[pfn]` is the guest's own word, live.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pyxc import ForeignMemory, Mapping
from pyxc.foreign import PAGE_SIZE
from saverestore.errors import DomainError
from saverestore.guest.x86.layout import ENTRIES_A_TABLE, SHARED_INFO, XEN_HOLE
from saverestore.guest.x86.tables import frames_of

U64 = npt.NDArray[np.uint64]

PFNS_A_FRAME = PAGE_SIZE // 8
CANONICAL_BITS = 48
PAGE_TABLE_LEVELS = 4

ReadFrames = Callable[[U64], U64]
"""Words of the frames with these mfns, copied, shape (n * 512,)."""


class P2m:
    """A guest's p2m table, mapped. `table[pfn]` for pfn up to and including `max_pfn`.

    `frame_pfns` are the pfns of the frames it lies in, as X86_PV_P2M_FRAMES carries them. The mapping
    follows the guest's writes, not a move of the table itself: see `moved`.
    """

    def __init__(
        self, memory: ForeignMemory, domid: int, shared_info: Mapping, m2p: U64, max_mfn: int
    ) -> None:
        self._domid = domid
        self._arch = shared_info.pages.reshape(-1).view(SHARED_INFO)[0]["arch"]
        self.generation = int(self._arch["p2m_generation"])
        self.uses_list = int(self._arch["p2m_cr3"]) != 0

        def read_frames(mfns: U64) -> U64:
            bad = np.flatnonzero((mfns == 0) | (mfns > max_mfn))
            if len(bad):
                raise DomainError(
                    f"domain {domid}: its p2m table names machine frame {int(mfns[bad[0]]):#x}, which this "
                    f"host does not have (last one: {max_mfn:#x}); has the guest finished booting?"
                )
            with memory.map(domid, mfns) as mapping:
                return mapping.words.copy()

        max_pfn = int(self._arch["max_pfn"]) - 1
        if max_pfn < 0:
            raise DomainError(f"domain {domid} has not told where its p2m table is; is it still booting?")
        if self.uses_list:
            root = int(self._arch["p2m_cr3"]) >> 12
            leaves, max_pfn = walk_list(read_frames, root, int(self._arch["p2m_vaddr"]), max_pfn)
        else:
            leaves, max_pfn = walk_tree(read_frames, int(self._arch["frame_list_list"]), max_pfn)
        self.max_pfn = max_pfn
        if (leaves == 0).any() or (leaves > max_mfn).any():
            raise DomainError(f"domain {domid}: its p2m table has frames this host does not have")
        self._mapping = memory.map(domid, leaves)
        self.table: U64 = self._mapping.words[: max_pfn + 1]
        self.frame_pfns: U64 = m2p[leaves].copy()
        outside = np.flatnonzero((self.frame_pfns > max_pfn) | (self._mfns_of(self.frame_pfns) != leaves))
        if len(outside):
            mfn = int(leaves[outside[0]])
            self.close()
            raise DomainError(
                f"domain {domid}: frame {mfn:#x} of its p2m table is not part of its own memory"
            )

    def _mfns_of(self, pfns: U64) -> U64:
        return self.table[np.minimum(pfns, np.uint64(self.max_pfn))]

    def moved(self) -> bool:
        """Whether the guest has changed the structure of its table since it was mapped."""
        return self.uses_list and int(self._arch["p2m_generation"]) != self.generation

    def close(self) -> None:
        """Unmap the table."""
        self.table = np.empty(0, dtype=np.uint64)
        self._mapping.close()


def walk_list(read_frames: ReadFrames, root_mfn: int, vaddr: int, max_pfn: int) -> tuple[U64, int]:
    """Frames of a table mapped at `vaddr` by the page tables below `root_mfn`: (their mfns, max_pfn).

    `max_pfn` comes back lower when the end of the table consists of repeated entries: the guest uses one
    frame of invalid entries for all of them, so nothing is there.
    """
    end = vaddr + (max_pfn // PFNS_A_FRAME + 1) * PAGE_SIZE - 1
    if not (_is_canonical(vaddr) and _is_canonical(end)) or (vaddr <= XEN_HOLE[1] and end > XEN_HOLE[0]):
        raise DomainError(f"the guest's p2m table cannot lie at {vaddr:#x}–{end:#x}")
    start = vaddr & ((1 << CANONICAL_BITS) - 1)
    stop = end & ((1 << CANONICAL_BITS) - 1)
    mfns = np.array([root_mfn], dtype=np.uint64)
    for level in range(PAGE_TABLE_LEVELS, 0, -1):
        shift = 12 + 9 * (level - 1)
        # Entries of all mapped tables, numbered as if the level were one large table.
        first_table = start >> (shift + 9)
        entries = read_frames(mfns)
        first = (start >> shift) - first_table * ENTRIES_A_TABLE
        last = (stop >> shift) - first_table * ENTRIES_A_TABLE
        mfns = frames_of(entries[first : last + 1])
        if level == 2:  # each of these tables maps 512 frames of the p2m
            kept = without_repeated_tail(mfns)
            mfns = mfns[:kept]
            table_start = (start >> shift) << shift
            table_pfns = (table_start + (kept << shift) - start) // 8
            if table_pfns - 1 < max_pfn:
                max_pfn = table_pfns - 1
                stop = start + (max_pfn // PFNS_A_FRAME + 1) * PAGE_SIZE - 1
    return mfns, max_pfn


def walk_tree(read_frames: ReadFrames, root_mfn: int, max_pfn: int) -> tuple[U64, int]:
    """Frames of a table linked as a tree of mfns, three levels of 512: (their mfns, max_pfn)."""
    pfns_a_middle = PFNS_A_FRAME * PFNS_A_FRAME
    nr_middle = max_pfn // pfns_a_middle + 1
    if nr_middle > PFNS_A_FRAME:
        raise DomainError(f"the guest's last pfn, {max_pfn:#x}, is too large for a p2m tree")
    middle = read_frames(np.array([root_mfn], dtype=np.uint64))[:nr_middle]
    kept = without_repeated_tail(middle)
    max_pfn = min(max_pfn, kept * pfns_a_middle - 1)
    nr_leaves = max_pfn // PFNS_A_FRAME + 1
    return read_frames(middle[:kept])[:nr_leaves], max_pfn


def without_repeated_tail(mfns: U64) -> int:
    """How many entries to keep when the last two or more are the same; at least one."""
    different = np.flatnonzero(mfns != mfns[-1])
    start_of_tail = int(different[-1]) + 1 if len(different) else 0
    return len(mfns) if start_of_tail >= len(mfns) - 1 else max(1, start_of_tail)


def _is_canonical(address: int) -> bool:
    top = address >> (CANONICAL_BITS - 1)
    return top in (0, (1 << (64 - CANONICAL_BITS + 1)) - 1)
