"""The hypervisor's control interface: the host, and domains' lives (xenctrl.h)."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from pyxc import _log
from pyxc._arch import X86, require
from pyxc._handle import Handle, check_rc, last_errno
from pyxc._xen import ffi, lib
from pyxc.errors import XenError, XenVersionMismatch


class ShutdownReason(IntEnum):
    """Why a domain stopped by itself (xen/public/sched.h)."""

    POWEROFF = 0
    REBOOT = 1
    SUSPEND = 2
    CRASH = 3
    WATCHDOG = 4
    SOFT_RESET = 5


@dataclass(frozen=True)
class XenVersion:
    """The running hypervisor's version and what it can run."""

    major: int
    minor: int
    extra: str
    capabilities: str

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}{self.extra}"


@dataclass(frozen=True)
class HostInfo:
    """The host's memory, in pages of 4096 bytes, and its highest machine frame."""

    total_pages: int
    free_pages: int
    outstanding_pages: int
    max_mfn: int
    hvm: bool
    pv: bool
    hap: bool
    shadow: bool


@dataclass(frozen=True)
class DomainInfo:
    """A domain as the hypervisor sees it (XEN_DOMCTL_getdomaininfo), the same over all releases."""

    domid: int
    uuid: uuid.UUID
    hvm: bool
    hap: bool
    dying: bool
    shutdown: bool
    shutdown_reason: int
    paused: bool
    running: bool
    blocked: bool
    tot_pages: int
    max_pages: int
    outstanding_pages: int  # claimed for it, and not given to it yet
    shared_info_frame: int
    nr_online_vcpus: int
    max_vcpu_id: int
    ssidref: int
    cpupool: int

    @property
    def suspended(self) -> bool:
        """The guest has stopped itself for a save."""
        return self.shutdown and self.shutdown_reason == ShutdownReason.SUSPEND


@dataclass(frozen=True)
class DomainConfig:
    """What a fresh domain is created with (xen/public/domctl.h, struct xen_domctl_createdomain)."""

    uuid: uuid.UUID
    hvm: bool
    hap: bool
    max_vcpus: int
    ssidref: int = 0
    nested_virt: bool = False
    max_evtchn_port: int = 1023
    max_grant_frames: int = -1  # the hypervisor's default
    max_maptrack_frames: int = -1
    max_grant_version: int = 2
    cpupool: int = 0
    emulation_flags: int = 0
    misc_flags: int = 0
    gic_version: int = 0  # arm64: the host's own
    nr_spis: int = 0  # arm64


def _domain_info(c: ffi.CData) -> DomainInfo:
    return DomainInfo(
        domid=c.domid,
        uuid=uuid.UUID(bytes=bytes(c.handle)),
        hvm=c.hvm,
        hap=c.hap,
        dying=c.dying,
        shutdown=c.shutdown,
        shutdown_reason=c.shutdown_reason,
        paused=c.paused,
        running=c.running,
        blocked=c.blocked,
        tot_pages=c.tot_pages,
        max_pages=c.max_pages,
        outstanding_pages=c.outstanding_pages,
        shared_info_frame=c.shared_info_frame,
        nr_online_vcpus=c.nr_online_vcpus,
        max_vcpu_id=c.max_vcpu_id,
        ssidref=c.ssidref,
        cpupool=c.cpupool,
    )


def built_for() -> str:
    """The Xen release that the binding was compiled for, as "4.17"; "unknown" where the build could not find out."""
    return str(ffi.string(lib.pyxc_built_for()).decode())


class Xen(Handle):
    """A handle on the hypervisor. Methods may be called from several threads at once.

    Raises XenError (ENOENT, EACCES: not a Xen control domain, or not root) and XenVersionMismatch
    (built for another release than the one that runs) when opened.
    """

    def __init__(self) -> None:
        pointer = lib.xc_interface_open(_log.logger(), _log.logger(), 0)
        if pointer == ffi.NULL:
            raise XenError(
                "xc_interface_open",
                last_errno() or errno.ENOENT,
                detail="is this a Xen control domain, and are you root?",
            )
        super().__init__(pointer)
        try:
            self._check_release()
        except BaseException:
            self.close()
            raise

    def _close(self, pointer: ffi.CData) -> None:
        lib.xc_interface_close(pointer)

    def _check_release(self) -> None:
        # Every domctl carries an interface version; a hypervisor of another release answers EACCES to
        # all of them, which would otherwise look like a matter of permissions.
        try:
            self.domain(0)
        except XenError as error:
            if error.errno != errno.EACCES:
                raise
            built = built_for()
            raise XenVersionMismatch(
                "xc_domain_getinfolist",
                errno.EACCES,
                detail=f"pyxc is built for Xen {built}, this host runs Xen {self.version()}: "
                "install the libxen of the running Xen and build pyxc again",
            ) from error

    # ---- host ------------------------------------------------------------------------------------

    def version(self) -> XenVersion:
        """The running hypervisor's version (XENVER_version, XENVER_extraversion)."""
        major, minor = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        extra, caps = ffi.new("char[16]"), ffi.new("char[1024]")
        check_rc(lib.pyxc_version(self.ptr, major, minor, extra, caps), "xc_version")
        return XenVersion(major[0], minor[0], ffi.string(extra).decode(), ffi.string(caps).decode())

    def host(self) -> HostInfo:
        """Memory of the host now (xc_physinfo, xc_maximum_ram_page)."""
        c = ffi.new("struct pyxc_host *")
        check_rc(lib.pyxc_host_info(self.ptr, c), "xc_physinfo")
        return HostInfo(
            total_pages=c.total_pages,
            free_pages=c.free_pages,
            outstanding_pages=c.outstanding_pages,
            max_mfn=c.max_mfn,
            hvm=c.hvm,
            pv=c.pv,
            hap=c.hap,
            shadow=c.shadow,
        )

    # ---- domains ---------------------------------------------------------------------------------

    def domains(self) -> Iterator[DomainInfo]:
        """All domains, dom0 included, in order of domid."""
        batch, first = 64, 0
        while True:
            infos = ffi.new("struct pyxc_dominfo[]", batch)
            number = check_rc(lib.pyxc_domain_list(self.ptr, first, batch, infos), "xc_domain_getinfolist")
            yield from (_domain_info(infos[i]) for i in range(number))
            if number < batch:
                return
            first = infos[number - 1].domid + 1

    def domain(self, domid: int) -> DomainInfo:
        """One domain as it is now; XenError (ESRCH) when there is none."""
        info = ffi.new("struct pyxc_dominfo *")
        number = check_rc(lib.pyxc_domain_list(self.ptr, domid, 1, info), "xc_domain_getinfolist", domid)
        if number != 1 or info.domid != domid:
            raise XenError("xc_domain_getinfolist", errno.ESRCH, domid=domid)
        return _domain_info(info)

    def create(self, config: DomainConfig) -> int:
        """Create an empty, paused domain: its domid. The caller destroys it when anything later fails."""
        c = ffi.new("struct pyxc_create *")
        c.handle = list(config.uuid.bytes)
        for name in (
            "hvm",
            "hap",
            "nested_virt",
            "ssidref",
            "max_vcpus",
            "max_evtchn_port",
            "max_grant_version",
            "cpupool",
            "max_grant_frames",
            "max_maptrack_frames",
            "emulation_flags",
            "misc_flags",
            "gic_version",
            "nr_spis",
        ):
            setattr(c, name, getattr(config, name))
        domid = ffi.new("uint32_t *")
        check_rc(lib.pyxc_domain_create(self.ptr, c, domid), "xc_domain_create")
        return int(domid[0])

    def set_max_vcpus(self, domid: int, max_vcpus: int) -> None:
        """Allocate the domain's vCPUs."""
        check_rc(lib.xc_domain_max_vcpus(self.ptr, domid, max_vcpus), "xc_domain_max_vcpus", domid)

    def set_max_memory(self, domid: int, kib: int) -> None:
        """Bound what the domain may be given, in KiB."""
        check_rc(lib.xc_domain_setmaxmem(self.ptr, domid, kib), "xc_domain_setmaxmem", domid)

    def claim_pages(self, domid: int, nr_pages: int) -> None:
        """Keep free memory for the domain until it has so many pages in all (XENMEM_claim_pages); 0 ends that.

        XenError: ENOMEM when there is not so much free, EINVAL when it has so many already, may not have so many, or
        has a claim.
        """
        check_rc(lib.xc_domain_claim_pages(self.ptr, domid, nr_pages), "xc_domain_claim_pages", domid)

    def set_memmap_limit(self, domid: int, kib: int) -> None:
        """Bound the e820 map that a PV guest sees, in KiB."""
        check_rc(lib.xc_domain_set_memmap_limit(self.ptr, domid, kib), "xc_domain_set_memmap_limit", domid)

    def set_paging_pool_bytes(self, domid: int, size_bytes: int) -> None:
        """Size the domain's paging pool (nested page tables, shadows); a multiple of 4096."""
        check_rc(
            lib.xc_set_paging_mempool_size(self.ptr, domid, size_bytes), "xc_set_paging_mempool_size", domid
        )

    def pause(self, domid: int) -> None:
        """Stop the domain's vCPUs; counted, one `unpause` for each."""
        check_rc(lib.xc_domain_pause(self.ptr, domid), "xc_domain_pause", domid)

    def unpause(self, domid: int) -> None:
        """Undo one `pause`."""
        check_rc(lib.xc_domain_unpause(self.ptr, domid), "xc_domain_unpause", domid)

    def destroy(self, domid: int) -> None:
        """Destroy a domain. Returns when its memory has been given back, which takes a while."""
        check_rc(lib.xc_domain_destroy(self.ptr, domid), "xc_domain_destroy", domid)

    def shutdown(self, domid: int, reason: ShutdownReason) -> None:
        """Mark a domain as shut down, as if it had done so itself."""
        check_rc(lib.xc_domain_shutdown(self.ptr, domid, reason), "xc_domain_shutdown", domid)

    def resume(self, domid: int) -> None:
        """Resume a domain that is shut down for suspend: its SUSPEND hypercall returns 1 ("cancelled").

        This is libxc's "fast" way; the guest must understand it (Linux does). It sets vCPU 0's context, which
        loses extended processor state: see `saverestore.guest.common.suspend.Resumption`.
        """
        check_rc(lib.xc_domain_resume(self.ptr, domid, 1), "xc_domain_resume", domid)

    def log_dirty_off(self, domid: int) -> None:
        """Turn log-dirty off, whoever turned it on (see `pyxc.memory.LogDirty` for turning it on)."""
        require(X86, "xc_shadow_control", domid)
        check_rc(lib.pyxc_logdirty_off(self.ptr, domid), "xc_shadow_control", domid, detail="log-dirty off")

    # ---- event channels of other domains ---------------------------------------------------------

    def alloc_unbound(self, domid: int, remote_domid: int) -> int:
        """An event channel port of `domid` that `remote_domid` may bind to."""
        port = lib.xc_evtchn_alloc_unbound(self.ptr, domid, remote_domid)
        return check_rc(port, "xc_evtchn_alloc_unbound", domid)

    def subscribe_for_suspend(self, domid: int, local_port: int) -> None:
        """Have the hypervisor raise our `local_port` when the domain shuts down."""
        check_rc(
            lib.xc_domain_subscribe_for_suspend(self.ptr, domid, local_port),
            "xc_domain_subscribe_for_suspend",
            domid,
        )
