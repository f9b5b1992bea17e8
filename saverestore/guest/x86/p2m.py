"""Where a PV guest keeps its pfn-to-mfn table, and reading it in place.

Linux since 4.0 maps the table at one virtual address and tells the page tables that map it (`p2m_cr3`,
`p2m_vaddr`); older guests link its frames in a tree of three levels (`frame_list_list`). Both come out as
the same thing: the mfns of the frames that hold the table, mapped read-only and one after the other, so
that `table[pfn]` is the guest's own word, live.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pyxc import ForeignMemory, Mapping
from saverestore.errors import DomainError, ErrorName
from saverestore.guest.x86.layout import SHARED_INFO
from saverestore.guest.x86.p2m_walk import walk_list, walk_tree

U64 = npt.NDArray[np.uint64]


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
                    f"its p2m table names machine frame {int(mfns[bad[0]]):#x}, which this "
                    f"host does not have (last one: {max_mfn:#x}); has the guest finished booting?",
                    name=ErrorName.DOMAIN_NOT_READY,
                )
            with memory.map(domid, mfns) as mapping:
                return mapping.words.copy()

        max_pfn = int(self._arch["max_pfn"]) - 1
        if max_pfn < 0:
            raise DomainError(
                f"domain {domid} has not published its p2m table; is it still booting?",
                name=ErrorName.DOMAIN_NOT_READY,
            )
        try:
            if self.uses_list:
                root = int(self._arch["p2m_cr3"]) >> 12
                leaves, max_pfn = walk_list(read_frames, root, int(self._arch["p2m_vaddr"]), max_pfn)
            else:
                leaves, max_pfn = walk_tree(read_frames, int(self._arch["frame_list_list"]), max_pfn)
        except DomainError as error:
            raise DomainError(f"domain {domid}: {error}", name=ErrorName.DOMAIN_UNREADABLE) from error
        self.max_pfn = max_pfn
        if (leaves == 0).any() or (leaves > max_mfn).any():
            raise DomainError(
                f"domain {domid}: its p2m table has frames this host does not have",
                name=ErrorName.DOMAIN_UNREADABLE,
            )
        self._mapping = memory.map(domid, leaves)
        self.table: U64 = self._mapping.words[: max_pfn + 1]
        self.frame_pfns: U64 = m2p[leaves].copy()
        outside = np.flatnonzero((self.frame_pfns > max_pfn) | (self._mfns_of(self.frame_pfns) != leaves))
        if len(outside):
            mfn = int(leaves[outside[0]])
            self.close()
            raise DomainError(
                f"domain {domid}: frame {mfn:#x} of its p2m table is not part of its own memory",
                name=ErrorName.DOMAIN_UNREADABLE,
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
