"""Structures that a 64-bit PV guest and Xen share, each declared once.

Xen's public ABI (xen/public/arch-x86/xen-x86_64.h, xen.h), little-endian. Only the fields that a save or
restore must read or change are named; tests hold the offsets against the compiler's.
"""

from __future__ import annotations

import numpy as np

from saverestore.kernels.page import PAGE_SHIFT as PAGE_SHIFT

# shared_info: one page, written by Xen and the guest.
#
#      0  vcpu_info[32], 64 bytes each      2048  evtchn_pending[64]     2560  evtchn_mask[64]
#   3072  wall clock                        3088  arch (below)
NR_LEGACY_VCPUS = 32

VCPU_INFO = np.dtype(
    {
        "names": ["evtchn_pending_sel"],
        "formats": ["<u8"],
        "offsets": [8],
        "itemsize": 64,
    }
)

ARCH_SHARED_INFO = np.dtype(
    {
        "names": ["max_pfn", "frame_list_list", "p2m_cr3", "p2m_vaddr", "p2m_generation"],
        "formats": ["<u8"] * 5,
        "offsets": [0, 8, 24, 32, 40],
        "itemsize": 48,
    }
)

SHARED_INFO = np.dtype(
    {
        "names": ["vcpu_info", "evtchn_pending", "evtchn_mask", "arch"],
        "formats": [(VCPU_INFO, NR_LEGACY_VCPUS), ("<u8", 64), ("<u8", 64), ARCH_SHARED_INFO],
        "offsets": [0, 2048, 2560, 3088],
        "itemsize": 4096,
    }
)

# vcpu_guest_context_x86_64: what a vCPU starts from.
VGCF_ONLINE = 1 << 5
NR_GDT_FRAMES = 16
GDT_ENTRIES_A_FRAME = 512

VCPU_CONTEXT = np.dtype(
    {
        "names": ["flags", "rdx", "gdt_frames", "gdt_ents", "ctrlreg"],
        "formats": ["<u8", "<u8", ("<u8", NR_GDT_FRAMES), "<u8", ("<u8", 8)],
        "offsets": [512, 616, 4832, 4960, 4984],
        "itemsize": 5168,
    }
)

# The last 2 MiB worth of GDT entries are Xen's own (FIRST_RESERVED_GDT_ENTRY: 14 frames of 512).
FIRST_RESERVED_GDT_ENTRY = 14 * GDT_ENTRIES_A_FRAME

# start_info: what a PV kernel finds at boot, and again after a restore.
START_INFO = np.dtype(
    {
        "names": [
            "nr_pages",
            "shared_info",
            "flags",
            "store_mfn",
            "store_evtchn",
            "console_mfn",
            "console_evtchn",
        ],
        "formats": ["<u8", "<u8", "<u4", "<u8", "<u4", "<u8", "<u4"],
        "offsets": [32, 40, 48, 56, 64, 72, 80],
        "itemsize": 4096,
    }
)

# Page-table entries. Bits 12–51 are the frame.
PTE_PRESENT = np.uint64(1)
PTE_PSE = np.uint64(1 << 7)
PTE_FRAME_MASK = np.uint64(0x000F_FFFF_FFFF_F000)
ENTRIES_A_TABLE = 512

# L4 slots that Xen fills in itself: virtual addresses from 0xffff800000000000 to 0xffff87ffffffffff.
XEN_L4_SLOTS = slice(256, 272)
XEN_HOLE = (0xFFFF_8000_0000_0000, 0xFFFF_87FF_FFFF_FFFF)

# What a save carries, where not zero: store, ioreq, buffered ioreq, paging ring, monitor ring, sharing ring,
# VM86 TSS, console, ACPI ports, viridian, identity page table, generation id, ioreq server and its pages,
# x87 FIP width, MCA capabilities.
SAVED_HVM_PARAMS = (1, 5, 6, 27, 28, 29, 37, 17, 19, 9, 12, 34, 32, 33, 36, 38)
