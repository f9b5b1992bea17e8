"""A domain's physical memory: what kind its pages are, giving it pages, and what was written (xenctrl.h)."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from pyxc._arch import X86, require
from pyxc._handle import check_rc, last_errno
from pyxc._xen import ffi, lib
from pyxc.control import Xen
from pyxc.errors import ClosedHandle, XenError
from pyxc.foreign import DOMID_XEN, PAGE_SIZE, ForeignMemory, Mapping

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]

INVALID_MFN = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


def page_types(xen: Xen, domid: int, gfns: U64) -> U8:
    """The kind of each frame (PV: of each mfn), shape (n,): the top four bits of XEN_DOMCTL_PFINFO_*.

    Any n. Populates populate-on-demand pages of an HVM guest.
    """
    require(X86, "xc_get_pfn_type_batch", domid)
    answer = np.array(gfns, dtype=np.uint64)  # the call overwrites its input
    rc = lib.pyxc_page_types(xen.ptr, domid, len(answer), ffi.from_buffer("xen_pfn_t[]", answer))
    check_rc(rc, "xc_get_pfn_type_batch", domid)
    return (answer >> np.uint64(lib.XEN_DOMCTL_PFINFO_LTAB_SHIFT)).astype(np.uint8)


def nr_gpfns(xen: Xen, domid: int) -> int:
    """One more than the domain's highest guest frame number, holes included."""
    number = ffi.new("xen_pfn_t *")
    check_rc(lib.xc_domain_nr_gpfns(xen.ptr, domid, number), "xc_domain_nr_gpfns", domid)
    return int(number[0])


@dataclass(frozen=True)
class PodTarget:
    """What of an HVM domain is populated on demand, in pages (xen/public/memory.h, struct xen_pod_target).

    `entries`: its frames that have no memory yet. `cache_pages`: what Xen keeps for these; part of `tot_pages`.
    """

    tot_pages: int
    cache_pages: int
    entries: int


def pod_target(xen: Xen, domid: int) -> PodTarget:
    """Of an HVM or PVH domain; of another, XenError (EINVAL)."""
    require(X86, "xc_domain_get_pod_target", domid)
    total, cache, entries = (ffi.new("uint64_t *") for _ in range(3))
    check_rc(
        lib.xc_domain_get_pod_target(xen.ptr, domid, total, cache, entries), "xc_domain_get_pod_target", domid
    )
    return PodTarget(int(total[0]), int(cache[0]), int(entries[0]))


def guest_width_bytes(xen: Xen, domid: int) -> int:
    """The PV guest's word: 4 or 8 bytes."""
    require(X86, "xc_domain_get_guest_width", domid)
    width = ffi.new("unsigned int *")
    rc = lib.xc_domain_get_guest_width(xen.ptr, domid, width)
    if rc != 0:  # 1, not -1, on error
        raise XenError("xc_domain_get_guest_width", last_errno(), domid=domid)
    return int(width[0])


def populate(xen: Xen, domid: int, pfns: U64, *, order: int = 0) -> U64:
    """Give the domain memory at `pfns` (extents of 2**order pages): the frames' numbers, shape (n,).

    PV: freshly allocated mfns; HVM: the gfns themselves. Raises XenError (ENOMEM) when not all can be had;
    what was given until then stays the domain's.
    """
    extents = np.array(pfns, dtype=np.uint64)
    rc = lib.xc_domain_populate_physmap_exact(
        xen.ptr, domid, len(extents), order, 0, ffi.from_buffer("xen_pfn_t[]", extents)
    )
    check_rc(rc, "xc_domain_populate_physmap_exact", domid, detail=f"{len(extents)} extents of order {order}")
    return extents


def try_populate(xen: Xen, domid: int, pfns: U64, *, order: int) -> int:
    """As `populate`, but how many extents were given, counted from the first, is told instead of raised."""
    extents = np.array(pfns, dtype=np.uint64)
    rc = lib.xc_domain_populate_physmap(
        xen.ptr, domid, len(extents), order, 0, ffi.from_buffer("xen_pfn_t[]", extents)
    )
    return max(0, int(rc))


def release(xen: Xen, domid: int, gfns: U64) -> None:
    """Take pages away from the domain (PV: mfns), as its balloon driver would."""
    extents = np.array(gfns, dtype=np.uint64)
    rc = lib.xc_domain_decrease_reservation_exact(
        xen.ptr, domid, len(extents), 0, ffi.from_buffer("xen_pfn_t[]", extents)
    )
    check_rc(rc, "xc_domain_decrease_reservation_exact", domid, detail=f"{len(extents)} pages")


def clear_page(xen: Xen, domid: int, gfn: int) -> None:
    """Fill one page of the domain with zeroes."""
    check_rc(lib.xc_clear_domain_pages(xen.ptr, domid, gfn, 1), "xc_clear_domain_pages", domid)


def map_m2p(xen: Xen, memory: ForeignMemory, max_mfn: int) -> Mapping:
    """Map Xen's machine-to-physical table read-only; `.words[mfn]` is the owner's pfn of that frame.

    Chunks of 2 MiB that have no RAM behind them repeat the one before (xc_machphys_mfn_list).
    """
    require(X86, "xc_machphys_mfn_list")
    chunk_mfns = 512  # a 2 MiB chunk is 512 pages
    entries = max_mfn + 1
    nr_chunks = -(-entries * 8 // (chunk_mfns * PAGE_SIZE))
    chunks = np.zeros(nr_chunks, dtype=np.uint64)
    rc = lib.xc_machphys_mfn_list(xen.ptr, nr_chunks, ffi.from_buffer("xen_pfn_t[]", chunks))
    check_rc(rc, "xc_machphys_mfn_list")
    frames: U64 = np.add.outer(chunks, np.arange(chunk_mfns, dtype=np.uint64)).reshape(-1)
    return memory.map(DOMID_XEN, frames)


class LogDirty:
    """The hypervisor's record of which of a domain's pages were written since it was last asked.

    On from the constructor to `close()`. XenError EOPNOTSUPP: this kind of domain has none on this Xen
    (PV without shadow paging); EINVAL: on already, by somebody else, or the domain has passthrough devices.
    """

    def __init__(self, xen: Xen, domid: int, nr_pfns: int) -> None:
        require(X86, "xc_shadow_control", domid)
        self._xen = xen
        self._domid = domid
        self._nr_pfns = nr_pfns
        self._bitmap = lib.pyxc_dirty_bitmap_new(xen.ptr, nr_pfns)
        if self._bitmap == ffi.NULL:
            raise XenError("xc_hypercall_buffer_alloc_pages", last_errno(), domid=domid)
        try:
            self._enable()
        except BaseException:
            lib.pyxc_dirty_bitmap_free(xen.ptr, self._bitmap)
            self._bitmap = ffi.NULL
            raise

    def _enable(self) -> None:
        if lib.pyxc_logdirty_enable(self._xen.ptr, self._domid) >= 0:
            return
        first = last_errno()
        # It may be on for tracking video memory: off and on again makes it ours.
        if lib.pyxc_logdirty_off(self._xen.ptr, self._domid) >= 0:
            check_rc(
                lib.pyxc_logdirty_enable(self._xen.ptr, self._domid),
                "xc_shadow_control",
                self._domid,
                detail="log-dirty",
            )
            return
        raise XenError("xc_shadow_control", first, domid=self._domid, detail="log-dirty cannot be enabled")

    def take(self, *, final: bool = False) -> npt.NDArray[np.bool_]:
        """Which pfns were written since the last call, shape (nr_pfns,); the record starts afresh.

        `final`: the domain is suspended and this is the last call; HVM frames that Xen itself has mapped
        count as written, too.
        """
        if self._bitmap == ffi.NULL:
            raise ClosedHandle("log-dirty is off")
        count = ffi.new("uint32_t *")
        rc = lib.pyxc_logdirty_clean(self._xen.ptr, self._domid, self._bitmap, self._nr_pfns, final, count)
        check_rc(rc, "xc_logdirty_control", self._domid)
        if rc != self._nr_pfns:
            raise XenError(
                "xc_logdirty_control",
                last_errno(),
                domid=self._domid,
                detail=f"told of {rc} of {self._nr_pfns} pages",
            )
        size = (self._nr_pfns + 7) // 8
        raw = np.frombuffer(ffi.buffer(self._bitmap.data, size), dtype=np.uint8)
        return np.unpackbits(raw, count=self._nr_pfns, bitorder="little").view(np.bool_)

    def close(self) -> None:
        """Turn it off. Twice is fine; a domain that is gone is fine, too."""
        bitmap, self._bitmap = self._bitmap, ffi.NULL
        if bitmap != ffi.NULL:
            lib.pyxc_logdirty_off(self._xen.ptr, self._domid)
            lib.pyxc_dirty_bitmap_free(self._xen.ptr, bitmap)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
