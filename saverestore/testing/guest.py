"""The ports on a `MemoryDomain`: for tests, and for benchmarks at the speed of this machine.

They keep the contract that real domains keep (one suite holds both to it), with what a test needs besides:
`Moments` calls back at the n-th time of any port call, to dirty pages there or to fail, and a record of the
calls. Buffers are the domain's own memory; after `close` they are released, so that a use too late raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from saverestore.errors import DomainError, ImageError
from saverestore.guest.common import hvm_params
from saverestore.guest.ports import (
    U8,
    U64,
    Bool,
    Channels,
    LogDirty,
    LogDirtyUnavailable,
    PageBatch,
    PageWindow,
    RestoredPages,
)
from saverestore.guest.x86 import tables, vcpu
from saverestore.guest.x86.layout import ENTRIES_A_TABLE
from saverestore.kernels.zero_pages import zero_pages
from saverestore.stream.layout import PAGE_SIZE, DomainType, PageType, has_data, wants_memory
from saverestore.stream.records import (
    HvmContext,
    HvmParams,
    Record,
    SharedInfo,
    X86CpuidPolicy,
    X86MsrPolicy,
    X86PvInfo,
    X86PvP2mFrames,
    X86PvVcpuBasic,
    X86PvVcpuExtended,
    X86PvVcpuMsrs,
    X86PvVcpuXsave,
    X86TscInfo,
)
from saverestore.testing.domain import FIRST_VCPU_STATE, INVALID, MemoryDomain, Processors
from saverestore.testing.moments import Moments
from saverestore.testing.views import Buffers, copy_frames, runs

XEN_VERSION = (4, 17)
SHARED_INFO_FRAME = 0xABC

VCPU_EXTRA: dict[str, type[X86PvVcpuExtended | X86PvVcpuXsave | X86PvVcpuMsrs]] = {
    "extended": X86PvVcpuExtended,
    "xsave": X86PvVcpuXsave,
    "msrs": X86PvVcpuMsrs,
}


class MemoryBatch(PageBatch):
    """Pages of a `MemoryDomain`, read-only.

    Mapped pages of a real domain follow one another wherever they lie. Here they do not, so views are made only for
    whoever asks for them, and a copy is one gather.
    """

    def __init__(
        self,
        pfns: U64,
        types: U8,
        deferred: U64,
        buffers: Buffers,
        views: Callable[[], list[memoryview]],
        gather: Callable[[U8, Bool], None],
    ) -> None:
        self._views, self._gather = views, gather
        super().__init__(pfns, types, (), deferred)
        self._made: Sequence[memoryview] | None = None
        self._buffers: Buffers | None = buffers
        buffers.opened()

    @property
    def pages(self) -> Sequence[memoryview]:
        """See PageBatch."""
        if self._made is None:
            self._made = self._views()
        return self._made

    @pages.setter
    def pages(self, pages: Sequence[memoryview]) -> None:
        self._made = pages

    def copy_data(self, out: U8, zero: Bool | None = None) -> U8:
        """See PageBatch."""
        filled = out[: self.nr_data]
        self._gather(filled, np.zeros(len(filled), dtype=bool) if zero is None else zero[: len(filled)])
        return filled

    def close(self) -> None:
        """Release the views."""
        buffers, self._buffers = self._buffers, None
        if buffers is not None:
            views, self._made = self._made or (), ()
            buffers.closed(views)


class _MemoryLogDirty:
    def __init__(self, domain: MemoryDomain, moments: Moments) -> None:
        self._domain = domain
        self._moments = moments
        domain.dirty = np.zeros(domain.nr_pfns, dtype=bool)

    def take(self, *, final: bool = False) -> Bool:
        self._moments.reached("log_dirty.take")
        taken = self._domain.dirty
        if taken is None:
            raise ValueError("log-dirty is off")
        self._domain.dirty = np.zeros(len(taken), dtype=bool)
        return taken

    def close(self) -> None:
        self._moments.reached("log_dirty.close")
        self._domain.dirty = None


class MemoryThrottle:
    """Throttle on a `MemoryDomain`: what its scripts write is theirs to lower with `cpu_percent`."""

    def __init__(self, domain: MemoryDomain, moments: Moments) -> None:
        self._domain = domain
        self._moments = moments

    def limit(self, cpu_percent: int) -> None:
        """See Throttle."""
        self._moments.reached("throttle.limit")
        self._domain.cpu_percent = cpu_percent

    def lift(self) -> None:
        """See Throttle."""
        self._moments.reached("throttle.lift")
        self._domain.cpu_percent = 100


class MemorySave:
    """SaveGuest on a `MemoryDomain`, which it leaves as it is when closed.

    `log_dirty`: whether this "hypervisor" has it. `buffers.nr_open` counts batches not yet closed.
    """

    def __init__(self, domain: MemoryDomain, *, log_dirty: bool = True) -> None:
        self.domain = domain
        self.domain_type = domain.kind
        self.xen_version = XEN_VERSION
        self.moments = Moments()
        self.buffers = Buffers()
        self._has_log_dirty = log_dirty
        self._requested = False
        self._generation = domain.generation

    @property
    def nr_pfns(self) -> int:
        """See SaveGuest."""
        return self.domain.nr_pfns

    @property
    def populated_pages(self) -> int:
        """See SaveGuest."""
        return len(self.domain.populated())

    def static_records(self) -> list[Record]:
        """See SaveGuest."""
        self.moments.reached("static_records")
        state = self.domain.state
        records: list[Record] = [X86CpuidPolicy(state.leaves), X86MsrPolicy(state.msr_policy)]
        return [X86PvInfo(8, 4), *records] if self.domain.is_pv else records

    def memory_records(self) -> list[Record]:
        """See SaveGuest."""
        self.moments.reached("memory_records")
        self._generation = self.domain.generation
        if not self.domain.is_pv:
            return []
        return [X86PvP2mFrames(0, self.nr_pfns - 1, self.domain.p2m_frames)]

    def types_of(self, pfns: U64) -> U8 | None:
        """See SaveGuest."""
        self.moments.reached("types_of")
        return None if self.domain.is_pv else self._types_of(pfns, self.domain.p2m[pfns] != INVALID)

    def _types_of(self, pfns: U64, has_memory: Bool) -> U8:
        types: U8 = self.domain.types[pfns]
        types[~has_memory] = PageType.XTAB
        return types

    def read_pages(self, pfns: U64, *, final: bool, types: U8 | None = None) -> PageBatch:
        """See SaveGuest."""
        self.moments.reached("read_pages")
        domain = self.domain
        frames = domain.p2m[pfns]
        has_memory = frames != INVALID
        types = self._types_of(pfns, has_memory) if types is None else types
        deferred = ~has_memory if domain.is_pv and not final else np.zeros(len(pfns), dtype=bool)
        unmappable = domain.unmappable[pfns]
        if not domain.suspended:
            unmappable = unmappable | domain.unmappable_until_suspended[pfns]
        lost = (unmappable | ~has_memory) & has_data(types)
        if final and lost.any():
            raise DomainError(f"pfn {int(pfns[lost][0]):#x} cannot be mapped")
        is_table = tables.is_table(types) & ~lost if domain.is_pv else np.zeros(len(pfns), dtype=bool)
        at = np.flatnonzero(is_table)
        staged = np.empty((0, ENTRIES_A_TABLE), dtype=np.uint64)
        if len(at):
            copies = tables.as_tables(domain.frames[frames[at]])
            staged, good = tables.normalise(copies, types[at], domain.m2p, domain.p2m)
            if final and not good.all():
                raise DomainError(f"pfn {int(pfns[at[~good][0]]):#x} is a page table with a foreign entry")
            staged = staged[good]
            lost[at[~good]] = True
        deferred |= lost
        kept = ~deferred
        mapped = kept & has_data(types)
        where, is_staged = frames[mapped], is_table[mapped]
        staged_pages = staged.view(np.uint8).reshape(-1, PAGE_SIZE)

        def views() -> list[memoryview]:
            return runs(domain.view.toreadonly(), where, staged_pages.reshape(-1).data, is_staged)

        def gather(out: U8, zero: Bool) -> None:
            copy_frames(domain, where, out, zero)
            if len(staged_pages):
                out[is_staged] = staged_pages
                zero[is_staged] = zero_pages(staged_pages.view(np.uint64))

        return MemoryBatch(pfns[kept], types[kept], pfns[deferred], self.buffers, views, gather)

    def check_layout(self) -> None:
        """See SaveGuest."""
        self.moments.reached("check_layout")
        if self.domain.generation != self._generation:
            raise DomainError("the domain rebuilt its p2m table while it was being saved")

    def open_log_dirty(self) -> LogDirty:
        """See SaveGuest."""
        self.moments.reached("open_log_dirty")
        if not self._has_log_dirty:
            raise LogDirtyUnavailable("this domain was made without log-dirty")
        return _MemoryLogDirty(self.domain, self.moments)

    def suspend(self) -> None:
        """See SaveGuest. A callback of "suspend" that raises finds the domain running, the request made already."""
        self._requested = True
        self.moments.reached("suspend")
        self.domain.suspend()
        self.moments.reached("suspended")

    def resume(self) -> None:
        """See SaveGuest."""
        self.moments.reached("resume")
        if self._requested and self.domain.suspended:
            self.domain.resume()
        self._requested = False

    def end_records(self) -> list[Record]:
        """See SaveGuest."""
        self.moments.reached("end_records")
        state = self.domain.state
        records: list[Record] = [X86TscInfo(*state.tsc)]
        if not self.domain.is_pv:
            return [*records, HvmParams(tuple(state.hvm_params.items())), HvmContext(state.hvm_context)]
        records.append(SharedInfo(state.shared_info))
        for i, raw in sorted(state.contexts.items()):
            records.append(X86PvVcpuBasic(i, vcpu.context_to_pfns(raw, i, self._pfn_of)))
            records += (VCPU_EXTRA[name](i, blob) for name, blob in state.extra[i].items())
        return records

    def _pfn_of(self, mfn: int, what: str) -> int:
        pfn = int(self.domain.m2p[mfn]) if mfn < len(self.domain.m2p) else -1
        if not 0 <= pfn < self.nr_pfns or int(self.domain.p2m[pfn]) != mfn:
            raise DomainError(f"{what} is in frame {mfn:#x}, which is not the domain's")
        return pfn

    def close(self) -> None:
        """See SaveGuest."""
        self.moments.reached("close")


class MemoryWindow:
    """PageWindow on a `MemoryDomain`."""

    def __init__(self, domain: MemoryDomain, pfns: U64, is_table: Bool, buffers: Buffers) -> None:
        self._domain = domain
        self._tables = pfns[is_table]
        self._staged: U8 = np.empty((len(self._tables), PAGE_SIZE), dtype=np.uint8)
        self.buffers: Sequence[memoryview] = runs(
            domain.view, domain.p2m[pfns], self._staged.reshape(-1).data, is_table
        )
        self._open: Buffers | None = buffers
        buffers.opened()

    def commit(self) -> None:
        """See PageWindow."""
        if not len(self._tables):
            return
        domain, entries = self._domain, tables.as_tables(self._staged)
        referenced = tables.referenced_pfns(entries)
        domain.populate(referenced[referenced < domain.nr_pfns])
        localised = tables.localise(entries, domain.p2m)
        domain.frames[domain.p2m[self._tables]] = localised.view(np.uint8).reshape(-1, PAGE_SIZE)

    def close(self) -> None:
        """See PageWindow."""
        buffers, self._open = self._open, None
        if buffers is not None:
            views, self.buffers = self.buffers, []
            buffers.closed(views)


class MemoryRestore:
    """RestoreGuest on an empty `MemoryDomain`; after `complete`, that is as the saved one was.

    `window`: what `write_pages` returns, of the same arguments as `MemoryWindow`: a test's own, to fail in it.
    """

    def __init__(
        self,
        domain: MemoryDomain,
        *,
        window: Callable[[MemoryDomain, U64, Bool, Buffers], PageWindow] | None = None,
    ) -> None:
        self.domain = domain
        self._window = window or MemoryWindow
        self.moments = Moments()
        self.buffers = Buffers()
        domain.state = Processors(leaves=b"", msr_policy=b"", hvm_context=b"")
        if not domain.is_pv:
            domain.grow(domain.capacity_pfns)  # a PV image tells its last pfn, an HVM image does not

    def take(self, record: Record) -> None:
        """See RestoreGuest."""
        self.moments.reached("take")
        state, is_pv = self.domain.state, self.domain.is_pv
        match record:
            case X86CpuidPolicy():
                state.leaves = record.leaves
            case X86MsrPolicy():
                state.msr_policy = record.entries
            case X86TscInfo():
                state.tsc = (record.mode, record.khz, record.nsec, record.incarnation)
            case HvmParams() if not is_pv:
                self._take_params(record)
            case HvmContext() if not is_pv:
                state.hvm_context = record.context
            case X86PvInfo() if is_pv:
                if record.guest_width != 8:
                    raise ImageError("the image is of a 32-bit PV guest")
            case X86PvP2mFrames() if is_pv:
                self.domain.grow(record.last_pfn + 1)
                self.domain.p2m_frames = np.array(record.frames, dtype=np.uint64)
            case SharedInfo() if is_pv:
                page = np.zeros(PAGE_SIZE, dtype=np.uint8)
                vcpu.merge_shared_info(page, record.page)
                state.shared_info = page.tobytes()
            case X86PvVcpuBasic() if is_pv:
                state.contexts[record.vcpu] = record.context
            case X86PvVcpuExtended() | X86PvVcpuXsave() | X86PvVcpuMsrs() if is_pv:
                name = next(name for name in FIRST_VCPU_STATE if VCPU_EXTRA[name] is type(record))
                state.extra.setdefault(record.vcpu, {})[name] = record.context
            case _:
                raise ImageError(f"a {type(record).__name__} record is not valid in an image of this kind")

    def _take_params(self, record: HvmParams) -> None:
        for index, value in record.params:
            if index in (hvm_params.HVM_PARAM_STORE_PFN, hvm_params.HVM_PARAM_CONSOLE_PFN):
                if value >= self.domain.nr_pfns:
                    raise ImageError(f"HVM parameter {index} names pfn {value:#x}, beyond the domain's last")
                self.domain.write([value], 0)
            self.domain.state.hvm_params[index] = value

    def static_data_done(self) -> None:
        """See RestoreGuest."""
        self.moments.reached("static_data_done")

    def write_pages(self, pfns: U64, types: U8) -> PageWindow:
        """See RestoreGuest."""
        self.moments.reached("write_pages")
        domain = self.domain
        domain.grow(int(pfns.max(initial=0)) + 1)
        domain.types[pfns] = types
        domain.populate(pfns[wants_memory(types)])
        with_data = has_data(types)
        is_table = tables.is_table(types[with_data]) & domain.is_pv
        return self._window(domain, pfns[with_data], is_table, self.buffers)

    def complete(self, channels: Channels) -> RestoredPages:
        """See RestoreGuest."""
        self.moments.reached("complete")
        return self._complete_pv(channels) if self.domain.is_pv else self._complete_hvm(channels)

    def _complete_hvm(self, channels: Channels) -> RestoredPages:
        params = self.domain.state.hvm_params
        missing = {hvm_params.HVM_PARAM_STORE_PFN, hvm_params.HVM_PARAM_CONSOLE_PFN} - params.keys()
        if missing or not self.domain.state.hvm_context:
            raise ImageError(f"the image lacks HVM parameters {sorted(missing)}, or the context")
        params[hvm_params.HVM_PARAM_STORE_EVTCHN] = channels.store_port
        params[hvm_params.HVM_PARAM_CONSOLE_EVTCHN] = channels.console_port
        return RestoredPages(params[hvm_params.HVM_PARAM_STORE_PFN], params[hvm_params.HVM_PARAM_CONSOLE_PFN])

    def _complete_pv(self, channels: Channels) -> RestoredPages:
        domain, contexts = self.domain, self.domain.state.contexts
        if 0 not in contexts:
            raise ImageError("the image has no state of vcpu 0")
        start_info = self._mfn_of(vcpu.start_info_pfn(contexts[0]), "start_info")
        store, console = vcpu.patch_start_info(
            domain.frames[start_info],
            self._mfn_of,
            nr_pages=domain.nr_pfns,
            shared_info_frame=SHARED_INFO_FRAME,
            store_port=channels.store_port,
            console_port=channels.console_port,
        )
        maps = vcpu.FrameMaps(plain=self._mfn_of, top_table=self._top_table)
        for i in contexts:
            contexts[i] = vcpu.context_to_mfns(contexts[i], i, maps)
        for pfn in domain.p2m_frames.tolist():
            self._mfn_of(pfn, "the p2m table")
        domain.store_p2m()
        return RestoredPages(store_gfn=store, console_gfn=console)

    def _mfn_of(self, pfn: int, what: str) -> int:
        if pfn >= self.domain.nr_pfns or self.domain.p2m[pfn] == INVALID:
            raise ImageError(f"{what} is at pfn {pfn:#x}, which has no memory")
        return int(self.domain.p2m[pfn])

    def _top_table(self, pfn: int, what: str) -> int:
        mfn = self._mfn_of(pfn, what)
        if self.domain.types[pfn] & tables.LEVEL_MASK != tables.L4:
            raise ImageError(f"{what} is at pfn {pfn:#x}, which is not a level-4 page table")
        return mfn

    def close(self) -> None:
        """See RestoreGuest."""
        self.moments.reached("close")


def empty_like(domain: MemoryDomain, *, seed: int = 1, run_pages: int = 1) -> MemoryDomain:
    """A domain without memory, on a host with room for all that `domain` has. PV: other frames."""
    return MemoryDomain(DomainType(domain.kind), domain.capacity_pfns, seed=seed, run_pages=run_pages)
