"""Foreign memory: pages of another domain, as a numpy-visible buffer (xenforeignmemory.h)."""

from __future__ import annotations

import mmap
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from pyxc import _log
from pyxc._handle import Handle, last_errno
from pyxc._xen import ffi, lib
from pyxc.errors import ClosedHandle, XenError

PAGE_SIZE = 4096

# Xen's pseudo-domain that owns the machine-to-physical table (xen/public/xen.h, DOMID_XEN).
DOMID_XEN = 0x7FF2

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]


class Mapping:
    """Pages of a domain, mapped one after the other in the order they were asked for.

    `errors[i]` is 0, or the errno with which page i could not be mapped; its bytes must not be touched.
    Arrays taken from it stay valid only until `close()`: memory that is touched later is a segmentation
    fault, not an exception. Take them inside the `with` block and keep none.
    """

    def __init__(
        self, owner: ForeignMemory, address: ffi.CData, errors: I32, *, lingers_for: U64 | None = None
    ) -> None:
        """`lingers_for`: its frames, when it may linger."""
        self._owner = owner
        self._address: ffi.CData | None = address
        self._lingers_for = lingers_for
        self.errors = errors

    @property
    def nr_pages(self) -> int:
        """How many pages were asked for."""
        return len(self.errors)

    @property
    def buffer(self) -> memoryview:
        """All pages as one writable-or-not byte buffer, as they were mapped; no copy."""
        if self._address is None:
            raise ClosedHandle("mapping is closed")
        return memoryview(ffi.buffer(self._address, self.nr_pages * PAGE_SIZE))

    @property
    def pages(self) -> U8:
        """The same memory as an array of shape (nr_pages, 4096)."""
        return np.frombuffer(self.buffer, dtype=np.uint8).reshape(self.nr_pages, PAGE_SIZE)

    @property
    def words(self) -> U64:
        """The same memory as 64-bit words, shape (nr_pages * 512,)."""
        return np.frombuffer(self.buffer, dtype=np.uint64)

    def close(self) -> None:
        """Unmap, now or, if it may linger, later. Twice is fine."""
        address, self._address = self._address, None
        frames, self._lingers_for = self._lingers_for, None
        if address is not None and not self._owner.closed:
            self._owner.unmap(address, self.nr_pages, lingers_for=frames)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class GrantTable:
    """A domain's shared grant table (version 1 entries), mapped read-write; see `map_grant_table`."""

    # xen/public/grant_table.h, struct grant_entry_v1
    ENTRY = np.dtype([("flags", "<u2"), ("domid", "<u2"), ("frame", "<u4")])
    PERMIT_ACCESS = 1

    def __init__(self, owner: ForeignMemory, resource: ffi.CData, address: ffi.CData) -> None:
        self._owner = owner
        self._resource = resource
        self._address = address

    @property
    def entries(self) -> npt.NDArray[np.void]:
        """The first frame's 512 entries."""
        return np.frombuffer(ffi.buffer(self._address, PAGE_SIZE), dtype=self.ENTRY)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lib.xenforeignmemory_unmap_resource(self._owner.ptr, self._resource)


@dataclass(eq=False, frozen=True)
class _Lingering:
    """A closed mapping that is mapped still, of frames between these two."""

    address: ffi.CData
    nr_pages: int
    first_gfn: int
    last_gfn: int

    def may_have(self, gfns: U64) -> bool:
        """Whether any of these, which are sorted, lies between its first and its last."""
        begin = np.searchsorted(gfns, np.uint64(self.first_gfn), side="left")
        return bool(begin < np.searchsorted(gfns, np.uint64(self.last_gfn), side="right"))


LINGERING_PAGES = 2 << 20
"""As many pages of closed mappings may linger: 8 GiB, for which this process has 16 MiB of page tables."""

LINGERS_FROM_PAGES = 64
"""Smaller ones do not: all together would be more mappings than a process may have (vm.max_map_count, 65,530)."""


class ForeignMemory(Handle):
    """Maps other domains' memory. Safe to use from several threads at once.

    Unmapping takes longer than mapping in a PV control domain: 7 us a page in the lab, and less than 2 when the
    process ends. (By Linux's code: entries of a page table that is in use are cleared one by one, each a trap that
    Xen emulates; those of a process that ends are plain memory again.) So a mapping that `may_linger` is not
    unmapped when it is closed, but by `unmap_lingering`, or with this handle; or, where that is never closed, by
    the kernel when the process ends.
    """

    def __init__(self) -> None:
        pointer = lib.xenforeignmemory_open(_log.logger(), 0)
        if pointer == ffi.NULL:
            raise XenError("xenforeignmemory_open", last_errno(), detail="is this a Xen control domain?")
        super().__init__(pointer)
        self._lock = threading.Lock()
        self._lingering: list[_Lingering] = []
        self._nr_lingering = 0

    def _close(self, pointer: ffi.CData) -> None:
        self._unmap_lingering(pointer, None)
        lib.xenforeignmemory_close(pointer)

    def unmap(self, address: ffi.CData, nr_pages: int, *, lingers_for: U64 | None) -> None:
        """For a `Mapping` that is closed; of these frames, when it may linger."""
        if lingers_for is not None and nr_pages >= LINGERS_FROM_PAGES:
            one = _Lingering(address, nr_pages, int(lingers_for.min()), int(lingers_for.max()))
            with self._lock:
                if self._nr_lingering + nr_pages <= LINGERING_PAGES:
                    self._nr_lingering += nr_pages
                    self._lingering.append(one)
                    return
        lib.xenforeignmemory_unmap(self.ptr, address, nr_pages)

    def unmap_lingering(self, gfns: U64 | None = None) -> None:
        """Unmap what was closed and is mapped still: before its domain is destroyed, or must be alone with it.

        Of a domain whose frames `gfns` are taken away, only mappings that may have any of those.
        """
        self._unmap_lingering(self.ptr, None if gfns is None else np.sort(gfns))

    def _unmap_lingering(self, pointer: ffi.CData, gfns: U64 | None) -> None:
        with self._lock:
            chosen = [one for one in self._lingering if gfns is None or one.may_have(gfns)]
        for one in chosen:  # one by one: what a signal leaves is known still
            with self._lock:
                if one not in self._lingering:  # another thread was here
                    continue
                self._lingering.remove(one)
                self._nr_lingering -= one.nr_pages
            lib.xenforeignmemory_unmap(pointer, one.address, one.nr_pages)

    def map(
        self,
        domid: int,
        gfns: U64,
        *,
        writable: bool = False,
        partial: bool = False,
        may_linger: bool = False,
    ) -> Mapping:
        """Map frames `gfns` (PV: mfns) of a domain, shape (n,), n >= 1.

        With `partial`, pages that cannot be mapped are told in `Mapping.errors`; without it any such page
        raises XenError naming the first one, and nothing stays mapped. `may_linger`: see the class; not of a
        PV guest that runs meanwhile, which could not exchange such a frame for another, and not writable of one whose
        page tables are about to be pinned: Xen refuses both.
        """
        gfns = np.ascontiguousarray(gfns, dtype=np.uint64)
        errors = np.zeros(len(gfns), dtype=np.int32)
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        address = lib.xenforeignmemory_map(
            self.ptr,
            domid,
            prot,
            len(gfns),
            ffi.from_buffer("xen_pfn_t[]", gfns),
            ffi.from_buffer("int[]", errors),
        )
        if address == ffi.NULL:
            raise XenError("xenforeignmemory_map", last_errno(), domid=domid, detail=f"{len(gfns)} pages")
        mapping = Mapping(self, address, errors, lingers_for=gfns if may_linger else None)
        if not partial and errors.any():
            first = int(np.flatnonzero(errors)[0])
            mapping.close()
            raise XenError(
                "xenforeignmemory_map",
                abs(int(errors[first])),
                domid=domid,
                detail=f"{np.count_nonzero(errors)} of {len(gfns)} pages, first gfn {int(gfns[first]):#x}",
            )
        return mapping

    def map_page(self, domid: int, gfn: int, *, writable: bool = False) -> Mapping:
        """Map a single frame; as `map`."""
        return self.map(domid, np.array([gfn], dtype=np.uint64), writable=writable)

    def map_grant_table(self, domid: int) -> GrantTable:
        """Map the first frame of a domain's shared grant table, read-write (XENMEM_acquire_resource)."""
        address = ffi.new("void **")
        resource = lib.xenforeignmemory_map_resource(
            self.ptr,
            domid,
            lib.XENMEM_resource_grant_table,
            lib.XENMEM_resource_grant_table_id_shared,
            0,
            1,
            address,
            mmap.PROT_READ | mmap.PROT_WRITE,
            0,
        )
        if resource == ffi.NULL:
            raise XenError(
                "xenforeignmemory_map_resource", last_errno(), domid=domid, detail="the grant table"
            )
        return GrantTable(self, resource, address[0])
