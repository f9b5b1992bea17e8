"""The one kind of domain on arm64: frames are pfns, and hidden registers are read by code that its vCPUs run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyxc import DomainInfo, arm64
from pyxc.control import DomainConfig
from saverestore.guest.arm64.host import gic_version as gic_of
from saverestore.guest.arm64.layout import last_gfn
from saverestore.guest.arm64.restore import Arm64Restore, check_platform, check_size
from saverestore.guest.arm64.resuming import recover, resume_untouched
from saverestore.guest.arm64.save import Arm64Save
from saverestore.guest.common.handles import Handles
from saverestore.guest.common.kind import Emulator, Kind
from saverestore.guest.common.machine import Machine
from saverestore.guest.common.suspend import Suspender, Suspending
from saverestore.guest.ports import RestoreGuest, SaveGuest
from saverestore.stream.layout import DomainType
from saverestore.stream.records import Arm64Platform, Record

GIC_VERSIONS = {None: 0, "v2": 1, "v3": 2}  # XEN_DOMCTL_CONFIG_GIC_NATIVE, _V2, _V3

PASSED_THROUGH = {
    "pcidevs": "passed-through PCI devices",
    "dtdevs": "device-tree devices",
    "rdms": "reserved device memory",
}
"""libxl's lists of what is outside of the domain's memory."""


class Arm64Kind(Kind):
    """See above. Old releases of libxl call it PV."""

    domain_type = DomainType.ARM64
    libxl_types = ("pvh", "pv")

    def suspender(self, handles: Handles, domid: int, *, timeout_s: float | None = None) -> Suspender:
        """See Kind."""
        return Suspender(
            handles.xen,
            handles.store,
            domid,
            timeout_s=timeout_s,
            resume_domain=lambda: resume_untouched(handles, domid),
        )

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
        return Arm64Save(handles, info, suspending, gic_of(gic_version))

    def has_log_dirty(self, *, shadow: bool) -> bool:
        """Xen has none on ARM."""
        return False

    def unsupported(self, configuration: Callable[[], Mapping[str, Any]]) -> list[str]:
        """What has state that nobody can read, or is outside of the domain's memory."""
        raw = configuration()
        build = raw["b_info"]
        found = {
            "an emulated UART": (build.get("arch_arm") or {}).get("vuart") not in (None, "unknown"),
            "ACPI tables": build.get("acpi") in (True, "True"),
            f"a trusted execution environment ({build.get('tee')})": build.get("tee") not in (None, "none"),
            "its own device tree": bool(build.get("device_tree")),
        }
        passed = [name for key, name in PASSED_THROUGH.items() if raw.get(key)]
        return [*passed, *(name for name, is_there in found.items() if is_there)]

    def check_static_records(
        self, handles: Handles, records: Sequence[Record], machine: Machine, *, check_cpu: bool
    ) -> None:
        """The processor, the GIC and the counter; and that the domain's memory fits its own configuration."""
        for record in records:
            if isinstance(record, Arm64Platform):
                check_platform(record, gic_of(machine.gic_version), check_cpu=check_cpu)
                check_size(record, machine.max_vcpus, machine.max_kib)

    def paging_pool_kib(self, machine: Machine) -> int:
        """As libxl reckons it, with pages of 4 KiB each: one by one they are restored, whatever size they had."""
        if machine.paging_kib is not None:
            return machine.paging_kib
        return 4 * (256 * machine.max_vcpus + 2 * (machine.max_kib // 1024))

    def creation(self, machine: Machine) -> DomainConfig:
        """See Kind."""
        return DomainConfig(
            uuid=machine.uuid,
            hvm=True,
            hap=True,
            max_vcpus=machine.max_vcpus,
            ssidref=machine.ssidref,
            max_evtchn_port=machine.event_channels,
            max_grant_frames=machine.max_grant_frames,
            max_maptrack_frames=machine.max_maptrack_frames,
            max_grant_version=1,  # ARM has no other
            gic_version=GIC_VERSIONS[machine.gic_version],
        )

    def set_up(self, handles: Handles, domid: int, machine: Machine) -> None:
        """See Kind."""
        self.set_up_paging_pool(handles, domid, machine)
        arm64.set_address_size(handles.xen, domid)

    def last_pfn(self, max_pages: int) -> int | None:
        """See Kind."""
        return last_gfn(max_pages)

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
        return Arm64Restore(handles, info, gic_of(gic_version), check_cpu=check_cpu, is_built=is_built)

    def recover(self, handles: Handles, info: DomainInfo) -> list[str]:
        """With the journal's help, where there is one."""
        return recover(handles, info)


ARM64 = Arm64Kind()
