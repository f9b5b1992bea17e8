"""This machine, as operations use it: Xen, its domains and toolstacks, locks, a clock. Tests give their own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from saverestore.guest.common.handles import Handles, open_handles
from saverestore.guest.common.suspend import Suspending
from saverestore.guest.kinds import Kind, this_host
from saverestore.guest.ports import RestoreGuest, SaveGuest, Throttle
from saverestore.operations import image_fit
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
        self.architecture = this_host()

    def xen_version(self) -> str:
        """The running hypervisor's version, as "4.17.3"."""
        return str(self.handles.xen.version())

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
        kind = self.architecture.of_domain(self.handles, domain.info)
        suspending: Suspending = kind.suspender(self.handles, domain.domid, timeout_s=suspend_timeout_s)
        if device_model is not None:
            suspending = SuspenderWithDeviceModel(suspending, device_model)
        return kind.save_guest(
            self.handles, domain.info, suspending, device_model, gic_version=config.gic_version
        )

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
        if libxl is None:
            return bare.BareMaker(self.handles)
        if self.architecture.libxl_restores:
            return None
        from saverestore.toolstack.libxl_maker import LibxlMaker

        return LibxlMaker(self.handles, libxl)

    def restore_guest(
        self, kind: Kind, fresh: FreshDomain, config: GuestConfig, reader: LibxcReader, *, force: bool
    ) -> RestoreGuest:
        """A fresh domain as the engine sees it; `reader` is bounded by what it may have. The caller closes it.

        `force`: a processor of another kind will do.
        """
        max_pages = config.max_kib // 4
        reader.max_pfn = kind.last_pfn(max_pages)
        return kind.restore_guest(
            self.handles,
            self.handles.xen.domain(fresh.domid),
            max_pages=max_pages,
            gic_version=config.gic_version,
            check_cpu=not force,
            is_built=fresh.is_built,
        )

    def check_image(self, image: str, *, force: bool) -> None:
        """By a second look into the file, where that can be had: would its domain run here? See `image_fit`."""
        image_fit.check(self.handles, self.architecture, image, force=force)

    def watch(self, domid: int, name: str) -> None:
        """Leave a process behind that looks after a restored domain. XenRefused when it could not be started."""
        watcher.start(domid, name)


@contextmanager
def opened_host(*, process_ends: bool = False) -> Iterator[Host]:
    """This machine, with Xen's interfaces open inside the block. `process_ends`: see `open_handles`."""
    with open_handles(process_ends=process_ends) as handles:
        yield Host(handles)
