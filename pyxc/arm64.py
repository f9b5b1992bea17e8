"""What 64-bit ARM has of its own: processors by register, caches, a domain's clock and shared_info page.

Only on arm64: elsewhere each of these raises WrongArchitecture.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyxc._arch import ARM64, require
from pyxc._handle import check_rc
from pyxc._xen import ffi, lib
from pyxc.control import Xen

SPECIAL = (
    "pc", "cpsr", "spsr_el1", "sp_el0", "sp_el1", "elr_el1", "sctlr_el1", "tcr_el1", "ttbr0_el1", "ttbr1_el1",
)  # fmt: skip


@dataclass(frozen=True)
class VcpuContext:
    """All that Xen tells of an AArch64 vCPU (xen/public/arch-arm.h, struct vcpu_guest_context).

    `x` has x0 to x30. `online`: the vCPU runs when the domain does. What is not here (VBAR, thread pointers, vector
    registers, timers …) is in no call at all.
    """

    x: tuple[int, ...]
    pc: int
    cpsr: int
    spsr_el1: int
    sp_el0: int
    sp_el1: int
    elr_el1: int
    sctlr_el1: int
    tcr_el1: int
    ttbr0_el1: int
    ttbr1_el1: int
    online: bool


@dataclass(frozen=True)
class Processor:
    """The kind of processor this runs on (MIDR_EL1), and its counter's ticks a second (CNTFRQ_EL0)."""

    midr: int
    cntfrq: int


def vcpu_context(xen: Xen, domid: int, vcpu: int) -> VcpuContext:
    """A vCPU's registers; of a running domain, as they were at some moment."""
    require(ARM64, "xc_vcpu_getcontext", domid)
    c = ffi.new("struct pyxc_arm64_context *")
    check_rc(lib.pyxc_arm64_get_context(xen.ptr, domid, vcpu, c), "xc_vcpu_getcontext", domid)
    return VcpuContext(tuple(c.x), **{name: getattr(c, name) for name in SPECIAL}, online=c.online)


def set_vcpu_context(xen: Xen, domid: int, vcpu: int, context: VcpuContext) -> None:
    """Give a vCPU these registers, and bring it up or take it down. The domain should be paused.

    EINVAL for a domain that is not yet a 64-bit one (`set_address_size`).
    """
    require(ARM64, "xc_vcpu_setcontext", domid)
    c = ffi.new("struct pyxc_arm64_context *")
    c.x = list(context.x)
    for name in SPECIAL:
        setattr(c, name, getattr(context, name))
    c.online = context.online
    check_rc(
        lib.pyxc_arm64_set_context(xen.ptr, domid, vcpu, c),
        "xc_vcpu_setcontext",
        domid,
        detail=f"vcpu {vcpu}",
    )


def set_address_size(xen: Xen, domid: int, bits: int = 64) -> None:
    """Make a fresh domain a 64-bit one.

    Only after its vCPUs were made: in the other order the first unpause is the end of the hypervisor (Xen 4.17).
    """
    require(ARM64, "set_address_size", domid)
    check_rc(lib.pyxc_arm64_set_address_size(xen.ptr, domid, bits), "set_address_size", domid)


def flush_caches(xen: Xen, domid: int, first_gfn: int, nr_pages: int) -> None:
    """Write back and drop what caches hold of these pages, so that a vCPU without MMU sees what we wrote."""
    require(ARM64, "xc_domain_cacheflush", domid)
    rc = lib.xc_domain_cacheflush(xen.ptr, domid, first_gfn, nr_pages)
    check_rc(rc, "xc_domain_cacheflush", domid, detail=f"{nr_pages} pages from gfn {first_gfn:#x}")


def map_shared_info(xen: Xen, domid: int, gfn: int) -> None:
    """Let the domain find its shared_info page at this frame, as if it had asked for that itself."""
    require(ARM64, "xc_domain_add_to_physmap", domid)
    rc = lib.xc_domain_add_to_physmap(xen.ptr, domid, lib.XENMAPSPACE_shared_info, 0, gfn)
    check_rc(rc, "xc_domain_add_to_physmap", domid, detail=f"shared_info at gfn {gfn:#x}")


def set_host_time(xen: Xen, time_ns: int, system_time_ns: int) -> None:
    """Tell Xen the wall clock time at a system time, as dom0's kernel does now and then (XENPF_settime64).

    Xen thereupon writes the wall clock in each domain's shared_info page anew.
    """
    require(ARM64, "XENPF_settime64")
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    check_rc(lib.pyxc_arm64_set_host_time(xen.ptr, seconds, nanoseconds, system_time_ns), "XENPF_settime64")


def processor() -> Processor:
    """The processor of this host, as dom0's kernel shows it; Xen shows guests the same of these two."""
    require(ARM64, "MIDR_EL1")
    midr, cntfrq = ffi.new("uint64_t *"), ffi.new("uint64_t *")
    check_rc(lib.pyxc_arm64_processor(midr, cntfrq), "MIDR_EL1")
    return Processor(midr[0], cntfrq[0])
