"""Schedulers: whose a CPU pool is, and how much of its processors a domain may use (xenctrl.h)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from pyxc._handle import check_rc
from pyxc._xen import ffi, lib
from pyxc.control import Xen


class Scheduler(IntEnum):
    """What shares out the processors of a pool (xen/public/domctl.h)."""

    CREDIT = lib.XEN_SCHEDULER_CREDIT
    CREDIT2 = lib.XEN_SCHEDULER_CREDIT2
    ARINC653 = lib.XEN_SCHEDULER_ARINC653
    RTDS = lib.XEN_SCHEDULER_RTDS
    NULL = lib.XEN_SCHEDULER_NULL


@dataclass(frozen=True)
class CpuPool:
    """A pool: its scheduler, as the plain number where that is none we know, and how many physical CPUs it has."""

    scheduler: Scheduler | int
    nr_cpus: int


@dataclass(frozen=True)
class Share:
    """A domain's part of the processors. `cap`: percent of one physical CPU at most, over all vCPUs; 0: no cap."""

    weight: int
    cap: int


def cpu_pool(xen: Xen, pool: int) -> CpuPool:
    """One pool; XenError (ENOENT) when there is none of this number."""
    info = ffi.new("struct pyxc_cpupool *")
    check_rc(lib.pyxc_cpupool_info(xen.ptr, pool, info), "xc_cpupool_getinfo", detail=f"CPU pool {pool}")
    known = info.sched_id in Scheduler.__members__.values()
    return CpuPool(Scheduler(info.sched_id) if known else info.sched_id, info.nr_cpus)


def credit2_share(xen: Xen, domid: int) -> Share:
    """A domain's share; XenError (EINVAL) when its pool's scheduler is not credit2."""
    share = ffi.new("struct pyxc_share *")
    check_rc(lib.pyxc_credit2_get(xen.ptr, domid, share), "xc_sched_credit2_domain_get", domid)
    return Share(share.weight, share.cap)


def set_credit2_share(xen: Xen, domid: int, share: Share) -> None:
    """Set weight and cap, which takes effect at once."""
    check_rc(
        lib.pyxc_credit2_set(xen.ptr, domid, _as_c(share)),
        "xc_sched_credit2_domain_set",
        domid,
        detail=f"weight {share.weight}, cap {share.cap}",
    )


def credit_share(xen: Xen, domid: int) -> Share:
    """A domain's share; XenError (EINVAL) when its pool's scheduler is not credit."""
    share = ffi.new("struct pyxc_share *")
    check_rc(lib.pyxc_credit_get(xen.ptr, domid, share), "xc_sched_credit_domain_get", domid)
    return Share(share.weight, share.cap)


def set_credit_share(xen: Xen, domid: int, share: Share) -> None:
    """Set weight and cap, which takes effect at once."""
    check_rc(
        lib.pyxc_credit_set(xen.ptr, domid, _as_c(share)),
        "xc_sched_credit_domain_set",
        domid,
        detail=f"weight {share.weight}, cap {share.cap}",
    )


def _as_c(share: Share) -> ffi.CData:
    c = ffi.new("struct pyxc_share *")
    c.weight, c.cap = share.weight, share.cap
    return c
