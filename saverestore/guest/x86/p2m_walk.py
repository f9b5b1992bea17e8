"""Finding the frames of a PV guest's p2m table, by the page tables that map it or by its tree. Pure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from saverestore.errors import DomainError, ErrorName
from saverestore.guest.x86.layout import ENTRIES_A_TABLE, XEN_HOLE
from saverestore.guest.x86.tables import frames_of
from saverestore.stream.layout import PAGE_SIZE

U64 = npt.NDArray[np.uint64]

PFNS_A_FRAME = PAGE_SIZE // 8
CANONICAL_BITS = 48
PAGE_TABLE_LEVELS = 4

ReadFrames = Callable[[U64], U64]
"""Words of the frames with these mfns, copied, shape (n * 512,)."""


def walk_list(read_frames: ReadFrames, root_mfn: int, vaddr: int, max_pfn: int) -> tuple[U64, int]:
    """Frames of a table mapped at `vaddr` by the page tables below `root_mfn`: (their mfns, max_pfn).

    `max_pfn` comes back lower when the end of the table consists of repeated entries: the guest uses one
    frame of invalid entries for all of them, so nothing is there.
    """
    end = vaddr + (max_pfn // PFNS_A_FRAME + 1) * PAGE_SIZE - 1
    if not (_is_canonical(vaddr) and _is_canonical(end)) or (vaddr <= XEN_HOLE[1] and end > XEN_HOLE[0]):
        raise DomainError(
            f"the guest's p2m table cannot lie at {vaddr:#x}–{end:#x}", name=ErrorName.DOMAIN_UNREADABLE
        )
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
        raise DomainError(
            f"the guest's last pfn, {max_pfn:#x}, is too large for a p2m tree",
            name=ErrorName.DOMAIN_UNREADABLE,
        )
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
