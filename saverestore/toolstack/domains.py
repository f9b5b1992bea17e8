"""Domains of this host: finding one by what a person calls it, and what it is made of."""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass

from pyxc import DomainInfo, XenStore
from saverestore.errors import Advice, DomainError, ErrorName, ImageError, Remedy
from saverestore.guest.common.handles import Handles
from saverestore.guest.common.suspend import how_it_stopped
from saverestore.guest.common.transactions import write_below
from saverestore.guest.kinds import this_host
from saverestore.toolstack import arriving, config, stock_helper
from saverestore.toolstack.config import GuestConfig
from saverestore.toolstack.userdata import userdata_path


@dataclass(frozen=True)
class Domain:
    """A domain that was found: number, name, and the hypervisor's view of it at that moment."""

    info: DomainInfo
    name: str

    @property
    def domid(self) -> int:
        """Its number."""
        return self.info.domid

    def __str__(self) -> str:
        number = f"domain {self.domid}"
        return number if self.name == str(self.domid) else f"{self.name} ({number})"  # one without a name


def name_of(store: XenStore, domid: int) -> str:
    """A domain's name; its number, as text, when it has none."""
    return store.read(f"/local/domain/{domid}/name") or str(domid)


def all_domains(handles: Handles) -> list[Domain]:
    """Every domain of the host, dom0 first."""
    return [Domain(info, name_of(handles.store, info.domid)) for info in handles.xen.domains()]


def is_guest(handles: Handles, domain: Domain) -> bool:
    """Whether it is a guest, and there is something to save: not dom0, no stub domain, none that has ended."""
    info = domain.info
    if domain.domid == 0 or info.dying or (info.shutdown and not info.suspended):
        return False
    return handles.store.read(f"/local/domain/{domain.domid}/target") is None


def find(handles: Handles, text: str) -> Domain:
    """The domain with this number, UUID or name: in this order. DomainError when none or several have it.

    One that is being destroyed is only meant where no other is: somebody may hold its pages for long.
    """
    domains = sorted(all_domains(handles), key=lambda domain: domain.info.dying)
    with contextlib.suppress(ValueError):
        wanted = uuid.UUID(text)
        for domain in domains:
            if domain.info.uuid == wanted and domain.domid != 0:
                return domain
    if text.isdecimal():
        for domain in domains:
            if domain.domid == int(text):
                return domain
    named = [domain for domain in domains if domain.name == text]
    named = [domain for domain in named if not domain.info.dying] or named[:1]
    if len(named) > 1:
        numbers = ", ".join(str(domain.domid) for domain in named)
        raise DomainError(
            f"several domains are called {text!r}: {numbers}; give the number",
            name=ErrorName.DOMAIN_AMBIGUOUS,
        )
    if not named:
        raise DomainError(
            f"there is no domain {text!r}",
            name=ErrorName.DOMAIN_NOT_FOUND,
            remedies=[Advice(Remedy.LIST_DOMAINS)],
        )
    return named[0]


def again(handles: Handles, domain: Domain) -> Domain:
    """The same domain as it is now. DomainError when it is gone: another one may have its name by now."""
    for now in all_domains(handles):
        if (now.domid, now.info.uuid) == (domain.domid, domain.info.uuid):
            return now
    raise DomainError(
        f"{domain} is gone", name=ErrorName.DOMAIN_NOT_FOUND, remedies=[Advice(Remedy.LIST_DOMAINS)]
    )


def check_not_saved_by_xl(domain: Domain) -> None:
    """DomainError while stock xl saves or migrates it: that holds no lock of ours."""
    if (process := stock_helper.saved_by(domain.domid)) is not None:
        raise DomainError(
            f"{domain} is being saved or migrated by xl (its helper is process {process}); no changes were made",
            name=ErrorName.DOMAIN_BUSY,
        )


def check_can_be_saved(store: XenStore, domain: Domain) -> None:
    """DomainError unless the domain is one that can be suspended now."""
    info = domain.info
    if domain.domid == 0:
        raise DomainError("domain 0 is the control domain itself: it cannot be saved")
    if info.dying:
        raise DomainError(
            f"{domain} is being destroyed: there is nothing to save", name=ErrorName.DOMAIN_STOPPED
        )
    if info.suspended:
        check_not_saved_by_xl(domain)
        raise DomainError(
            f"{domain} is suspended already, by another tool or an earlier save that died",
            name=ErrorName.DOMAIN_NEEDS_RECOVERY,
            remedies=[Advice(Remedy.RECOVER_IF_ABANDONED, domain.domid)],
        )
    if info.shutdown:
        what = how_it_stopped(info.shutdown_reason)
        raise DomainError(
            f"{domain} {what}: there is nothing to save; no changes were made", name=ErrorName.DOMAIN_STOPPED
        )
    if info.paused:
        if (found := arriving.look(store, domain.domid, info.uuid)) is not None:
            raise DomainError(
                f"{domain} {found.what}; no changes were made",
                name=ErrorName.DOMAIN_BUSY,
                remedies=found.remedies,
            )
        if this_host().needs_recovery(domain.domid, info.uuid):
            raise DomainError(
                f"{domain} was being saved when that save died, and its processors are not as they were",
                name=ErrorName.DOMAIN_NEEDS_RECOVERY,
                remedies=[Advice(Remedy.RECOVER, domain.domid)],
            )
        raise DomainError(
            f"{domain} is paused, so it cannot answer the request to suspend",
            name=ErrorName.DOMAIN_PAUSED,
            remedies=[Advice(Remedy.UNPAUSE, domain.domid)],
        )


def rename(store: XenStore, domain: Domain, name: str) -> None:
    """Give a domain another name: what `xl` and the guest read. What libxl keeps in its file follows by itself.

    Nothing when it is gone.
    """
    if write_below(store, domain.domid, "name", name):
        store.write(f"/vm/{domain.info.uuid}/name", name)


def devices_of(store: XenStore, domid: int) -> list[str]:
    """Devices that the domain has besides its console, as "vbd 51712", "vif 0" …"""
    found = []
    for kind in sorted(store.list(f"/libxl/{domid}/device")):
        for number in sorted(store.list(f"/libxl/{domid}/device/{kind}")):
            if (kind, number) != ("console", "0"):
                found.append(f"{kind} {number}")
    return found


def devices_with_media(store: XenStore, domid: int) -> dict[str, str]:
    """The same, each with what libxl opened for it: a CD may be changed. "" where nothing is noted."""
    found = {}
    for device in devices_of(store, domid):
        kind, number = device.split(" ", 1)
        found[device] = store.read(f"/libxl/{domid}/device/{kind}/{number}/params") or ""
    return found


def config_of(handles: Handles, domain: Domain) -> GuestConfig:
    """The domain's configuration as libxl has it, with what may have changed since brought up to date."""
    store, info, path = handles.store, domain.info, f"/local/domain/{domain.domid}"
    target_kib = _number(store.read(f"{path}/memory/target")) or info.tot_pages * 4
    max_kib = _number(store.read(f"{path}/memory/static-max")) or max(target_kib, info.max_pages * 4)
    userdata = userdata_path(domain.domid, info.uuid)
    try:
        known = config.parse(userdata.read_bytes())
    except FileNotFoundError:
        return config.describe(
            name=domain.name,
            domain_uuid=info.uuid,
            kind=this_host().of_domain(handles, info).libxl_types[0],
            max_vcpus=info.max_vcpu_id + 1,
            target_kib=target_kib,
            max_kib=max_kib,
        )
    except ImageError as error:
        raise DomainError(
            f"{domain}: its configuration, which libxl keeps in {userdata}, is damaged: {error}; no changes "
            "were made "
            "(move that file away to save the domain with a configuration made from what Xen knows)",
            name=ErrorName.CONFIGURATION_DAMAGED,
        ) from error
    online = frozenset(
        i
        for i in range(info.max_vcpu_id + 1)
        if store.read(f"{path}/cpu/{i}/availability") in (None, "online")
    )
    return known.replaced(name=domain.name, target_kib=target_kib, max_kib=max_kib, online_vcpus=online)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def check_free(handles: Handles, name: str, domain_uuid: uuid.UUID) -> None:
    """DomainError when a domain of this name or UUID is there already.

    One that is being destroyed takes neither: it may stay for long where another process holds one of its pages.
    """
    for domain in all_domains(handles):
        if domain.info.dying:
            continue
        # First: another name alone would not help then.
        if domain.info.uuid == domain_uuid and domain.domid != 0:  # dom0's is all zeroes
            raise DomainError(
                f"the domain is there already: {domain} has the same UUID, {domain_uuid}; "
                "no changes were made",
                name=ErrorName.DOMAIN_EXISTS,
                remedies=[Advice(Remedy.DESTROY_OLD, domain.domid), Advice(Remedy.NEW_UUID)],
            )
        if domain.name == name:
            raise DomainError(
                f"there is a domain called {name!r} already (domain {domain.domid}); no changes were made",
                name=ErrorName.DOMAIN_NAME_TAKEN,
                remedies=[Advice(Remedy.RENAME)],
            )
