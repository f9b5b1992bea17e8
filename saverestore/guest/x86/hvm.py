"""PVH and HVM domains (both HVM in the stream): guest frames are pfns, so pages pass untouched."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

import numpy as np

from pyxc import DomainInfo, Mapping, XenError, cpu
from pyxc import memory as xen_memory
from saverestore.errors import Advice, DomainError, ErrorName, ImageError, Remedy
from saverestore.guest.common import hvm_params
from saverestore.guest.common.grants import seed_grant_table
from saverestore.guest.common.handles import Handles
from saverestore.guest.common.kind import Emulator
from saverestore.guest.common.pages import MappedBatch, MappedWindow, Populated, map_for_save
from saverestore.guest.common.suspend import Suspending
from saverestore.guest.ports import (
    U8,
    U64,
    Channels,
    LogDirty,
    LogDirtyUnavailable,
    PageBatch,
    PageWindow,
    RestoredPages,
)
from saverestore.guest.x86 import layout
from saverestore.guest.x86.common import CommonRestore, policy_records, tsc_record
from saverestore.interrupts import shield
from saverestore.stream.layout import DomainType, has_data, has_memory, wants_memory
from saverestore.stream.records import HvmContext, HvmParams, Record

LOG = logging.getLogger(__name__)

SUPERPAGE_ORDER = 9
SUPERPAGE_PFNS = 1 << SUPERPAGE_ORDER

PFNS_BELOW_4_GIB = 1 << 20


def last_pfn(max_pages: int) -> int:
    """The last pfn that a domain of so many pages may have: its memory goes on above the hole below 4 GiB."""
    return PFNS_BELOW_4_GIB + max_pages


def open_log_dirty(handles: Handles, domid: int, nr_pfns: int) -> LogDirty:
    """The hypervisor's log-dirty for any x86 domain; its refusals in words."""
    try:
        return xen_memory.LogDirty(handles.xen, domid, nr_pfns)
    except XenError as error:
        reasons = {
            errno.EOPNOTSUPP: "this Xen is built without shadow paging, which a PV guest needs for it",
            errno.EINVAL: "it is in use already, or the domain has a passed-through device",
            errno.ENOMEM: "Xen has too little free memory for it",
        }
        why = reasons.get(error.errno or 0, str(error))
        raise LogDirtyUnavailable(f"Xen cannot log dirty pages of domain {domid}: {why}") from error


class _LogDirtyWithEmulator:
    """The hypervisor's log-dirty, with the device model told to mark what it writes. See LogDirty."""

    def __init__(self, log: LogDirty, emulator: Emulator, domid: int) -> None:
        self._log = log
        self._domid = domid
        self._emulator: Emulator | None = emulator
        self.take = log.take

    def close(self) -> None:
        """Both off. A device model that does not stop marking pages only costs the domain some speed."""
        self._log.close()
        emulator, self._emulator = self._emulator, None
        if emulator is not None:
            try:
                emulator.log_dirty(on=False)
            except DomainError as error:
                # A save that failed of its device model tells the cause itself; twice would be once too often.
                LOG.warning(
                    "the device model of domain %d still marks pages: the domain is a little slower until it is "
                    "saved live again",
                    self._domid,
                )
                LOG.info("it was not stopped from marking them: %s", error)


def log_dirty_with(emulator: Emulator, domid: int, open_log: Callable[[], LogDirty]) -> LogDirty:
    """Log-dirty of hypervisor and device model; off again, both, when either cannot be turned on."""
    with shield():
        log = open_log()
        try:
            emulator.log_dirty(on=True)
        except BaseException:
            log.close()
            raise
        return _LogDirtyWithEmulator(log, emulator, domid)


class HvmSave:
    """Reads a running or suspended PVH or, with its `emulator`, HVM domain. See SaveGuest."""

    domain_type = DomainType.X86_HVM

    def __init__(
        self, handles: Handles, info: DomainInfo, suspender: Suspending, emulator: Emulator | None = None
    ) -> None:
        self._handles = handles
        self._domid = info.domid
        self._suspender = suspender
        self._emulator = emulator
        version = handles.xen.version()
        self.xen_version = (version.major, version.minor)
        self.nr_pfns = xen_memory.nr_gpfns(handles.xen, info.domid)
        self.populated_pages = info.tot_pages
        self._is_on_demand = False
        self._check_on_demand(first=True)

    def _check_on_demand(self, *, first: bool = False) -> None:
        """DomainError when reading the domain could make Xen crash it: it has too little memory on demand.

        Each look at a page that is populated on demand takes memory of the domain's pool. When that is empty, Xen
        takes pages of zeroes that nobody has mapped, and crashes the domain if it finds none (xen p2m-pod.c,
        p2m_pod_demand_populate). Whether there are enough cannot be known.
        """
        if not (first or self._is_on_demand):
            return
        pod = xen_memory.pod_target(self._handles.xen, self._domid)
        self._is_on_demand = pod.entries > 0
        if pod.entries <= pod.cache_pages:
            return
        # `xl mem-set` takes the video memory off (libxl_set_memory_target), which Xen counts as populated.
        whole_kib = self._kib("static-max") or (pod.tot_pages + pod.entries - pod.cache_pages) * 4
        whole_mib = -(-(whole_kib + self._kib("videoram")) // 1024)
        raise DomainError(
            f"domain {self._domid} has {pod.entries >> 8} MiB that are populated on demand and only "
            f"{pod.cache_pages >> 8} MiB for them, as its guest has not given back the rest (it may have no balloon "
            "driver): Xen may crash such a domain when its pages are read",
            name=ErrorName.DOMAIN_UNSUPPORTED,
            remedies=[Advice(Remedy.GIVE_ALL_MEMORY, f"{self._domid} {whole_mib}")],
        )

    def _kib(self, what: str) -> int:
        """What xenstore has of the domain's memory; 0 where that is nothing."""
        kib = self._handles.store.read(f"/local/domain/{self._domid}/memory/{what}") or ""
        return int(kib) if kib.isdecimal() else 0

    def static_records(self) -> list[Record]:
        """The CPU policy."""
        return policy_records(self._handles.xen, self._domid)

    def memory_records(self) -> list[Record]:
        """None: pfns are guest frames."""
        return []

    def types_of(self, pfns: U64) -> U8:
        """As Xen has them: between RAM and the special pages below 4 GiB are up to a million pfns of nothing."""
        self._check_on_demand()
        return xen_memory.page_types(self._handles.xen, self._domid, pfns)

    def read_pages(self, pfns: U64, *, final: bool, types: U8 | None = None) -> PageBatch:
        """Map these pages. See SaveGuest.

        A type that has grown old does no harm: a page that has gone since cannot be mapped.
        """
        types = self.types_of(pfns) if types is None else types
        wanted = has_data(types)
        framed = pfns if wanted.all() else pfns[wanted]
        mapping, lost = map_for_save(self._handles, self._domid, framed, framed, final=final)
        if mapping is None:
            return MappedBatch.without_data(pfns, types)
        if not lost.any():
            return MappedBatch(pfns, types, mapping)
        dropped = np.zeros(len(pfns), dtype=bool)
        dropped[wanted] = lost
        kept = ~dropped
        return MappedBatch(pfns[kept], types[kept], mapping, lost=lost, deferred=pfns[dropped])

    def check_layout(self) -> None:
        """See SaveGuest: memory above what was the highest frame when the save began would be missing."""
        now = xen_memory.nr_gpfns(self._handles.xen, self._domid)
        if (
            now > self.nr_pfns
            and has_memory(self.types_of(np.arange(self.nr_pfns, now, dtype=np.uint64))).any()
        ):
            raise DomainError(
                f"domain {self._domid} was given memory above its last frame, {self.nr_pfns - 1:#x}, "
                "while it was being saved",
                name=ErrorName.DOMAIN_CHANGED,
                remedies=[Advice(Remedy.TRY_AGAIN)],
            )

    def open_log_dirty(self) -> LogDirty:
        """Nested paging has it; a device model marks what it writes."""

        def open_log() -> LogDirty:
            return open_log_dirty(self._handles, self._domid, self.nr_pfns)

        return log_dirty_with(self._emulator, self._domid, open_log) if self._emulator else open_log()

    def suspend(self) -> None:
        """See Suspender. First the state is read once for nothing: what cannot be is told while the domain runs."""
        self.end_records()
        self._suspender.suspend()

    def resume(self) -> None:
        """See Suspender."""
        self._suspender.resume()

    def end_records(self) -> list[Record]:
        """TSC, parameters, context: in this order, which every reader takes."""
        params = ((i, cpu.hvm_param(self._handles.xen, self._domid, i)) for i in layout.SAVED_HVM_PARAMS)
        return [
            tsc_record(self._handles.xen, self._domid),
            HvmParams(tuple((index, value) for index, value in params if value)),
            HvmContext(cpu.hvm_context(self._handles.xen, self._domid)),
        ]

    def close(self) -> None:
        """Nothing is kept mapped."""


class HvmRestore(CommonRestore):
    """Fills a fresh PVH or HVM domain. See RestoreGuest."""

    def __init__(self, handles: Handles, info: DomainInfo, *, check_cpu: bool = True) -> None:
        """Its pages stay mapped for a while after they were filled in, see `ForeignMemory`."""
        super().__init__(handles, info, check_cpu=check_cpu)
        self._populated = Populated()
        self._superpages = self._superpages_refused = self._small_pages = 0
        self._params: dict[int, int] = {}
        self._context: bytes | None = None

    def take(self, record: Record) -> None:
        """Apply a record; the context is kept until `complete`."""
        if self.take_common(record):
            return
        if isinstance(record, HvmParams):
            self._set_params(record)
        elif isinstance(record, HvmContext):
            self._context = record.context
        else:
            raise ImageError(f"a {type(record).__name__} record is not valid in an HVM image")

    def _set_params(self, record: HvmParams) -> None:
        cleared = (
            hvm_params.HVM_PARAM_STORE_PFN,
            hvm_params.HVM_PARAM_CONSOLE_PFN,
            hvm_params.HVM_PARAM_IOREQ_PFN,
            hvm_params.HVM_PARAM_BUFIOREQ_PFN,
        )
        for index, value in record.params:
            if index == hvm_params.HVM_PARAM_PAE_ENABLED:
                continue  # obsolete: older senders used it to pass on what CPUID says
            if index in cleared:
                # Rings start empty: what was in flight belongs to backends that are gone.
                xen_memory.clear_page(self._xen, self._domid, value)
            cpu.set_hvm_param(self._xen, self._domid, index, value)
            self._params[index] = value

    def write_pages(self, pfns: U64, types: U8) -> PageWindow:
        """Populate (2 MiB at a time where the image fills them) and map. See RestoreGuest."""
        if not types.any():  # plain memory, as in most batches
            self._populate(self._populated.take_new(pfns))
            return MappedWindow(self._map(pfns))
        # The guest gave these back after they had been sent: keeping them would be more than it may have.
        gone = self._populated.take_gone(pfns[~has_memory(types)])
        if len(gone):
            self._memory.unmap_lingering(gone)  # or they stay the domain's, and count
            xen_memory.release(self._xen, self._domid, gone)
            self._limit.taken_away(len(gone))
        self._populate(self._populated.take_new(pfns[wants_memory(types)]))
        return MappedWindow(self._map(pfns[has_data(types)]))

    def _populate(self, new: U64) -> None:
        """Give memory to these pfns, sorted or not, none of which has any."""
        if not len(new):
            return
        self._limit.make_room(len(new))
        new = np.sort(new)
        heads = np.flatnonzero(new & np.uint64(SUPERPAGE_PFNS - 1) == 0)
        heads = heads[heads + SUPERPAGE_PFNS <= len(new)]
        whole = heads[new[heads + SUPERPAGE_PFNS - 1] - new[heads] == SUPERPAGE_PFNS - 1]
        if len(whole):
            # Without these the guest would lose its 2 MiB pages. Fragmented hosts may not have them: then small.
            given = xen_memory.try_populate(self._xen, self._domid, new[whole], order=SUPERPAGE_ORDER)
            self._superpages += given
            self._superpages_refused += len(whole) - given
            small = np.ones(len(new), dtype=bool)
            for head in whole[:given].tolist():
                small[head : head + SUPERPAGE_PFNS] = False
            new = new[small]
        if len(new):
            xen_memory.populate(self._xen, self._domid, new)
            self._small_pages += len(new)

    def _map(self, pfns: U64) -> Mapping | None:
        if not len(pfns):
            return None
        return self._memory.map(self._domid, pfns, writable=True, may_linger=True)

    def complete(self, channels: Channels) -> RestoredPages:
        """Set event channels and the hypervisor's context; grant the rings to their backends."""
        missing = {hvm_params.HVM_PARAM_STORE_PFN, hvm_params.HVM_PARAM_CONSOLE_PFN} - self._params.keys()
        if missing:
            raise ImageError(f"the image lacks HVM parameters {sorted(missing)}: no xenstore or console page")
        if self._context is None:
            raise ImageError("the image has no HVM_CONTEXT record: no processor state")
        cpu.set_hvm_param(self._xen, self._domid, hvm_params.HVM_PARAM_STORE_EVTCHN, channels.store_port)
        cpu.set_hvm_param(self._xen, self._domid, hvm_params.HVM_PARAM_CONSOLE_EVTCHN, channels.console_port)
        try:
            cpu.set_hvm_context(self._xen, self._domid, self._context)
        except XenError as error:
            raise ImageError(
                f"Xen refused the image's HVM context: {error}; 'xl dmesg' may say why",
                name=ErrorName.IMAGE_REFUSED,
            ) from error
        LOG.debug(
            "memory: %d pages of 2 MiB, %d of 4 KiB; Xen had no 2 MiB together for %d",
            self._superpages,
            self._small_pages,
            self._superpages_refused,
        )
        pages = RestoredPages(
            store_gfn=self._params[hvm_params.HVM_PARAM_STORE_PFN],
            console_gfn=self._params[hvm_params.HVM_PARAM_CONSOLE_PFN],
        )
        seed_grant_table(self._memory, self._domid, pages, channels)
        self._limit.put_back()
        return pages

    def close(self) -> None:
        """Nothing is kept mapped."""
