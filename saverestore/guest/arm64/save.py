"""Saving an arm64 domain: its vCPUs' hidden registers are read by code that they run themselves.

    running ──find shared_info──► running ──suspend──► suspended ──contexts──► journal on the disk
      ──scratch pages, save stub──► paused ──last round of pages──► event stub on each vCPU ──► scratch off

Up to the journal nothing of the guest has been changed; from there on it says how to put everything back.
"""

from __future__ import annotations

import numpy as np

from pyxc import DomainInfo, arm64, cpu
from pyxc.memory import nr_gpfns
from saverestore.arm64_registers import Register
from saverestore.errors import Advice, DomainError, ErrorName, Remedy
from saverestore.guest.arm64 import journal as journals
from saverestore.guest.arm64 import vcpu
from saverestore.guest.arm64.journal import Journal
from saverestore.guest.arm64.layout import Layout
from saverestore.guest.arm64.memory import KeptMemory
from saverestore.guest.arm64.resuming import recover_by_journal
from saverestore.guest.arm64.shared import find_shared_info
from saverestore.guest.arm64.stubs import Piece, Scratch, code_of, get_context
from saverestore.guest.arm64.vcpu import Context
from saverestore.guest.arm64.vcpu_info import VcpuInfoSearch
from saverestore.guest.common.handles import Handles
from saverestore.guest.common.hvm_params import HVM_PARAM_CONSOLE_PFN, HVM_PARAM_STORE_PFN
from saverestore.guest.common.suspend import Suspending
from saverestore.guest.ports import U8, U64, LogDirty, LogDirtyUnavailable, PageBatch
from saverestore.interrupts import shield
from saverestore.stream.layout import DomainType, PageType
from saverestore.stream.records import Arm64Platform, Arm64SharedInfo, HvmParams, Record

SAVED_HVM_PARAMS = (HVM_PARAM_STORE_PFN, HVM_PARAM_CONSOLE_PFN)


class Arm64Save:
    """Reads a running or suspended arm64 domain. See SaveGuest. `gic`: the version that the domain has."""

    domain_type = DomainType.ARM64

    def __init__(self, handles: Handles, info: DomainInfo, suspender: Suspending, gic: int) -> None:
        self._handles = handles
        self._domid = info.domid
        self._uuid = info.uuid
        self._suspender = suspender
        self._gic = gic
        self._nr_vcpus = info.max_vcpu_id + 1
        self._layout = Layout.of_domain(nr_gpfns(handles.xen, info.domid), info.max_pages)
        if not self._layout.banks:
            raise DomainError(
                f"domain {info.domid} has no memory where an arm64 domain has it; no changes were made",
                name=ErrorName.DOMAIN_UNREADABLE,
            )
        code_of(Piece.SAVE, gic)  # that this can be done at all is told before anything is
        self._memory = KeptMemory(handles, info.domid, self._layout)
        version = handles.xen.version()
        self.xen_version = (version.major, version.minor)
        self.nr_pfns = self._layout.end
        self.populated_pages = info.tot_pages
        self._shared_info: int | None = None
        self._journal: Journal | None = None
        self._scratch: Scratch | None = None
        self._hidden: dict[int, dict[Register, int]] = {}

    # ---- memory ------------------------------------------------------------------------------------

    def static_records(self) -> list[Record]:
        """What the domain needs of a host."""
        host = arm64.processor()
        return [
            Arm64Platform(
                gic=self._gic,
                nr_vcpus=self._nr_vcpus,
                midr=host.midr,
                cntfrq=host.cntfrq,
                banks=self._layout.banks,
            )
        ]

    def memory_records(self) -> list[Record]:
        """None: pfns are guest frames."""
        return []

    def types_of(self, pfns: U64) -> U8:
        """Those in a bank have memory, as far as it goes."""
        types = np.full(len(pfns), PageType.XTAB, dtype=np.uint8)
        for first, pages in self._layout.banks:
            types[(pfns >= np.uint64(first)) & (pfns < np.uint64(first + pages))] = PageType.NOTAB
        return types

    def read_pages(self, pfns: U64, *, final: bool, types: U8 | None = None) -> PageBatch:
        """Pages of these pfns, which may go on changing. The shared_info page is not the guest's: it is left out."""
        batch = self._memory.read(pfns)
        at = np.searchsorted(pfns, self._shared_info or 0)
        if self._shared_info is None or at == len(pfns) or int(pfns[at]) != self._shared_info:
            return batch
        before, after = pfns[:at], pfns[at + 1 :]
        parts = [self._memory.read(part) for part in (before, after)]
        types = np.concatenate([parts[0].types, np.array([PageType.XTAB], dtype=np.uint8), parts[1].types])
        return PageBatch(pfns, types, [*parts[0].pages, *parts[1].pages])

    def check_layout(self) -> None:
        """DomainError when the domain got memory beyond its last frame while it was being saved."""
        if nr_gpfns(self._handles.xen, self._domid) > self.nr_pfns:
            raise DomainError(
                f"domain {self._domid} was given memory above its last frame, {self.nr_pfns - 1:#x}, "
                "while it was being saved",
                name=ErrorName.DOMAIN_CHANGED,
                remedies=[Advice(Remedy.TRY_AGAIN)],
            )

    def open_log_dirty(self) -> LogDirty:
        """Xen has none on ARM."""
        raise LogDirtyUnavailable("Xen on ARM does not log dirty pages")

    # ---- suspending --------------------------------------------------------------------------------

    def suspend(self) -> None:
        """Suspend the guest and read its hidden registers. On error `resume` lets it go on as if nothing had been."""
        self._check_vcpus()
        if self._shared_info is None:
            self._shared_info = find_shared_info(self._handles, self._domid, self._memory)
        self._suspender.suspend()
        # What was mapped while it ran may have been given back meanwhile, and other pages be there now.
        self._memory.drop()
        contexts = tuple(get_context(self._handles, self._domid, number) for number in range(self._nr_vcpus))
        for number, context in enumerate(contexts):
            vcpu.check_is_64_bit(number, context)
        journal = Journal(self._domid, self._uuid, contexts, self._shared_info, self._shared_info_page())
        with shield():
            journals.write(journal)
            self._journal = journal
        with shield():
            self._scratch = Scratch(self._handles, self._domid, self._nr_vcpus, self._gic)
        self._scratch.run(Piece.SAVE, contexts, self._online, lambda: self._handles.xen.resume(self._domid))
        for number in self._online:
            self._hidden[number] = vcpu.read_slots(self._scratch.data(number), self._gic)
            vcpu.check_can_be_carried(number, self._hidden[number])

    def _check_vcpus(self) -> None:
        info = self._handles.xen.domain(self._domid)
        if info.nr_online_vcpus != self._nr_vcpus:
            raise DomainError(
                f"domain {self._domid} has {self._nr_vcpus} vCPUs of which {info.nr_online_vcpus} are online: only "
                f"one with all of them can be saved; it is running",
                remedies=[Advice(Remedy.PLUG_ALL_VCPUS, f"{self._domid} {self._nr_vcpus}")],
            )

    @property
    def _contexts(self) -> tuple[Context, ...]:
        assert self._journal is not None, "not suspended"
        return self._journal.contexts

    @property
    def _online(self) -> list[int]:
        return [number for number, context in enumerate(self._contexts) if context.online]

    def _shared_info_page(self) -> bytes:
        assert self._shared_info is not None, "not looked for yet"
        with self._handles.memory.map_page(self._domid, self._shared_info) as mapping:
            return bytes(mapping.buffer)

    def resume(self) -> None:
        """Resume it after `suspend`, wherever that had come to. Nothing when it was not suspended by us.

        When it raises, call it again: what has not been undone yet is known until it has been.
        """
        with shield():
            if self._scratch is not None:
                self._memory.drop()
                self._scratch.unmap()
                self._scratch = None
            if self._journal is not None:
                recover_by_journal(self._handles, self._journal)
                self._journal = None
        self._suspender.resume()

    # ---- the end -----------------------------------------------------------------------------------

    def end_records(self) -> list[Record]:
        """Where the guest shares memory with Xen, its rings, and its processors."""
        assert self._scratch is not None and self._shared_info is not None, "not suspended"
        addresses = self._find_vcpu_info()
        with shield():
            self._scratch.close()
            self._scratch = None
        params = tuple((i, cpu.hvm_param(self._handles.xen, self._domid, i)) for i in SAVED_HVM_PARAMS)
        records: list[Record] = [HvmParams(params), Arm64SharedInfo(self._shared_info, addresses)]
        for number, context in enumerate(self._contexts):
            records.append(vcpu.record_of(number, context, self._hidden.get(number, {})))
        return records

    def _find_vcpu_info(self) -> tuple[int, ...]:
        assert self._scratch is not None and self._journal is not None, "not suspended"

        def keep(journal: Journal) -> None:
            with shield():
                journals.write(journal)
                self._journal = journal

        search = VcpuInfoSearch(self._handles, self._memory, self._scratch, keep)
        return search.addresses(self._journal)

    def close(self) -> None:
        """Unmap everything."""
        self._memory.drop()
