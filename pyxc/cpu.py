"""A domain's processors: contexts, CPU policy, time stamp counter, HVM state (xenctrl.h, xenguest.h)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyxc._arch import X86, require
from pyxc._handle import check_rc, last_errno
from pyxc._xen import ffi, lib
from pyxc.control import Xen
from pyxc.errors import XenError

EXTENDED_MAX_BYTES = 128


# ---- x86 PV vCPUs ------------------------------------------------------------------------------------


def vcpu_is_online(xen: Xen, domid: int, vcpu: int) -> bool:
    """Whether a vCPU has been brought up by the guest."""
    online = ffi.new("bool *")
    check_rc(lib.pyxc_vcpu_online(xen.ptr, domid, vcpu, online), "xc_vcpu_getinfo", domid)
    return bool(online[0])


def vcpu_context(xen: Xen, domid: int, vcpu: int, size: int) -> bytearray:
    """The first `size` bytes of vcpu_guest_context_any_t: registers, tables, callbacks."""
    buffer = ffi.new("char[]", lib.pyxc_vcpu_context_size())
    check_rc(lib.pyxc_vcpu_getcontext(xen.ptr, domid, vcpu, buffer), "xc_vcpu_getcontext", domid)
    return bytearray(ffi.buffer(buffer)[:size])


def set_vcpu_context(xen: Xen, domid: int, vcpu: int, context: bytes | bytearray) -> None:
    """Give a vCPU its registers and bring it up; short contexts are padded to the full structure."""
    buffer = ffi.new("char[]", lib.pyxc_vcpu_context_size())
    ffi.memmove(buffer, bytes(context), len(context))
    check_rc(
        lib.pyxc_vcpu_setcontext(xen.ptr, domid, vcpu, buffer),
        "xc_vcpu_setcontext",
        domid,
        detail=f"vcpu {vcpu}",
    )


def vcpu_extended(xen: Xen, domid: int, vcpu: int) -> bytes:
    """The extended context (sysenter, syscall32, machine check), up to 128 bytes; empty when none."""
    require(X86, "get_ext_vcpucontext", domid)
    buffer, size = ffi.new("char[]", EXTENDED_MAX_BYTES), ffi.new("uint32_t *")
    check_rc(lib.pyxc_vcpu_get_extended(xen.ptr, domid, vcpu, buffer, size), "get_ext_vcpucontext", domid)
    return bytes(ffi.buffer(buffer, size[0]))


def set_vcpu_extended(xen: Xen, domid: int, context: bytes) -> None:
    """Set it; the structure names its vCPU itself."""
    require(X86, "set_ext_vcpucontext", domid)
    check_rc(lib.pyxc_vcpu_set_extended(xen.ptr, domid, context, len(context)), "set_ext_vcpucontext", domid)


def _get_in_two_calls(function: Callable[..., int], call: str, xen: Xen, domid: int, vcpu: int) -> bytes:
    """Ask for the size, then for the bytes; again when it grew in between."""
    size = ffi.new("uint64_t *")
    check_rc(function(xen.ptr, domid, vcpu, ffi.NULL, size), call, domid)
    if size[0] == 0:
        return b""
    buffer = ffi.new("char[]", size[0])
    check_rc(function(xen.ptr, domid, vcpu, buffer, size), call, domid)
    return bytes(ffi.buffer(buffer, size[0]))


def vcpu_xsave(xen: Xen, domid: int, vcpu: int) -> bytes:
    """The extended processor state (x87, SSE, AVX …); empty when the vCPU has none."""
    require(X86, "getvcpuextstate", domid)
    return _get_in_two_calls(lib.pyxc_vcpu_get_xsave, "getvcpuextstate", xen, domid, vcpu)


def set_vcpu_xsave(xen: Xen, domid: int, vcpu: int, state: bytes) -> None:
    """Set it."""
    require(X86, "setvcpuextstate", domid)
    check_rc(lib.pyxc_vcpu_set_xsave(xen.ptr, domid, vcpu, state, len(state)), "setvcpuextstate", domid)


def vcpu_msrs(xen: Xen, domid: int, vcpu: int) -> bytes:
    """Model-specific registers, 16 bytes each (index, reserved, value); empty when none are in use."""
    require(X86, "get_vcpu_msrs", domid)
    return _get_in_two_calls(lib.pyxc_vcpu_get_msrs, "get_vcpu_msrs", xen, domid, vcpu)


def set_vcpu_msrs(xen: Xen, domid: int, vcpu: int, msrs: bytes) -> None:
    """Set them."""
    require(X86, "set_vcpu_msrs", domid)
    check_rc(lib.pyxc_vcpu_set_msrs(xen.ptr, domid, vcpu, msrs, len(msrs)), "set_vcpu_msrs", domid)


def pin_tables(xen: Xen, domid: int, mfns: npt.NDArray[np.uint64], levels: npt.NDArray[np.uint8]) -> None:
    """Pin page tables, `levels[i]` (1 to 4) saying as what; any number, 1,024 a call (xc_mmuext_op)."""
    require(X86, "xc_mmuext_op", domid)
    mfns = np.ascontiguousarray(mfns, dtype=np.uint64)
    levels = np.ascontiguousarray(levels, dtype=np.uint8)
    for start in range(0, len(mfns), 1024):
        batch_mfns, batch_levels = mfns[start : start + 1024], levels[start : start + 1024]
        rc = lib.pyxc_pin_tables(
            xen.ptr,
            domid,
            len(batch_mfns),
            ffi.from_buffer("uint8_t[]", batch_levels),
            ffi.from_buffer("uint64_t[]", batch_mfns),
        )
        check_rc(rc, "xc_mmuext_op", domid, detail="pinning page tables")


# ---- all x86 domains -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TscInfo:
    """How the domain sees the time stamp counter (xc_domain_get_tsc_info)."""

    mode: int
    khz: int
    elapsed_ns: int
    incarnation: int


def tsc_info(xen: Xen, domid: int) -> TscInfo:
    """The domain's time stamp counter settings now."""
    require(X86, "xc_domain_get_tsc_info", domid)
    mode, khz, incarnation = (ffi.new("uint32_t *") for _ in range(3))
    elapsed = ffi.new("uint64_t *")
    check_rc(
        lib.xc_domain_get_tsc_info(xen.ptr, domid, mode, elapsed, khz, incarnation),
        "xc_domain_get_tsc_info",
        domid,
    )
    return TscInfo(mode[0], khz[0], elapsed[0], incarnation[0])


def set_tsc_info(xen: Xen, domid: int, tsc: TscInfo) -> None:
    """Set them."""
    require(X86, "xc_domain_set_tsc_info", domid)
    check_rc(
        lib.xc_domain_set_tsc_info(xen.ptr, domid, tsc.mode, tsc.elapsed_ns, tsc.khz, tsc.incarnation),
        "xc_domain_set_tsc_info",
        domid,
    )


def cpu_policy(xen: Xen, domid: int) -> tuple[bytes, bytes]:
    """What the domain's CPUID and MSRs say: (leaves of 24 bytes, MSR entries of 16 bytes)."""
    require(X86, "xc_cpu_policy_get_domain", domid)
    return _policy(xen, domid, hvm=False, call="xc_cpu_policy_get_domain")


def max_cpu_policy(xen: Xen, *, hvm: bool) -> tuple[bytes, bytes]:
    """The most that this host can give to an HVM (or PVH), or a PV domain; as `cpu_policy`.

    XenError (EOPNOTSUPP) where this Xen has no domains of that kind.
    """
    require(X86, "xc_cpu_policy_get_system")
    return _policy(xen, lib.DOMID_INVALID, hvm=hvm, call="xc_cpu_policy_get_system")


def _policy(xen: Xen, domid: int, *, hvm: bool, call: str) -> tuple[bytes, bytes]:
    nr_leaves, nr_msrs = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    check_rc(lib.xc_cpu_policy_get_size(xen.ptr, nr_leaves, nr_msrs), "xc_cpu_policy_get_size")
    leaf, entry = lib.pyxc_cpuid_leaf_size(), lib.pyxc_msr_entry_size()
    leaves, msrs = ffi.new("char[]", nr_leaves[0] * leaf), ffi.new("char[]", nr_msrs[0] * entry)
    check_rc(
        lib.pyxc_get_cpu_policy(xen.ptr, domid, hvm, leaves, nr_leaves, msrs, nr_msrs),
        call,
        None if domid == lib.DOMID_INVALID else domid,
    )
    return bytes(ffi.buffer(leaves, nr_leaves[0] * leaf)), bytes(ffi.buffer(msrs, nr_msrs[0] * entry))


def set_cpu_policy(xen: Xen, domid: int, leaves: bytes, msrs: bytes) -> None:
    """Set them, before the domain has run. The error names the leaf or MSR this host cannot give."""
    require(X86, "xc_set_domain_cpu_policy", domid)
    err_leaf, err_subleaf, err_msr = (ffi.new("uint32_t *") for _ in range(3))
    leaf, entry = lib.pyxc_cpuid_leaf_size(), lib.pyxc_msr_entry_size()
    rc = lib.pyxc_set_cpu_policy(
        xen.ptr,
        domid,
        len(leaves) // leaf,
        ffi.from_buffer(leaves) if leaves else ffi.NULL,
        len(msrs) // entry,
        ffi.from_buffer(msrs) if msrs else ffi.NULL,
        err_leaf,
        err_subleaf,
        err_msr,
    )
    if rc < 0:
        unset = 0xFFFFFFFF
        at = []
        if err_leaf[0] != unset:
            at.append(f"CPUID leaf {err_leaf[0]:#x}")
        if err_subleaf[0] != unset:
            at.append(f"subleaf {err_subleaf[0]:#x}")
        if err_msr[0] != unset:
            at.append(f"MSR {err_msr[0]:#x}")
        raise XenError("xc_set_domain_cpu_policy", last_errno(), domid=domid, detail=", ".join(at))


# ---- HVM and PVH ---------------------------------------------------------------------------------------


def hvm_param(xen: Xen, domid: int, index: int) -> int:
    """One of the domain's HVM parameters (xen/public/hvm/params.h)."""
    value = ffi.new("uint64_t *")
    check_rc(lib.xc_hvm_param_get(xen.ptr, domid, index, value), "xc_hvm_param_get", domid, detail=f"{index}")
    return int(value[0])


def set_hvm_param(xen: Xen, domid: int, index: int, value: int) -> None:
    """Set it."""
    check_rc(
        lib.xc_hvm_param_set(xen.ptr, domid, index, value),
        "xc_hvm_param_set",
        domid,
        detail=f"parameter {index} = {value:#x}",
    )


def hvm_context(xen: Xen, domid: int) -> bytes:
    """The hypervisor's state of the domain's vCPUs and emulated devices, opaque."""
    require(X86, "xc_domain_hvm_getcontext", domid)
    size = check_rc(
        lib.xc_domain_hvm_getcontext(xen.ptr, domid, ffi.NULL, 0), "xc_domain_hvm_getcontext", domid
    )
    buffer = ffi.new("uint8_t[]", size)
    used = check_rc(
        lib.xc_domain_hvm_getcontext(xen.ptr, domid, buffer, size), "xc_domain_hvm_getcontext", domid
    )
    return bytes(ffi.buffer(buffer, used))


def set_hvm_context(xen: Xen, domid: int, context: bytes) -> None:
    """Set it."""
    require(X86, "xc_domain_hvm_setcontext", domid)
    buffer = ffi.new("uint8_t[]", context)
    check_rc(
        lib.xc_domain_hvm_setcontext(xen.ptr, domid, buffer, len(context)), "xc_domain_hvm_setcontext", domid
    )
