"""The x86 kinds of domain: PV, PVH, and HVM, which is PVH with a device model."""

from __future__ import annotations

from collections.abc import Sequence

from pyxc import DomainInfo, cpu
from pyxc.control import DomainConfig
from saverestore.guest.common.handles import Handles
from saverestore.guest.common.hvm_params import HVM_PARAM_TIMER_MODE
from saverestore.guest.common.kind import Emulator, Kind
from saverestore.guest.common.machine import Machine
from saverestore.guest.common.suspend import Resumption, Suspender, Suspending
from saverestore.guest.ports import RestoreGuest, SaveGuest
from saverestore.guest.x86.common import check_cpu_policy
from saverestore.guest.x86.hvm import HvmRestore, HvmSave, last_pfn
from saverestore.guest.x86.pv import PvRestore, PvSave, pfn_limit
from saverestore.stream.layout import DomainType
from saverestore.stream.records import Record, X86CpuidPolicy, X86MsrPolicy

EMULATE_LAPIC = 1 << 0  # XEN_X86_EMU_LAPIC: all that a PVH domain has
MSR_RELAXED = 1 << 0  # XEN_X86_MSR_RELAXED


class _X86(Kind):
    """What all of them share."""

    is_hvm: bool
    """Whether Xen has it as an HVM domain."""

    def suspender(self, handles: Handles, domid: int, *, timeout_s: float | None = None) -> Suspender:
        """See Kind. The guest of an HVM domain may know nothing of Xen."""
        return Suspender(
            handles.xen, handles.store, domid, timeout_s=timeout_s, emulated=self.has_device_model
        )

    def check_static_records(
        self, handles: Handles, records: Sequence[Record], machine: Machine, *, check_cpu: bool
    ) -> None:
        """The CPU policy. See Kind."""
        leaves = msrs = b""
        for record in records:
            if isinstance(record, X86CpuidPolicy):
                leaves = record.leaves
            elif isinstance(record, X86MsrPolicy):
                msrs = record.entries
        check_cpu_policy(handles.xen, self.is_hvm, leaves, msrs, check_cpu=check_cpu)

    def creation(self, machine: Machine) -> DomainConfig:
        """See Kind."""
        return DomainConfig(
            uuid=machine.uuid,
            hvm=self.is_hvm,
            hap=self.is_hvm and machine.hap,
            max_vcpus=machine.max_vcpus,
            ssidref=machine.ssidref,
            nested_virt=self.is_hvm and machine.nested_virt,
            max_evtchn_port=machine.event_channels,
            max_grant_frames=machine.max_grant_frames,
            max_maptrack_frames=machine.max_maptrack_frames,
            max_grant_version=machine.max_grant_version,
            emulation_flags=EMULATE_LAPIC if self.is_hvm else 0,
            misc_flags=MSR_RELAXED if machine.msr_relaxed else 0,
        )

    def set_up(self, handles: Handles, domid: int, machine: Machine) -> None:
        """The time stamp counter. See Kind."""
        cpu.set_tsc_info(handles.xen, domid, cpu.TscInfo(machine.tsc_mode, 0, 0, 0))

    def recover(self, handles: Handles, info: DomainInfo) -> list[str]:
        """See Kind. Nothing of such a domain is changed but that it suspends."""
        if not info.suspended:
            return []
        Resumption(handles.xen, handles.store, info.domid).resume()
        return ["it was suspended and has been resumed"]


class PvKind(_X86):
    """Frames are machine frames, page tables hold them."""

    domain_type = DomainType.X86_PV
    libxl_types = ("pv",)
    is_hvm = False

    def save_guest(
        self,
        handles: Handles,
        info: DomainInfo,
        suspending: Suspending,
        emulator: Emulator | None = None,
        *,
        gic_version: str | None = None,
    ) -> SaveGuest:
        """See Kind."""
        return PvSave(handles, info, suspending)

    def has_log_dirty(self, *, shadow: bool) -> bool:
        """With shadow paging."""
        return shadow

    def paging_pool_kib(self, machine: Machine) -> int:
        """None: its page tables are its own memory."""
        return 0

    def set_up(self, handles: Handles, domid: int, machine: Machine) -> None:
        """See Kind."""
        handles.xen.set_memmap_limit(domid, machine.max_kib)
        super().set_up(handles, domid, machine)

    def last_pfn(self, max_pages: int) -> int | None:
        """X86_PV_P2M_FRAMES says it."""
        return None

    def restore_guest(
        self,
        handles: Handles,
        info: DomainInfo,
        *,
        max_pages: int,
        gic_version: str | None = None,
        check_cpu: bool = True,
        is_built: bool = False,
    ) -> RestoreGuest:
        """See Kind."""
        return PvRestore(handles, info, pfn_limit=pfn_limit(max_pages), check_cpu=check_cpu)


class HvmKind(_X86):
    """PVH and HVM: frames are pfns, processors are one context."""

    domain_type = DomainType.X86_HVM
    is_hvm = True

    def __init__(self, libxl_type: str, *, has_device_model: bool) -> None:
        self.libxl_types = (libxl_type,)
        self.has_device_model = has_device_model

    def save_guest(
        self,
        handles: Handles,
        info: DomainInfo,
        suspending: Suspending,
        emulator: Emulator | None = None,
        *,
        gic_version: str | None = None,
    ) -> SaveGuest:
        """See Kind."""
        return HvmSave(handles, info, suspending, emulator)

    def has_log_dirty(self, *, shadow: bool) -> bool:
        """Always: nested paging has it, and shadow paging."""
        return True

    def paging_pool_kib(self, machine: Machine) -> int:
        """Nested page tables or shadows, as libxl reckons it."""
        if machine.paging_kib is not None:
            return machine.paging_kib
        tables = (1 if machine.hap else 2) * (machine.max_kib // 1024)
        return 4 * (256 * machine.max_vcpus + tables)

    def set_up(self, handles: Handles, domid: int, machine: Machine) -> None:
        """See Kind."""
        self.set_up_paging_pool(handles, domid, machine)
        cpu.set_hvm_param(handles.xen, domid, HVM_PARAM_TIMER_MODE, machine.timer_mode)
        super().set_up(handles, domid, machine)

    def last_pfn(self, max_pages: int) -> int | None:
        """See Kind."""
        return last_pfn(max_pages)

    def restore_guest(
        self,
        handles: Handles,
        info: DomainInfo,
        *,
        max_pages: int,
        gic_version: str | None = None,
        check_cpu: bool = True,
        is_built: bool = False,
    ) -> RestoreGuest:
        """See Kind."""
        return HvmRestore(handles, info, check_cpu=check_cpu)


PV = PvKind()
PVH = HvmKind("pvh", has_device_model=False)
HVM = HvmKind("hvm", has_device_model=True)
