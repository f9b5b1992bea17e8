"""This machine, as operations use it: Xen, its domains and toolstacks, locks, a clock. Tests give their own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from saverestore.guest.common.handles import FORCE, Handles, open_handles
from saverestore.guest.common.suspend import Suspender, Suspending
from saverestore.guest.ports import RestoreGuest, SaveGuest, Throttle
from saverestore.guest.x86.hvm import HvmRestore, HvmSave, last_pfn
from saverestore.guest.x86.pv import PvRestore, PvSave, pfn_limit
from saverestore.operations import image_fit
from saverestore.stream.layout import DomainType
from saverestore.stream.reader import LibxcReader
from saverestore.toolstack import bare, choice, domains, watcher
from saverestore.toolstack.config import GuestConfig
from saverestore.toolstack.device_model import DeviceModel, SuspenderWithDeviceModel
from saverestore.toolstack.domains import Domain
from saverestore.toolstack.lock import locked
from saverestore.toolstack.ports import FreshDomain, Maker, Toolstack
from saverestore.toolstack.processor_cap import ProcessorCap

if TYPE_CHECKING:
    from saverestore.toolstack.libxl import LibxlToolstack


class Host:
    """What a save or a restore asks of the machine that it runs on. `clock`: seconds, as time.monotonic()."""

    clock = staticmethod(time.monotonic)

    batch_pfns: int | None = None
    """How many pfns are read at a time; None: as many as is fastest."""

    def __init__(self, handles: Handles) -> None:
        self.handles = handles

    # ---- saving ------------------------------------------------------------------------------------

    def find(self, text: str) -> Domain:
        """The domain with this number, name or UUID. DomainError when none or several have it."""
        return domains.find(self.handles, text)

    def check_can_be_saved(self, domain: Domain) -> None:
        """DomainError unless it can be suspended now."""
        domains.check_can_be_saved(domain)

    def locked(self, domain: Domain) -> AbstractContextManager[None]:
        """Inside this block no other process saves or recovers it. DomainError when one does."""
        return locked(domain)

    def toolstack_for_saving(self, domain: Domain, wanted: str) -> Toolstack:
        """The caller closes it. See `choice.for_saving`."""
        return choice.for_saving(self.handles, domain, wanted)

    def save_guest(
        self,
        domain: Domain,
        config: GuestConfig,
        device_model: DeviceModel | None,
        suspend_timeout_s: float | None,
    ) -> SaveGuest:
        """The domain as the engine sees it. The caller closes it."""
        from saverestore.guest.arm64.host import is_arm64_host

        if is_arm64_host():
            # Here, as loading it would be a tenth of what a save on an x86 host takes to start.
            from saverestore.guest.arm64 import save as arm64_save

            return arm64_save.guest_of(self.handles, domain.info, config.gic_version, suspend_timeout_s)
        suspender: Suspending = Suspender(
            self.handles.xen,
            self.handles.store,
            domain.domid,
            timeout_s=suspend_timeout_s,
            emulated=device_model is not None,
        )
        if not domain.info.hvm:
            return PvSave(self.handles, domain.info, suspender)
        if device_model is not None:
            suspender = SuspenderWithDeviceModel(suspender, device_model)
        return HvmSave(self.handles, domain.info, suspender, device_model)

    def throttle(self, domain: Domain) -> Throttle:
        """What takes processor time from the domain. DomainError where its scheduler cannot do that."""
        return ProcessorCap(self.handles, domain)

    # ---- restoring ---------------------------------------------------------------------------------

    def toolstack_for_restoring(self, wanted: str) -> tuple[LibxlToolstack | None, str]:
        """The caller closes it. See `choice.for_restoring`."""
        return choice.for_restoring(self.handles, wanted)

    def check_free(self, config: GuestConfig) -> None:
        """DomainError when a domain has this name or UUID already."""
        domains.check_free(self.handles, config.name, config.uuid)

    def check_memory(self, config: GuestConfig) -> None:
        """DomainError when there is not enough free memory for it."""
        bare.check_memory(self.handles, config)

    def maker(self, libxl: LibxlToolstack | None) -> Maker | None:
        """Who makes a domain for this process to fill; None where libxl has that done."""
        from saverestore.guest.arm64.host import is_arm64_host

        if libxl is None:
            return bare.BareMaker(self.handles)
        if not is_arm64_host():
            return None
        from saverestore.toolstack.libxl_maker import LibxlMaker

        return LibxlMaker(self.handles, libxl)

    def restore_guest(
        self, fresh: FreshDomain, config: GuestConfig, reader: LibxcReader, *, force: bool
    ) -> RestoreGuest:
        """A fresh domain as the engine sees it; `reader` is bounded by what it may have. The caller closes it.

        `force`: a processor of another kind will do.
        """
        unless = None if force else FORCE
        handles, info = self.handles, self.handles.xen.domain(fresh.domid)
        nr_pages = config.max_kib // 4
        if reader.domain.type == DomainType.ARM64:
            from saverestore.guest.arm64.host import gic_version
            from saverestore.guest.arm64.layout import last_gfn
            from saverestore.guest.arm64.restore import Arm64Restore

            reader.max_pfn = last_gfn(nr_pages)
            gic = gic_version(config.gic_version)
            return Arm64Restore(handles, info, gic, unless=unless, is_built=fresh.is_built)
        if reader.domain.type == DomainType.X86_PV:
            return PvRestore(handles, info, pfn_limit=pfn_limit(nr_pages), unless=unless)
        reader.max_pfn = last_pfn(nr_pages)
        return HvmRestore(handles, info, unless=unless)

    def check_image(self, image: str, *, force: bool) -> None:
        """By a second look into the file, where that can be had: would its domain run here? See `image_fit`."""
        image_fit.check(self.handles, image, force=force)

    def watch(self, domid: int, name: str) -> None:
        """Leave a process behind that looks after a restored domain. XenRefused when it could not be started."""
        watcher.start(domid, name)


@contextmanager
def opened_host(*, process_ends: bool = False) -> Iterator[Host]:
    """This machine, with Xen's interfaces open inside the block. `process_ends`: see `open_handles`."""
    with open_handles(process_ends=process_ends) as handles:
        yield Host(handles)
