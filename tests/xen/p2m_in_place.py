"""Reading a restored PV guest that has not run yet, and so not told where its p2m lies."""

from __future__ import annotations

import numpy as np

from pyxc import ForeignMemory, Mapping, Xen
from pyxc.memory import page_types
from saverestore.stream.layout import PageType


def p2m_at(frame_pfns: np.ndarray) -> type:
    """What stands in for P2m: the table lies in these pfns."""

    class KnownP2m:
        def __init__(
            self, memory: ForeignMemory, domid: int, shared_info: Mapping, m2p: np.ndarray, max_mfn: int
        ) -> None:
            # Frames that have these pfns, in any domain; then those that are this domain's.
            mfns = np.flatnonzero(np.isin(m2p, frame_pfns)).astype(np.uint64)
            with Xen() as xen:
                mfns = mfns[page_types(xen, domid, mfns) != PageType.XTAB]
            mfn_of = {int(m2p[mfn]): int(mfn) for mfn in mfns.tolist()}
            leaves = np.array([mfn_of[pfn] for pfn in frame_pfns.tolist()], dtype=np.uint64)
            self._mapping = memory.map(domid, leaves)
            self.table = self._mapping.words
            self.max_pfn = len(self.table) - 1
            self.frame_pfns = frame_pfns

        def close(self) -> None:
            self._mapping.close()

    return KnownP2m
