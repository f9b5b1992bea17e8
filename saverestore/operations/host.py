"""This machine, as operations use it: Xen, its domains and toolstacks, locks, a clock. Tests give their own."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import TYPE_CHECKING, Any

from saverestore.guest.common.handles import Handles, open_handles
from saverestore.guest.common.suspend import Suspending, check_can_suspend, check_not_asked
from saverestore.guest.kinds import Kind, this_host
from saverestore.guest.ports import RestoreGuest, SaveGuest, Throttle
from saverestore.toolstack import (
    bare,
    choice,
    disks,
    domains,
    known_bad,
    memory,
    neighbours,
    shared_disks,
    watcher,
)
from saverestore.toolstack.condition import Found, look_up
from saverestore.toolstack.config import GuestConfig
from saverestore.toolstack.device_model import DeviceModel, SuspenderWithDeviceModel
from saverestore.toolstack.domains import Domain
from saverestore.toolstack.lock import locked, restoring
from saverestore.toolstack.ports import FreshDomain, Maker, Toolstack
from saverestore.toolstack.processor_cap import ProcessorCap

if TYPE_CHECKING:
    from saverestore.operations.image_fit import Contents
    from saverestore.stream.reader import LibxcReader
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

    def guests(self) -> list[Domain]:
        """All domains that may be saved. See `domains.is_guest`."""
        return [
            domain for domain in domains.all_domains(self.handles) if domains.is_guest(self.handles, domain)
        ]

    def find(self, text: str) -> Domain:
        """The domain with this number, name or UUID. DomainError when none or several have it."""
        return domains.find(self.handles, text)

    def again(self, domain: Domain) -> Domain:
        """The same domain as it is now. DomainError when it is gone."""
        return domains.again(self.handles, domain)

    def check_can_be_saved(self, domain: Domain) -> None:
        """DomainError unless it can be suspended now."""
        domains.check_can_be_saved(self.handles.store, domain)
        check_can_suspend(self.handles.store, domain.domid, str(domain))
        check_not_asked(self.handles.store, domain.domid, str(domain))

    def check_hypervisor(self, domain: Domain, *, resumes: bool, force: bool) -> None:
        """DomainError where this Xen is known to break that. `resumes`: the domain is to run after the save."""
        known_bad.check_save(self.handles, self.architecture, domain, resumes=resumes, force=force)

    def locked(self, domain: Domain) -> AbstractContextManager[None]:
        """Inside this block no other process saves or recovers it. DomainError when one does."""
        return locked(domain)

    def toolstack_for_saving(self, domain: Domain, wanted: str) -> Toolstack:
        """The caller closes it. See `choice.for_saving`."""
        return choice.for_saving(self.handles, domain, wanted)

    def suspending(
        self, domain: Domain, device_model: DeviceModel | None, timeout_s: float | None
    ) -> Suspending:
        """Who suspends the domain, with its device model, and resumes it."""
        kind = self.architecture.of_domain(self.handles, domain.info)
        guest: Suspending = kind.suspender(self.handles, domain.domid, timeout_s=timeout_s)
        return guest if device_model is None else SuspenderWithDeviceModel(guest, device_model)

    def save_guest(
        self, domain: Domain, config: GuestConfig, device_model: DeviceModel | None, suspending: Suspending
    ) -> SaveGuest:
        """The domain as the engine sees it. The caller closes it."""
        kind = self.architecture.of_domain(self.handles, domain.info)
        return kind.save_guest(
            self.handles, domain.info, suspending, device_model, gic_version=config.gic_version
        )

    def devices_of(self, domain: Domain) -> dict[str, str]:
        """Its devices now, each with its medium. See `domains.devices_with_media`."""
        return domains.devices_with_media(self.handles.store, domain.domid)

    def flush_disks(self, config: GuestConfig) -> None:
        """What a suspended domain has written is on its disks. See `shared_disks.flush`."""
        shared_disks.flush(config)

    def disks_of(self, config: GuestConfig) -> list[dict[str, Any]]:
        """What its disks are now. See `disks`."""
        return disks.noted(config)

    def settle_disks(self, domain: Domain, noted: list[dict[str, Any]]) -> None:
        """They are nobody's now: see `disks.settle`."""
        if noted:
            disks.settle(domain.info.uuid, noted)

    def look_up(self, domain: Domain) -> Found:
        """What it is now."""
        return look_up(self.handles, domain.domid, domain.info.uuid)

    def resume_if_late(self, domain: Domain) -> str:
        """Have it resumed should it suspend in the next minutes: by whom, for people. XenRefused when nobody can."""
        return watcher.start_for_late(domain)

    def throttle(self, domain: Domain) -> Throttle:
        """What takes processor time from the domain. DomainError where its scheduler cannot do that."""
        return ProcessorCap(self.handles, domain)

    # ---- restoring ---------------------------------------------------------------------------------

    def toolstack_for_restoring(self, wanted: str) -> tuple[LibxlToolstack | None, str]:
        """The caller closes it. See `choice.for_restoring`."""
        return choice.for_restoring(self.handles, wanted)

    def restoring(self, domain_uuid: uuid.UUID, name: str | None) -> AbstractContextManager[None]:
        """Inside this block no other restore makes a domain of this UUID or name. DomainError when one does.

        `name`: None, whatever it is called.
        """
        return restoring(domain_uuid, name)

    def disks_kept(self, config: GuestConfig, *, force: bool) -> AbstractContextManager[None]:
        """Inside this block no other restore makes a domain that writes to its disks. See `neighbours.disks_kept`."""
        return neighbours.disks_kept(config, force=force)

    def check_hypervisor_for(self, config: GuestConfig, *, force: bool) -> None:
        """DomainError where this Xen is known to break a restore of such a domain."""
        domain_type = self.architecture.of_config(config.kind).domain_type
        known_bad.check_restore(self.handles, self.architecture, domain_type, config.name, force=force)

    def check_free(self, config: GuestConfig) -> None:
        """DomainError when a domain has this name or UUID already."""
        domains.check_free(self.handles, config.name, config.uuid)

    def domid_of(self, domain_uuid: uuid.UUID) -> int | None:
        """The domain with this UUID, unless it is being destroyed; None when there is none."""
        domids = (
            info.domid for info in self.handles.xen.domains() if info.uuid == domain_uuid and not info.dying
        )
        return next(domids, None)

    def contents_of(self, image: str) -> Contents | None:
        """Read an image's records, if it can be read twice. See `image_fit`."""
        from saverestore.operations import image_fit  # with all that reads images: no save needs it

        return image_fit.contents_of(image)

    def memory_reserved(self, config: GuestConfig, pages: int) -> AbstractContextManager[None]:
        """Inside this block no other restore gets the memory for the domain. DomainError when there is not enough.

        `pages`: what its image holds.
        """
        return memory.reserved(self.handles, config, pages)

    def memory_claimed(
        self, fresh: FreshDomain, config: GuestConfig, pages: int
    ) -> AbstractContextManager[None]:
        """Inside this block nobody else gets it, `xl` included. DomainError when somebody has it already."""
        return memory.claimed(self.handles, fresh.domid, config.name, memory.pages_of(config, pages))

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

    def check_image(self, config: GuestConfig, contents: Contents, *, force: bool) -> None:
        """ImageError or DomainError when the image's domain would not run on this host's processors."""
        from saverestore.operations import image_fit

        image_fit.check(self.handles, self.architecture, config, contents, force=force)

    def check_disks(self, config: GuestConfig, contents: Contents, *, force: bool) -> None:
        """DomainError when its disks have changed since the save. See `disks.check`."""
        used = disks.used_by(config, contents.disks)
        disks.check(used, contents.domain_uuid or config.uuid, force=force)

    def check_neighbours(self, config: GuestConfig, *, force: bool) -> None:
        """DomainError when another domain writes to its disks. See `neighbours.check`."""
        neighbours.check(self.handles, config, force=force)

    def watcher(self, name: str) -> AbstractContextManager[watcher.Watcher]:
        """A process that will look after a restored domain. At the end of the block it ends unless it has one."""
        return closing(watcher.Watcher(name))


@contextmanager
def opened_host(*, process_ends: bool = False) -> Iterator[Host]:
    """This machine, with Xen's interfaces open inside the block. `process_ends`: see `open_handles`."""
    with open_handles(process_ends=process_ends) as handles:
        yield Host(handles)
