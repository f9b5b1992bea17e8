"""64-bit PV domains: page tables hold machine frames, which the stream must not."""

from __future__ import annotations

import numpy as np

from pyxc import DomainInfo, Mapping, XenError, cpu
from pyxc import memory as xen_memory
from saverestore.errors import Advice, DomainError, ErrorName, ImageError, Remedy
from saverestore.guest.common.grants import seed_grant_table
from saverestore.guest.common.handles import Handles
from saverestore.guest.common.pages import MappedBatch, MappedWindow, Populated, map_for_save
from saverestore.guest.common.suspend import Suspending
from saverestore.guest.ports import U8, U64, Bool, Channels, LogDirty, PageBatch, PageWindow, RestoredPages
from saverestore.guest.x86 import tables, vcpu
from saverestore.guest.x86.common import CommonRestore, policy_records, tsc_record
from saverestore.guest.x86.hvm import open_log_dirty
from saverestore.guest.x86.layout import VCPU_CONTEXT
from saverestore.guest.x86.p2m import P2m
from saverestore.stream.layout import PAGE_SIZE, PIN, DomainType, PageType, has_data, has_memory, wants_memory
from saverestore.stream.records import (
    Record,
    SharedInfo,
    X86PvInfo,
    X86PvP2mFrames,
    X86PvVcpuBasic,
    X86PvVcpuExtended,
    X86PvVcpuMsrs,
    X86PvVcpuXsave,
)

WIDTH_BYTES = 8
LEVELS = 4

# As many PFNs as one frame of the p2m holds.
PFNS_A_FRAME = PAGE_SIZE // WIDTH_BYTES

PFNS_LINUX_PREPARES = 1 << 27  # 512 GiB, CONFIG_XEN_BALLOON_MEMORY_HOTPLUG_LIMIT


def pfn_limit(max_pages: int) -> int:
    """How far the p2m of a domain of so many pages may reach: Linux prepares it for memory that could be added."""
    return max(PFNS_LINUX_PREPARES, 2 * max_pages)


def refuse_32bit(width_bytes: int, what: str) -> None:
    """DomainError unless the guest's words have 8 bytes."""
    if width_bytes != WIDTH_BYTES:
        raise DomainError(
            f"{what} is a 32-bit PV guest, which is not supported (Linux dropped them in 5.9); "
            "run it as PVH or HVM"
        )


class PvSave:
    """Reads a running or suspended PV domain. See SaveGuest."""

    domain_type = DomainType.X86_PV

    def __init__(self, handles: Handles, info: DomainInfo, suspender: Suspending) -> None:
        self._handles = handles
        self._domid = domid = info.domid
        self._max_vcpu_id = info.max_vcpu_id
        self._suspender = suspender
        refuse_32bit(xen_memory.guest_width_bytes(handles.xen, domid), f"domain {domid}")
        version = handles.xen.version()
        self.xen_version = (version.major, version.minor)
        self.populated_pages = info.tot_pages
        self._max_mfn = handles.xen.host().max_mfn
        self._m2p_mapping = xen_memory.map_m2p(handles.xen, handles.memory, self._max_mfn)
        self._m2p: U64 = self._m2p_mapping.words[: self._max_mfn + 1]
        self._shared_info: Mapping | None = None
        self._p2m: P2m | None = None
        try:
            self._shared_info = handles.memory.map_page(domid, info.shared_info_frame)
            self._p2m = P2m(handles.memory, domid, self._shared_info, self._m2p, self._max_mfn)
        except BaseException:
            self.close()
            raise

    @property
    def p2m(self) -> P2m:
        """The guest's p2m table."""
        if self._p2m is None:
            raise ValueError("PvSave is closed")
        return self._p2m

    @property
    def nr_pfns(self) -> int:
        """One more than the highest pfn in the p2m."""
        return self.p2m.max_pfn + 1

    def static_records(self) -> list[Record]:
        """The guest's width, and the CPU policy."""
        return [X86PvInfo(WIDTH_BYTES, LEVELS), *policy_records(self._handles.xen, self._domid)]

    def memory_records(self) -> list[Record]:
        """Where the p2m lies."""
        return [X86PvP2mFrames(0, self.p2m.max_pfn, self.p2m.frame_pfns)]

    def types_of(self, pfns: U64) -> None:
        """Not told: reading the p2m is as cheap as asking, and says which are to be deferred."""

    def read_pages(self, pfns: U64, *, final: bool, types: U8 | None = None) -> PageBatch:
        """Map these pages, page tables as normalised copies. See SaveGuest."""
        mfns = self.p2m.table[pfns]  # a copy: the guest may change its table under us
        types = self._types_of_frames(mfns)
        wanted = has_data(types)
        mapping, lost = map_for_save(self._handles, self._domid, mfns[wanted], pfns[wanted], final=final)
        if mapping is not None and not types.any() and not lost.any():  # no tables, as in most batches
            return MappedBatch(pfns, types, mapping)
        # Gone, perhaps to come back in another frame: while the guest runs such a pfn is left for later, as a table
        # that names it would read the same then and not be sent again.
        deferred = np.zeros(len(pfns), dtype=bool) if final else ~has_memory(types)
        if mapping is None:
            return MappedBatch.without_data(pfns[~deferred], types[~deferred], pfns[deferred])
        try:
            staged, is_table, torn = self._normalised(mapping, types[wanted], lost)
        except BaseException:
            mapping.close()
            raise
        if final and torn.any():
            first = int(np.flatnonzero(torn)[0])
            mapping.close()
            raise DomainError(
                f"domain {self._domid}: pfn {int(pfns[wanted][first]):#x} is a page table of level "
                f"{int(types[wanted][first]) & tables.LEVEL_MASK} with "
                "an entry that is a superpage or not the guest's own memory"
            )
        left_out = lost | torn
        deferred[wanted] |= left_out
        return MappedBatch(
            pfns[~deferred],
            types[~deferred],
            mapping,
            staged=staged,
            is_staged=is_table,
            lost=left_out,
            deferred=pfns[deferred],
        )

    def _types_of_frames(self, mfns: U64) -> U8:
        """Types as Xen has them; XTAB of what is ballooned out (~0), or marked by the guest with the top bits as a
        grant or an identity entry."""
        has_frame = mfns <= self._max_mfn
        if has_frame.all():
            return xen_memory.page_types(self._handles.xen, self._domid, mfns)
        types = np.full(len(mfns), PageType.XTAB, dtype=np.uint8)
        types[has_frame] = xen_memory.page_types(self._handles.xen, self._domid, mfns[has_frame])
        return types

    def _normalised(self, mapping: Mapping, types: U8, lost: Bool) -> tuple[U8, Bool, Bool]:
        """(Normalised copies of the page tables, which pages these are, which of all pages are torn)."""
        is_table = tables.is_table(types) & ~lost
        torn = np.zeros(len(types), dtype=bool)
        at = np.flatnonzero(is_table)
        if not len(at):  # as in most batches
            return np.empty((0, PAGE_SIZE), dtype=np.uint8), is_table, torn
        copies = tables.as_tables(mapping.pages[at])  # indexing copies: normalised from one moment's content
        good_tables, good = tables.normalise(copies, types[at], self._m2p, self.p2m.table)
        torn[at] = ~good
        return good_tables.view(np.uint8).reshape(-1, PAGE_SIZE), is_table, torn

    def check_layout(self) -> None:
        """See SaveGuest: Linux counts changes of the table's structure in p2m_generation."""
        if self.p2m.moved():
            raise DomainError(
                f"domain {self._domid} rebuilt its p2m table while it was being saved live (it was given or "
                "gave away memory in a new place)",
                name=ErrorName.DOMAIN_CHANGED,
                remedies=[Advice(Remedy.TRY_AGAIN), Advice(Remedy.SAVE_WITHOUT_LIVE)],
            )

    def open_log_dirty(self) -> LogDirty:
        """Needs shadow paging in Xen."""
        return open_log_dirty(self._handles, self._domid, self.nr_pfns)

    def suspend(self) -> None:
        """See Suspender."""
        self._suspender.suspend()

    def resume(self) -> None:
        """See Suspender."""
        self._suspender.resume()

    def end_records(self) -> list[Record]:
        """TSC, shared_info, and each online vCPU."""
        if self._shared_info is None:
            raise ValueError("PvSave is closed")
        xen, domid = self._handles.xen, self._domid
        records: list[Record] = [tsc_record(xen, domid), SharedInfo(bytes(self._shared_info.buffer))]
        for i in range(self._max_vcpu_id + 1):
            if not cpu.vcpu_is_online(xen, domid, i):
                continue
            raw = cpu.vcpu_context(xen, domid, i, VCPU_CONTEXT.itemsize)
            records.append(X86PvVcpuBasic(i, vcpu.context_to_pfns(raw, i, self._pfn_of)))
            for state, record in (
                (cpu.vcpu_extended(xen, domid, i), X86PvVcpuExtended),
                (cpu.vcpu_xsave(xen, domid, i), X86PvVcpuXsave),
                (cpu.vcpu_msrs(xen, domid, i), X86PvVcpuMsrs),
            ):
                if state:
                    records.append(record(i, state))
        return records

    def _pfn_of(self, mfn: int, what: str) -> int:
        pfn = int(self._m2p[mfn]) if mfn <= self._max_mfn else -1
        if not (0 <= pfn < self.nr_pfns and int(self.p2m.table[pfn]) == mfn):
            raise DomainError(
                f"domain {self._domid}: {what} is in frame {mfn:#x}, which is not its own memory",
                name=ErrorName.DOMAIN_UNREADABLE,
            )
        return pfn

    def close(self) -> None:
        """Unmap p2m, m2p and shared_info."""
        for mapping in (self._p2m, self._shared_info, self._m2p_mapping):
            if mapping is not None:
                mapping.close()
        self._m2p = np.empty(0, dtype=np.uint64)


class PvRestore(CommonRestore):
    """Fills a fresh PV domain. See RestoreGuest."""

    def __init__(
        self,
        handles: Handles,
        info: DomainInfo,
        *,
        pfn_limit: int | None = None,
        check_cpu: bool = True,
    ) -> None:
        """`pfn_limit`: how many pfns the image may speak of, as each takes memory here; None: any number."""
        super().__init__(handles, info, check_cpu=check_cpu)
        self._pfn_limit = pfn_limit
        self._nr_vcpus = info.max_vcpu_id + 1
        self._p2m: U64 = np.empty(0, dtype=np.uint64)
        self._types: U8 = np.empty(0, dtype=np.uint8)
        self._frame_pfns: U64 = np.empty(0, dtype=np.uint64)
        self._populated = Populated()
        self._vcpus: dict[type[Record], dict[int, bytes]] = {
            kind: {} for kind in (X86PvVcpuBasic, X86PvVcpuExtended, X86PvVcpuXsave, X86PvVcpuMsrs)
        }

    def take(self, record: Record) -> None:
        """Apply a record; vCPUs are kept until `complete`."""
        if self.take_common(record):
            return
        if isinstance(record, X86PvInfo):
            refuse_32bit(record.guest_width, "the image")
        elif isinstance(record, X86PvP2mFrames):
            self._take_p2m_frames(record)
        elif isinstance(record, SharedInfo):
            with self._memory.map_page(self._domid, self._info.shared_info_frame, writable=True) as mapping:
                vcpu.merge_shared_info(mapping.pages, record.page)
        elif isinstance(record, X86PvVcpuBasic | X86PvVcpuExtended | X86PvVcpuXsave | X86PvVcpuMsrs):
            if not record.context:
                return  # older senders wrote empty ones
            if record.vcpu >= self._nr_vcpus:
                raise ImageError(f"state of vcpu {record.vcpu}, but the domain has {self._nr_vcpus} vCPUs")
            self._vcpus[type(record)][record.vcpu] = record.context
        else:
            raise ImageError(f"a {type(record).__name__} record is not valid in a PV image")

    def _take_p2m_frames(self, record: X86PvP2mFrames) -> None:
        nr_pfns = record.last_pfn + 1
        if self._pfn_limit is not None and nr_pfns > self._pfn_limit:
            raise ImageError(
                f"the image's p2m table ends at pfn {record.last_pfn:#x}, far beyond the domain's memory"
            )
        if nr_pfns > len(self._p2m):
            self._p2m = _grown(self._p2m, nr_pfns, int(tables.INVALID_MFN))
            self._types = _grown(self._types, nr_pfns, PageType.NOTAB)
            self._frame_pfns = _grown(self._frame_pfns, -(-nr_pfns // PFNS_A_FRAME), int(tables.INVALID_MFN))
        start = record.first_pfn // PFNS_A_FRAME
        self._frame_pfns[start : start + len(record.frames)] = record.frames

    def write_pages(self, pfns: U64, types: U8) -> PageWindow:
        """Populate and map; page tables go through a copy in which they are localised. See RestoreGuest."""
        self._types[pfns] = types
        if not types.any():  # memory and no tables, as in most batches
            self._populate(pfns)
            return MappedWindow(self._memory.map(self._domid, self._p2m[pfns], writable=True))
        self._populate(pfns[wants_memory(types)])
        with_data = has_data(types)
        if not with_data.any():
            return MappedWindow(None)
        is_table = tables.is_table(types[with_data])
        mapping = self._memory.map(self._domid, self._p2m[pfns[with_data]], writable=True)
        if not is_table.any():
            return MappedWindow(mapping)
        staged = np.empty((int(np.count_nonzero(is_table)), PAGE_SIZE), dtype=np.uint8)

        def finish(mapping: Mapping) -> None:
            mapping.pages[is_table] = self._localised(staged)

        return MappedWindow(mapping, staged=staged, is_staged=is_table, finish=finish)

    def _localised(self, staged: U8) -> U8:
        entries = tables.as_tables(staged)
        referenced = tables.referenced_pfns(entries)
        # Pages that a table names may come later in the stream: they get their memory now.
        self._populate(referenced[referenced < len(self._p2m)])
        return tables.localise(entries, self._p2m).view(np.uint8).reshape(-1, PAGE_SIZE)

    def _populate(self, pfns: U64) -> None:
        new = self._populated.take_new(pfns)
        if len(new):
            self._limit.make_room(len(new))
            self._p2m[new] = xen_memory.populate(self._xen, self._domid, new)

    def complete(self, channels: Channels) -> RestoredPages:
        """Start info, vCPUs, pinned tables, p2m, grants: in this order, as tables are checked when pinned."""
        basic = self._vcpus[X86PvVcpuBasic]
        if 0 not in basic:
            raise ImageError("the image has no state of vcpu 0")
        self._release_what_is_gone()
        pages = self._patch_start_info(vcpu.start_info_pfn(basic[0]), channels)
        for i in sorted(basic):
            self._set_vcpu(i, basic[i])
        pinned = np.flatnonzero((self._types & PIN != 0) & tables.is_table(self._types))
        levels = (self._types[pinned] & tables.LEVEL_MASK).astype(np.uint8)
        cpu.pin_tables(self._xen, self._domid, self._p2m[pinned], levels)
        self._write_p2m()
        seed_grant_table(self._memory, self._domid, pages, channels)
        self._limit.put_back()
        return pages

    def _release_what_is_gone(self) -> None:
        """Pages that the guest gave back after they had been sent: keeping them would be more than it may have.

        Only at the end, as one may be told to be gone and come again, in tables that were localised before.
        """
        gone = self._populated.take_gone(np.flatnonzero(~has_memory(self._types)).astype(np.uint64))
        if len(gone):
            xen_memory.release(self._xen, self._domid, self._p2m[gone])
            self._limit.taken_away(len(gone))
            self._p2m[gone] = tables.INVALID_MFN

    def _patch_start_info(self, pfn: int, channels: Channels) -> RestoredPages:
        mfn = self._plain_mfn(pfn, "start_info")
        with self._memory.map_page(self._domid, mfn, writable=True) as mapping:
            store, console = vcpu.patch_start_info(
                mapping.pages,
                self._mfn_of,
                nr_pages=len(self._p2m),
                shared_info_frame=self._info.shared_info_frame,
                store_port=channels.store_port,
                console_port=channels.console_port,
            )
        return RestoredPages(store_gfn=store, console_gfn=console)

    def _set_vcpu(self, i: int, context: bytes) -> None:
        frames = vcpu.FrameMaps(plain=self._plain_mfn, top_table=self._top_table_mfn)
        try:
            cpu.set_vcpu_context(self._xen, self._domid, i, vcpu.context_to_mfns(context, i, frames))
            if extended := self._vcpus[X86PvVcpuExtended].get(i):
                cpu.set_vcpu_extended(self._xen, self._domid, extended)
            if xsave := self._vcpus[X86PvVcpuXsave].get(i):
                cpu.set_vcpu_xsave(self._xen, self._domid, i, xsave)
            if msrs := self._vcpus[X86PvVcpuMsrs].get(i):
                cpu.set_vcpu_msrs(self._xen, self._domid, i, msrs)
        except XenError as error:
            raise ImageError(
                f"Xen refused the image's state of vcpu {i}: {error}; 'xl dmesg' may say why",
                name=ErrorName.IMAGE_REFUSED,
            ) from error

    def _write_p2m(self) -> None:
        """Put the new p2m where the guest keeps its own."""
        missing = self._frame_pfns >= len(self._p2m)
        if missing.any():
            raise ImageError(f"frame {int(np.flatnonzero(missing)[0])} of the guest's p2m table is unknown")
        is_plain = self._types[self._frame_pfns] == PageType.NOTAB
        if not is_plain.all():
            index = int(np.flatnonzero(~is_plain)[0])
            raise ImageError(
                f"frame {index} of the guest's p2m table is at pfn {int(self._frame_pfns[index]):#x}, "
                "which is a page table or has no memory"
            )
        mfns = self._p2m[self._frame_pfns]
        if (mfns == tables.INVALID_MFN).any():
            index = int(np.flatnonzero(mfns == tables.INVALID_MFN)[0])
            raise ImageError(
                f"frame {index} of the guest's p2m table, pfn {int(self._frame_pfns[index]):#x}, has no memory"
            )
        with self._memory.map(self._domid, mfns, writable=True) as mapping:
            mapping.words[: len(self._p2m)] = self._p2m

    # ---- frames by what they must be -------------------------------------------------------------

    def _mfn_of(self, pfn: int, what: str) -> int:
        if pfn >= len(self._p2m):
            raise ImageError(f"{what} is at pfn {pfn:#x}, beyond the domain's last, {len(self._p2m) - 1:#x}")
        mfn = int(self._p2m[pfn])
        if mfn == int(tables.INVALID_MFN):
            raise ImageError(f"{what} is at pfn {pfn:#x}, for which the image has no page")
        return mfn

    def _plain_mfn(self, pfn: int, what: str) -> int:
        mfn = self._mfn_of(pfn, what)
        if self._types[pfn] != PageType.NOTAB:
            raise ImageError(f"{what} is at pfn {pfn:#x}, which is a page table")
        return mfn

    def _top_table_mfn(self, pfn: int, what: str) -> int:
        mfn = self._mfn_of(pfn, what)
        if self._types[pfn] & tables.LEVEL_MASK != LEVELS:
            raise ImageError(f"{what} is at pfn {pfn:#x}, which is not a level-{LEVELS} page table")
        return mfn

    def close(self) -> None:
        """Nothing is kept mapped."""


def _grown(array: np.ndarray, size: int, fill: int) -> np.ndarray:
    """The array, enlarged to `size`, new elements being `fill`."""
    bigger = np.full(size, fill, dtype=array.dtype)
    bigger[: len(array)] = array
    return bigger
