"""What all x86 domains share: CPU policy and time stamp counter records."""

from __future__ import annotations

import logging

from pyxc import DomainInfo, Xen, XenError, cpu
from saverestore.errors import Advice, ErrorName, ImageError, Remedy
from saverestore.guest.common.handles import Handles
from saverestore.guest.common.limit import MemoryLimit
from saverestore.guest.x86 import cpu_features
from saverestore.stream.records import Record, X86CpuidPolicy, X86MsrPolicy, X86TscInfo

LOG = logging.getLogger(__name__)


def policy_records(xen: Xen, domid: int) -> list[Record]:
    """X86_CPUID_POLICY and X86_MSR_POLICY, each only when there is anything in it."""
    leaves, msrs = cpu.cpu_policy(xen, domid)
    records: list[Record] = []
    if leaves:
        records.append(X86CpuidPolicy(leaves))
    if msrs:
        records.append(X86MsrPolicy(msrs))
    return records


def tsc_record(xen: Xen, domid: int) -> X86TscInfo:
    """X86_TSC_INFO."""
    tsc = cpu.tsc_info(xen, domid)
    return X86TscInfo(mode=tsc.mode, khz=tsc.khz, nsec=tsc.elapsed_ns, incarnation=tsc.incarnation)


def check_cpu_policy(xen: Xen, hvm: bool, leaves: bytes, msrs: bytes, *, check_cpu: bool) -> None:
    """ImageError, naming the features, when a guest was promised what this host cannot give.

    Xen takes such a policy and drops the features, and the guest stops at the first instruction that uses one.
    `check_cpu` False: it is restored all the same, with a warning.
    """
    try:
        host_leaves, host_msrs = cpu.max_cpu_policy(xen, hvm=hvm)
    except XenError as error:
        LOG.info("the CPU that the image needs is not compared with this host's: %s", error)
        return
    lacking = cpu_features.lacking(leaves, host_leaves) + cpu_features.lacking_msr_bits(msrs, host_msrs)
    if not lacking:
        return
    fact = f"the image needs CPU features that this host lacks: it lacks {', '.join(lacking)}"
    if check_cpu:
        raise ImageError(
            fact, name=ErrorName.CPU_FEATURES_MISSING, remedies=[Advice(Remedy.RESTORE_ON_OTHER_CPU)]
        )
    LOG.warning("%s; restored all the same: the guest may crash", fact)


class CommonRestore:
    """The part of a restore that is the same for PV and HVM: CPU policy and time stamp counter."""

    def __init__(self, handles: Handles, info: DomainInfo, *, check_cpu: bool = True) -> None:
        """`check_cpu`: see `check_cpu_policy`."""
        self._check_cpu = check_cpu
        self._xen = handles.xen
        self._memory = handles.memory
        self._domid = info.domid
        self._info = info
        self._limit = MemoryLimit(handles.xen, info)
        self._leaves = b""
        self._msrs = b""

    def take_common(self, record: Record) -> bool:
        """Take a record that any x86 domain may have; whether it was one."""
        if isinstance(record, X86CpuidPolicy):
            self._leaves = record.leaves
        elif isinstance(record, X86MsrPolicy):
            self._msrs = record.entries
        elif isinstance(record, X86TscInfo):
            cpu.set_tsc_info(
                self._xen,
                self._domid,
                cpu.TscInfo(record.mode, record.khz, record.nsec, record.incarnation),
            )
        else:
            return False
        return True

    def static_data_done(self) -> None:
        """Give the domain the CPU policy of the image. Without one it keeps this host's default."""
        if not self._leaves and not self._msrs:
            return
        check_cpu_policy(self._xen, self._info.hvm, self._leaves, self._msrs, check_cpu=self._check_cpu)
        try:
            cpu.set_cpu_policy(self._xen, self._domid, self._leaves, self._msrs)
        except XenError as error:
            raise ImageError(
                f"the image needs CPU features that this host lacks: {error.detail or error}; "
                "restore it on a host with the features of the one it was saved on",
                name=ErrorName.CPU_FEATURES_MISSING,
            ) from error
