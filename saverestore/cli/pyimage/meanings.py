"""What records and page types hold, in a few words: printed beside the specification's names."""

from __future__ import annotations

from saverestore.stream.layout import PageType, RecordType
from saverestore.stream.libxl import LibxlRecordType

_RECORDS = {
    RecordType.END: "the end of the memory and processor state",
    RecordType.PAGE_DATA: "pages of memory",
    RecordType.X86_PV_INFO: "width of the guest's addresses, levels of its page tables",
    RecordType.X86_PV_P2M_FRAMES: "which pages hold the guest's p2m",
    RecordType.X86_PV_VCPU_BASIC: "registers of a vCPU",
    RecordType.X86_PV_VCPU_EXTENDED: "further registers of a vCPU",
    RecordType.X86_PV_VCPU_XSAVE: "floating-point and vector registers of a vCPU",
    RecordType.X86_PV_VCPU_MSRS: "model-specific registers of a vCPU",
    RecordType.SHARED_INFO: "the page that Xen and the guest share",
    RecordType.X86_TSC_INFO: "the time-stamp counter",
    RecordType.HVM_CONTEXT: "vCPUs and platform devices",
    RecordType.HVM_PARAMS: "ring pages, event channels and other parameters",
    RecordType.TOOLSTACK: "xenstore entries of the device model, by older versions",
    RecordType.VERIFY: "pages from here on are for comparison only",
    RecordType.CHECKPOINT: "a state that could be restored",
    RecordType.CHECKPOINT_DIRTY_PFN_LIST: "pages written on the other side (COLO)",
    RecordType.STATIC_DATA_END: "the end of what is known before the domain runs",
    RecordType.X86_CPUID_POLICY: "CPU features that the domain sees",
    RecordType.X86_MSR_POLICY: "model-specific registers that the domain sees",
    RecordType.ARM64_PLATFORM: "interrupt controller, timer, console and xenstore pages",
    RecordType.ARM64_VCPU: "registers of a vCPU",
    RecordType.ARM64_SHARED_INFO: "the page that Xen and the guest share",
    RecordType.IMAGE_DIGEST: "the digest of the whole image",
    RecordType.PROVENANCE: "what the save noted of itself",
    RecordType.FOLLOWING: "length and digest of what follows the memory",
    RecordType.DISKS: "the domain's disks when it was suspended",
}
_LIBXL = {
    LibxlRecordType.END: "the end of the image",
    LibxlRecordType.LIBXC_CONTEXT: "memory and processors follow, in libxc's records",
    LibxlRecordType.EMULATOR_XENSTORE_DATA: "xenstore entries of the device model",
    LibxlRecordType.EMULATOR_CONTEXT: "state of the devices, as QEMU saves it",
    LibxlRecordType.CHECKPOINT_END: "the end of a checkpoint",
    LibxlRecordType.CHECKPOINT_STATE: "COLO: what one side reports to the other",
}

RECORDS = {kind.name: text for kind, text in _RECORDS.items()} | {
    f"libxl {kind.name}": text for kind, text in _LIBXL.items()
}
"""By the names that `Survey.records` has."""

PAGE_TYPES = {
    PageType.NOTAB: "plain memory",
    PageType.BROKEN: "broken memory: no data",
    PageType.XALLOC: "has memory, and no data yet",
    PageType.XTAB: "no memory",
} | {
    PageType(number): f"page table, level {number & 7}{', pinned' if number & 8 else ''}"
    for number in (1, 2, 3, 4, 9, 10, 11, 12)
}
