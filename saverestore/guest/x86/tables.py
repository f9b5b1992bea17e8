"""PV page tables: in the stream they hold pfns, in the domain mfns. Whole batches at a time, pure.

`normalise` and `localise` are a pair: with a p2m that is the inverse of the m2p, one undoes the other on
every table that Xen would accept.
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import numpy.typing as npt

from saverestore.errors import ImageError
from saverestore.guest.x86.layout import (
    ENTRIES_A_TABLE,
    PAGE_SHIFT,
    PTE_FRAME_MASK,
    PTE_PRESENT,
    PTE_PSE,
    XEN_L4_SLOTS,
)

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]

# A page type's low three bits say which level of table it is; the fourth, whether it is pinned.
LEVEL_MASK = 7
L4 = 4

INVALID_MFN = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


_TABLES = np.array([type < 13 and 1 <= type & LEVEL_MASK <= L4 for type in range(16)])


def is_table(types: U8) -> Bool:
    """Which of these page types are page tables, of levels 1 to 4, pinned or not."""
    tables: Bool = _TABLES[types]
    return tables


def frames_of(tables: U64) -> U64:
    """The frame number in each entry."""
    return (tables & PTE_FRAME_MASK) >> np.uint64(PAGE_SHIFT)


def _with_frames(tables: U64, frames: U64, present: Bool) -> U64:
    moved = (tables & ~PTE_FRAME_MASK) | (frames << np.uint64(PAGE_SHIFT))
    return np.where(present, moved, tables)


def normalise(tables: U64, types: U8, m2p: U64, p2m: U64) -> tuple[U64, Bool]:
    """Replace mfns by pfns in `tables`, shape (n, 512), of the kinds `types`, shape (n,).

    `m2p[mfn]` and `p2m[pfn]` are the host's and the guest's maps. Returns the new tables and which of them
    are good. A table is not good when a present entry names a frame that is not the guest's, or a superpage
    (above L1), which PV guests do not have: half an update, a foreign frame, or a page that has become something
    else since its type was asked for. While the guest runs it is to be read again. Xen's own L4 slots become zero.
    """
    tables = tables.copy()
    levels = types & LEVEL_MASK
    tables[levels == L4, XEN_L4_SLOTS] = 0
    present = (tables & PTE_PRESENT) != 0
    superpage = present & ((tables & PTE_PSE) != 0) & (levels > 1)[:, None]
    mfns = np.where(present, frames_of(tables), 0)
    in_m2p = mfns < len(m2p)
    pfns = m2p[np.where(in_m2p, mfns, 0)]
    in_p2m = pfns < len(p2m)
    owned = in_m2p & in_p2m & (p2m[np.where(in_p2m, pfns, 0)] == mfns)
    good = ((owned & ~superpage) | ~present).all(axis=1)
    return _with_frames(tables, pfns, present), good


def referenced_pfns(tables: U64) -> U64:
    """The pfns that present entries of normalised tables name, sorted, each once."""
    return np.unique(frames_of(tables)[(tables & PTE_PRESENT) != 0])


def localise(tables: U64, p2m: U64) -> U64:
    """Replace pfns by mfns in normalised `tables`, shape (n, 512).

    Every pfn named must have been given memory: `p2m[pfn]` is not INVALID_MFN. ImageError otherwise.
    """
    present = (tables & PTE_PRESENT) != 0
    pfns = np.where(present, frames_of(tables), 0)
    if pfns.max(initial=0) >= len(p2m):
        _refuse(tables, present & (pfns >= len(p2m)), "beyond the domain's last pfn")
    mfns = p2m[pfns]
    missing = present & (mfns == INVALID_MFN)
    if missing.any():
        _refuse(tables, missing, "without memory")
    return _with_frames(tables, mfns, present)


def _refuse(tables: U64, bad: Bool, why: str) -> NoReturn:
    table, slot = (int(i) for i in np.argwhere(bad)[0])
    pte = int(tables[table, slot])
    raise ImageError(f"a page table of the image names a pfn {why}: entry {slot} is {pte:#018x}")


def as_tables(pages: U8) -> U64:
    """Pages, shape (n, 4096), seen as tables, shape (n, 512); no copy."""
    return pages.reshape(-1).view(np.uint64).reshape(-1, ENTRIES_A_TABLE)
