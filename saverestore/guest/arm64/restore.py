"""Restoring an arm64 domain: its vCPUs write their own hidden registers, in the fresh domain, before it runs.

    fresh, paused ──memory──► shared_info where it was ──scratch pages, load stub──► scratch off ──contexts──► whole

Linux takes the result 0 of its suspend hypercall for a new domain: it connects its rings, grants and devices anew.
"""

from __future__ import annotations

import logging

import numpy as np

from pyxc import DomainInfo, arm64, cpu
from pyxc import memory as xen_memory
from saverestore.arm64_registers import Register
from saverestore.errors import Advice, ErrorName, ImageError, Remedy
from saverestore.guest.arm64 import vcpu
from saverestore.guest.arm64.layout import PAGE_SIZE, Control, Flag, Layout
from saverestore.guest.arm64.memory import consecutive, gfns_of
from saverestore.guest.arm64.stubs import Piece, Scratch, code_of, set_context
from saverestore.guest.arm64.vcpu import Context
from saverestore.guest.common.grants import seed_grant_table
from saverestore.guest.common.handles import Handles
from saverestore.guest.common.hvm_params import (
    HVM_PARAM_CONSOLE_EVTCHN,
    HVM_PARAM_CONSOLE_PFN,
    HVM_PARAM_STORE_EVTCHN,
    HVM_PARAM_STORE_PFN,
)
from saverestore.guest.common.pages import SLACK_KIB, MappedWindow, Populated
from saverestore.guest.ports import U8, U64, Channels, PageWindow, RestoredPages
from saverestore.interrupts import shield
from saverestore.stream.layout import has_data, has_memory
from saverestore.stream.records import Arm64Platform, Arm64SharedInfo, Arm64Vcpu, HvmParams, Record

LOG = logging.getLogger(__name__)

RESTORED = 0
"""What a guest's suspend hypercall returns in x0 in a domain that was restored."""

FLUSH_PAGES = 8192
PAGE_KIB = PAGE_SIZE // 1024


def check_platform(platform: Arm64Platform, gic: int, *, check_cpu: bool) -> None:
    """ImageError when this host is another one than the domain needs. Nothing has to be there for it.

    `check_cpu` False: on another kind of processor the domain is restored all the same, with a warning. The GIC and
    the counter's rate are in the guest's own tables: those must be.
    """
    host = arm64.processor()
    if platform.gic != gic:
        raise ImageError(
            f"the image's domain has a GICv{platform.gic}, this host gives domains a GICv{gic}",
            name=ErrorName.HOST_INCOMPATIBLE,
        )
    if platform.cntfrq != host.cntfrq:
        raise ImageError(
            f"the image's domain counts time at {platform.cntfrq} Hz, this host at {host.cntfrq} Hz",
            name=ErrorName.HOST_INCOMPATIBLE,
        )
    if platform.midr == host.midr:
        return
    fact = (
        f"the image's domain ran on another kind of processor (MIDR {platform.midr:#x}, here {host.midr:#x})"
    )
    if check_cpu:
        raise ImageError(
            fact, name=ErrorName.CPU_FEATURES_MISSING, remedies=[Advice(Remedy.RESTORE_ON_OTHER_CPU)]
        )
    LOG.warning("%s; restored all the same: the guest may crash", fact)


def check_size(platform: Arm64Platform, max_vcpus: int, max_kib: int) -> None:
    """ImageError when the image's own configuration would make a domain that its memory does not fit into."""
    if platform.nr_vcpus != max_vcpus:
        raise ImageError(
            f"the image's domain has {platform.nr_vcpus} vCPUs, its configuration would make one with {max_vcpus}"
        )
    kib = sum(pages for _, pages in platform.banks) * PAGE_KIB
    if kib > max_kib + SLACK_KIB:
        raise ImageError(
            f"the image's domain has {kib} KiB of memory, its configuration would make one with {max_kib}"
        )


class Arm64Restore:
    """Fills a fresh arm64 domain. See RestoreGuest.

    `gic`: the version that it was made with. `is_built`: whoever made it gave it memory and rings as to one that is
    to boot; else it has neither.
    """

    def __init__(
        self,
        handles: Handles,
        info: DomainInfo,
        gic: int,
        *,
        check_cpu: bool = True,
        is_built: bool = False,
    ) -> None:
        self._handles = handles
        self._domid = info.domid
        self._nr_vcpus = info.max_vcpu_id + 1
        self._gic = gic
        self._check_cpu = check_cpu
        code_of(Piece.LOAD, gic)
        self._is_built = is_built
        self._populated = Populated()
        self._foreign = Populated()  # of these, those that have what whoever made it put there
        if is_built:
            layout = Layout.of_domain(xen_memory.nr_gpfns(handles.xen, info.domid), info.tot_pages)
            self._foreign.take_new(gfns_of(layout))
            self._populated.take_new(gfns_of(layout))
        self._platform: Arm64Platform | None = None
        self._params: dict[int, int] = {}
        self._shared_info: Arm64SharedInfo | None = None
        self._vcpus: dict[int, Arm64Vcpu] = {}

    def take(self, record: Record) -> None:
        """Keep a record until `complete`; the platform is looked at now."""
        if isinstance(record, Arm64Platform):
            check_platform(record, self._gic, check_cpu=self._check_cpu)
            self._platform = record
        elif isinstance(record, HvmParams):
            self._params.update(record.params)
        elif isinstance(record, Arm64SharedInfo):
            self._shared_info = record
        elif isinstance(record, Arm64Vcpu):
            if record.vcpu in self._vcpus or record.vcpu >= self._nr_vcpus:
                raise ImageError(
                    f"vCPU {record.vcpu} is in the image twice, or is none of its {self._nr_vcpus} vCPUs"
                )
            self._vcpus[record.vcpu] = record
        else:
            raise ImageError(f"a {type(record).__name__} record is not valid in an arm64 image")

    def static_data_done(self) -> None:
        """The platform has been looked at: the domain must have as many vCPUs."""
        assert self._platform is not None  # the grammar: no static data without it
        if self._platform.nr_vcpus != self._nr_vcpus:
            raise ImageError(
                f"the image's domain has {self._platform.nr_vcpus} vCPUs, its configuration made {self._nr_vcpus}"
            )

    def write_pages(self, pfns: U64, types: U8) -> PageWindow:
        """Give the domain memory where it has none yet, and map what has data."""
        self._take_away(pfns[~has_memory(types)])
        wanted = pfns[has_data(types)]
        self._check_in_memory(wanted)
        self._foreign.take_gone(wanted)
        new = self._populated.take_new(wanted)
        if len(new):
            xen_memory.populate(self._handles.xen, self._domid, new)
        mapping = self._handles.memory.map(self._domid, wanted, writable=True) if len(wanted) else None
        return MappedWindow(mapping)

    def _take_away(self, pfns: U64) -> None:
        self._foreign.take_gone(pfns)
        gone = self._populated.take_gone(pfns)
        if len(gone):
            xen_memory.release(self._handles.xen, self._domid, gone)

    def _check_in_memory(self, pfns: U64) -> None:
        assert self._platform is not None  # as above
        inside = np.zeros(len(pfns), dtype=bool)
        for first, pages in self._platform.banks:
            inside |= (pfns >= np.uint64(first)) & (pfns < np.uint64(first + pages))
        if not inside.all():
            raise ImageError(f"pfn {int(pfns[~inside][0]):#x} is in none of the domain's banks of memory")

    def complete(self, channels: Channels) -> RestoredPages:
        """Everything has been read: set processors and rings. The domain is still paused, and nothing of it ran."""
        contexts, hidden = self._processors()
        self._take_away(self._foreign.pfns())
        pages = self._rings(channels)
        assert self._shared_info is not None  # the grammar: it is needed
        for first, end in consecutive(self._populated.pfns()):
            for at in range(first, end, FLUSH_PAGES):
                arm64.flush_caches(self._handles.xen, self._domid, at, min(FLUSH_PAGES, end - at))
        arm64.map_shared_info(self._handles.xen, self._domid, self._shared_info.pfn)
        self._load(contexts, hidden, self._shared_info.vcpu_info)
        with shield():
            for number, context in enumerate(contexts):
                set_context(self._handles, self._domid, number, context)
        seed_grant_table(self._handles.memory, self._domid, pages, channels)
        return pages

    def _processors(self) -> tuple[list[Context], list[dict[Register, int]]]:
        """Contexts and hidden registers of all vCPUs; vCPU 0 comes back from its hypercall."""
        assert self._shared_info is not None  # as above
        if sorted(self._vcpus) != list(range(self._nr_vcpus)):
            raise ImageError(
                f"the image has vCPUs {sorted(self._vcpus)}, its domain {self._nr_vcpus} of them"
            )
        if len(self._shared_info.vcpu_info) != self._nr_vcpus:
            raise ImageError(f"the image has the vcpu_info of {len(self._shared_info.vcpu_info)} vCPUs")
        unpacked = [vcpu.unpack_record(self._vcpus[number], self._gic) for number in range(self._nr_vcpus)]
        contexts, hidden = [context for context, _ in unpacked], [values for _, values in unpacked]
        return [contexts[0].with_x0(RESTORED), *contexts[1:]], hidden

    def _rings(self, channels: Channels) -> RestoredPages:
        missing = {HVM_PARAM_STORE_PFN, HVM_PARAM_CONSOLE_PFN} - self._params.keys()
        if missing:
            raise ImageError(f"the image lacks HVM parameters {sorted(missing)}: no xenstore or console page")
        pages = RestoredPages(
            store_gfn=self._params[HVM_PARAM_STORE_PFN], console_gfn=self._params[HVM_PARAM_CONSOLE_PFN]
        )
        if self._is_built:
            self._check_rings(pages)
        else:
            self._set_rings(pages, channels)
        return pages

    def _check_rings(self, pages: RestoredPages) -> None:
        """The daemons know the rings already, so they must be where the guest will look for them."""
        for name, index, wanted in (
            ("xenstore", HVM_PARAM_STORE_PFN, pages.store_gfn),
            ("console", HVM_PARAM_CONSOLE_PFN, pages.console_gfn),
        ):
            found = cpu.hvm_param(self._handles.xen, self._domid, index)
            if found != wanted:
                raise ImageError(
                    f"the image's domain has its {name} ring at {wanted:#x}, libxl's of this host have it at "
                    f"{found:#x}",
                    name=ErrorName.HOST_INCOMPATIBLE,
                    remedies=[Advice(Remedy.BARE_TOOLSTACK)],
                )

    def _set_rings(self, pages: RestoredPages, channels: Channels) -> None:
        xen, domid = self._handles.xen, self._domid
        rings = np.array([pages.console_gfn, pages.store_gfn], dtype=np.uint64)
        new = self._populated.take_new(rings)
        if len(new):
            xen_memory.populate(xen, domid, np.sort(new))
        for gfn in (pages.console_gfn, pages.store_gfn):
            xen_memory.clear_page(xen, domid, gfn)
            arm64.flush_caches(xen, domid, gfn, 1)
        for index, value in (
            (HVM_PARAM_STORE_PFN, pages.store_gfn),
            (HVM_PARAM_CONSOLE_PFN, pages.console_gfn),
            (HVM_PARAM_STORE_EVTCHN, channels.store_port),
            (HVM_PARAM_CONSOLE_EVTCHN, channels.console_port),
        ):
            cpu.set_hvm_param(xen, domid, index, value)

    def _load(
        self, contexts: list[Context], hidden: list[dict[Register, int]], vcpu_info: tuple[int, ...]
    ) -> None:
        """Have the load stub write each vCPU's hidden registers, and check what it found."""
        online = [number for number, context in enumerate(contexts) if context.online]

        def flags(number: int) -> int:
            first = Flag.FIRST_VCPU if number == online[0] else Flag(0)
            return int(first | (Flag.VCPU_INFO if vcpu_info[number] else Flag(0)))

        with Scratch(self._handles, self._domid, self._nr_vcpus, self._gic) as scratch:
            for number in online:
                vcpu.write_slots(scratch.data(number), hidden[number])
                vcpu.write_vcpu_info(scratch.data(number), vcpu_info[number])
            scratch.run(Piece.LOAD, contexts, online, lambda: self._handles.xen.unpause(self._domid), flags)
            for number in online:
                page = scratch.data(number)
                self._check_same_processor(number, hidden[number], vcpu.read_found(page))
                result = vcpu.control_result(page, Control.REGISTERED)
                if vcpu_info[number] and result:
                    raise ImageError(
                        f"Xen did not take {vcpu_info[number]:#x} for the vcpu_info of vCPU {number} "
                        f"(error {-result})",
                        name=ErrorName.IMAGE_REFUSED,
                    )

    def _check_same_processor(
        self, number: int, saved: dict[Register, int], found: dict[Register, int]
    ) -> None:
        different = vcpu.differences(saved, found)
        if not different:
            return
        fact = f"vCPU {number} would not be the one it was: {'; '.join(different)}"
        if self._check_cpu:
            raise ImageError(
                fact, name=ErrorName.CPU_FEATURES_MISSING, remedies=[Advice(Remedy.RESTORE_ON_OTHER_CPU)]
            )
        LOG.warning("%s; restored all the same: the guest may crash", fact)

    def close(self) -> None:
        """Nothing is kept mapped."""
