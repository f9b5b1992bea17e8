"""What becomes of each field of libxl's domain configuration in a save and a restore.

See docs/reference/configuration.md.

A test holds this against libxl's own list (_libxl_types.h), so that a field which a new release brings is noticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Decision(Enum):
    """KEPT: the restored domain has it as the saved one had. REFUSED: where it is set, no image is made.

    REPORTED: where it is set, a warning says that something of it is not in the image. CHECKED: other code looks at
    it and refuses or warns (devices, passed-through hardware). IRRELEVANT: it matters only when a domain first boots.
    """

    KEPT = "kept"
    REFUSED = "refused"
    REPORTED = "reported"
    CHECKED = "checked"
    IRRELEVANT = "irrelevant"


def _all(decision: Decision, words: str) -> dict[str, Decision]:
    return dict.fromkeys(words.split(), decision)


CONFIG = {
    **_all(Decision.CHECKED, "disks nics pcidevs rdms dtdevs vfbs vkbs virtios vtpms p9s pvcallsifs vdispls"),
    **_all(Decision.CHECKED, "vsnds channels usbctrls usbdevs"),
    **_all(Decision.KEPT, "c_info b_info on_poweroff on_reboot on_watchdog on_crash on_soft_reset"),
}

CREATE = {
    **_all(
        Decision.KEPT, "type hap oos ssidref ssid_label name domid uuid xsdata platformdata poolid pool_name"
    ),
    **_all(Decision.KEPT, "run_hotplug_scripts driver_domain passthrough xend_suspend_evtchn_compat"),
}

BUILD = {
    # Processors, memory, time, scheduling.
    **_all(Decision.KEPT, "max_vcpus avail_vcpus cpumap nodemap vcpu_hard_affinity vcpu_soft_affinity"),
    **_all(Decision.KEPT, "numa_placement llc_colors sched_params cpuid vpmu tsc_mode timer_mode"),
    **_all(Decision.KEPT, "max_memkb target_memkb video_memkb shadow_memkb iommu_memkb claim_mode"),
    **_all(Decision.KEPT, "rtc_timeoffset localtime"),
    # Its interface to Xen, xenstore and its device model.
    **_all(Decision.KEPT, "max_grant_frames max_maptrack_frames max_grant_version event_channels"),
    **_all(
        Decision.KEPT, "xenstore_feature_mask xenstore_quota exec_ssidref exec_ssid_label disable_migrate"
    ),
    **_all(Decision.KEPT, "device_model_version device_model device_model_ssidref device_model_ssid_label"),
    **_all(Decision.KEPT, "device_model_user dm_restrict extra extra_pv extra_hvm blkdev_start acpi apic"),
    **_all(Decision.KEPT, "type u arch_arm arch_x86 altp2m_count trap_unmapped_accesses"),
    # How it boots.
    **_all(Decision.IRRELEVANT, "kernel cmdline ramdisk bootloader bootloader_args"),
    **_all(Decision.IRRELEVANT, "bootloader_restrict bootloader_user"),
    # The stub domain is refused where its device model is looked at; what it is made of follows.
    **_all(Decision.CHECKED, "device_model_stubdomain stubdomain_memkb stubdomain_kernel"),
    **_all(Decision.CHECKED, "stubdomain_cmdline stubdomain_ramdisk device_tree tee"),
    "vnuma_nodes": Decision.REFUSED,
    # Of these the configuration is kept, and what the hardware or the hypervisor had of them is not.
    **_all(Decision.REPORTED, "ioports irqs iomem nested_hvm altp2m vmtrace_buf_kb"),
}

WHAT_IS_LOST = {
    "vnuma_nodes": "its virtual NUMA nodes (vnuma), of which a restored domain has none",
    "ioports": "what hardware behind its I/O ports (ioports) was doing",
    "irqs": "interrupts of hardware of its own (irqs)",
    "iomem": "what hardware behind its I/O memory (iomem) was doing",
    "nested_hvm": "guests that run inside it (nestedhvm)",
    "altp2m": "alternate views of its memory (altp2m)",
    "vmtrace_buf_kb": "traces of its processors (vmtrace_buf_kb)",
}
"""Of what is refused or reported, for people."""

UNSET: tuple[Any, ...] = (None, 0, "", "0", "False", "<default>", "disabled", [], {})


@dataclass(frozen=True)
class Losses:
    """What a restore of a domain with this configuration would lose, for people."""

    refused: list[str]
    reported: list[str]


def losses(raw: Mapping[str, Any]) -> Losses:
    """Of libxl's JSON."""
    build = raw.get("b_info") or {}
    values = dict(build)
    for name in list(build):
        if name.startswith("type.") and isinstance(build[name], dict):  # nested_hvm and altp2m were here once
            values = {**build[name], **values}
    found: dict[Decision, list[str]] = {Decision.REFUSED: [], Decision.REPORTED: []}
    for name, what in WHAT_IS_LOST.items():
        if values.get(name) not in UNSET:
            found[BUILD[name]].append(what)
    return Losses(found[Decision.REFUSED], found[Decision.REPORTED])
