"""PV vCPU contexts and the pages around them: frames become pfns on the way out, mfns on the way in. Pure.

Each `*_to_pfns` has its `*_to_mfns`; one undoes the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from saverestore.errors import ImageError
from saverestore.guest.x86.layout import (
    FIRST_RESERVED_GDT_ENTRY,
    GDT_ENTRIES_A_FRAME,
    PAGE_SHIFT,
    SHARED_INFO,
    START_INFO,
    VCPU_CONTEXT,
    VGCF_ONLINE,
)

Translate = Callable[[int, str], int]
"""Frame number and what it is for (for errors) to the frame number on the other side."""


def _context(raw: bytes | bytearray) -> np.void:
    """The named fields of a context, in place: writing one writes into `raw`."""
    context: np.void = np.frombuffer(raw, dtype=VCPU_CONTEXT)[0]
    return context


def _nr_gdt_frames(context: np.void, vcpu: int) -> int:
    entries = int(context["gdt_ents"])
    if entries > FIRST_RESERVED_GDT_ENTRY:
        raise ImageError(
            f"vcpu {vcpu}: {entries} GDT entries, at most {FIRST_RESERVED_GDT_ENTRY} are possible"
        )
    return -(-entries // GDT_ENTRIES_A_FRAME)


def context_to_pfns(raw: bytes | bytearray, vcpu: int, pfn_of: Translate) -> bytes:
    """A context as xc_vcpu_getcontext gives it, as X86_PV_VCPU_BASIC carries it.

    Frames are: vcpu 0's rdx (the suspend record: start_info), the GDT, cr3, and the user-mode page table,
    kept in cr1, which is marked as present with bit 0.
    """
    changed = bytearray(raw)
    context = _context(changed)
    if vcpu == 0:
        context["rdx"] = pfn_of(int(context["rdx"]), "start_info")
    for i in range(_nr_gdt_frames(context, vcpu)):
        context["gdt_frames"][i] = pfn_of(int(context["gdt_frames"][i]), f"vcpu {vcpu}'s GDT frame {i}")
    control = context["ctrlreg"]
    control[3] = pfn_of(int(control[3]) >> PAGE_SHIFT, f"vcpu {vcpu}'s cr3") << PAGE_SHIFT
    if control[1]:
        control[1] = pfn_of(int(control[1]) >> PAGE_SHIFT, f"vcpu {vcpu}'s user cr3") << PAGE_SHIFT | 1
    # Not context.tobytes(): numpy does not promise to copy what lies between named fields.
    return bytes(changed)


@dataclass(frozen=True)
class FrameMaps:
    """How to find a frame of the new domain, by what the image says it must be."""

    plain: Translate
    """An ordinary page; ImageError when the pfn is of another type or has no memory."""
    top_table: Translate
    """A level-4 page table; the same."""


def context_to_mfns(raw: bytes | bytearray, vcpu: int, mfn_of: FrameMaps) -> bytes:
    """The inverse of `context_to_pfns`, for xc_vcpu_setcontext; the vCPU is marked online."""
    if len(raw) != VCPU_CONTEXT.itemsize:
        raise ImageError(
            f"vcpu {vcpu}: a context of {len(raw)} bytes, a 64-bit PV guest's has {VCPU_CONTEXT.itemsize}"
        )
    changed = bytearray(raw)
    context = _context(changed)
    context["flags"] |= np.uint64(VGCF_ONLINE)
    if vcpu == 0:
        context["rdx"] = mfn_of.plain(int(context["rdx"]), "start_info")
    for i in range(_nr_gdt_frames(context, vcpu)):
        context["gdt_frames"][i] = mfn_of.plain(int(context["gdt_frames"][i]), f"vcpu {vcpu}'s GDT frame {i}")
    control = context["ctrlreg"]
    control[3] = mfn_of.top_table(int(control[3]) >> PAGE_SHIFT, f"vcpu {vcpu}'s cr3") << PAGE_SHIFT
    if int(control[1]) & 1:
        control[1] = mfn_of.top_table(int(control[1]) >> PAGE_SHIFT, f"vcpu {vcpu}'s user cr3") << PAGE_SHIFT
    return bytes(changed)


def start_info_pfn(raw: bytes) -> int:
    """Where vcpu 0's context, as an image carries it, says that the start_info page is."""
    return int(_context(raw)["rdx"])


def patch_start_info(
    page: npt.NDArray[np.uint8],
    mfn_of: Translate,
    *,
    nr_pages: int,
    shared_info_frame: int,
    store_port: int,
    console_port: int,
) -> tuple[int, int]:
    """Bring a start_info page up to date in place: (mfn of the store ring, mfn of the console ring)."""
    info = page.reshape(-1).view(START_INFO)[0]
    store = mfn_of(int(info["store_mfn"]), "the xenstore ring")
    console = mfn_of(int(info["console_mfn"]), "the console ring")
    info["store_mfn"], info["store_evtchn"] = store, store_port
    info["console_mfn"], info["console_evtchn"] = console, console_port
    info["nr_pages"] = nr_pages
    info["shared_info"] = shared_info_frame << PAGE_SHIFT
    info["flags"] = 0
    return store, console


def merge_shared_info(page: npt.NDArray[np.uint8], saved: bytes) -> None:
    """Put the saved vcpu_info and arch parts into a fresh domain's shared_info page, in place.

    No event channel of before exists any more: none is pending, all are masked until the guest binds anew.
    The p2m tree's root is the old domain's and is cleared; the guest sets it again when it resumes.
    """
    fresh = page.reshape(-1).view(SHARED_INFO)[0]
    old = np.frombuffer(saved, dtype=SHARED_INFO)[0]
    page.reshape(-1)[:2048] = np.frombuffer(saved, dtype=np.uint8)[:2048]
    offset = int(SHARED_INFO.fields["arch"][1]) if SHARED_INFO.fields else 0
    size = old["arch"].itemsize
    page.reshape(-1)[offset : offset + size] = np.frombuffer(saved, dtype=np.uint8)[offset : offset + size]
    fresh["arch"]["frame_list_list"] = 0
    fresh["vcpu_info"]["evtchn_pending_sel"] = 0
    fresh["evtchn_pending"] = 0
    fresh["evtchn_mask"] = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
