"""Memory for a domain that is to be restored: looked at, and kept for it until it has it.

    looked at ─► promised, see `promised` ─► created ─► claimed, by Xen ─► filled
                 others of ours keep off                all others do

Before there is a domain, only programs that look here know what it will need. From then on Xen itself can keep free
memory for it (XENMEM_claim_pages): nobody else is given that, `xl create` included.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from uuid import UUID

from pyxc import DomainInfo, XenError
from saverestore.errors import Advice, DomainError, ErrorName, Remedy
from saverestore.guest.common.handles import Handles
from saverestore.guest.kinds import this_host
from saverestore.toolstack.config import GuestConfig
from saverestore.toolstack.promised import Promise, promised

LOG = logging.getLogger(__name__)

HYPERVISOR_OVERHEAD_KIB = 4096
"""What Xen itself needs for a domain besides its memory and paging pool; a generous guess."""

KIB_A_PAGE = 4
KIND = "memory"


def pages_of(config: GuestConfig, pages: int = 0) -> int:
    """How many pages a domain gets at most while it is restored. `pages`: what its image holds, where that is
    known; a guest may have more than its target."""
    return max(config.target_kib // KIB_A_PAGE, pages)


def reserved(handles: Handles, config: GuestConfig, pages: int = 0) -> AbstractContextManager[None]:
    """Inside this block the memory that the domain will take is promised to no other restore of ours.

    DomainError when the host has not so much free, without what is promised already. `pages`: see `pages_of`.
    """
    guest_kib = pages_of(config, pages) * KIB_A_PAGE
    other_kib = this_host().of_config(config.kind).paging_pool_kib(config) + HYPERVISOR_OVERHEAD_KIB

    def check(others: list[Promise]) -> None:
        # The domains first: what one takes in between is then counted twice, and not overlooked.
        domains = {str(info.uuid): info for info in handles.xen.domains() if not info.dying}
        promises = {str(one["name"]): _still_to_come_kib(one, domains.get(one["uuid"])) for one in others}
        host = handles.xen.host()
        free_kib = max(0, host.free_pages - host.outstanding_pages) * KIB_A_PAGE
        needed_kib = guest_kib + other_kib
        if needed_kib + sum(promises.values()) > free_kib:
            raise DomainError(
                f"{config.name} needs {needed_kib >> 10} MiB, this host has {free_kib >> 10} MiB free"
                f"{_for_others(promises)}{_held_by_dead(handles)}; no domain was created",
                name=ErrorName.HOST_LACKS_MEMORY,
                remedies=[Advice(Remedy.FREE_MEMORY)],
            )

    return promised(KIND, _promise(config.name, config.uuid, guest_kib, other_kib), check)


def counted(info: DomainInfo) -> AbstractContextManager[None]:
    """Inside this block others know that somebody fills this domain, with as much as it may have. Nothing is
    checked: it is there already."""
    name = f"domain {info.domid}"
    return promised(KIND, _promise(name, info.uuid, info.max_pages * KIB_A_PAGE, 0), lambda _others: None)


@contextmanager
def claimed(handles: Handles, domid: int, name: str, pages: int) -> Iterator[None]:
    """Inside this block Xen gives nobody else the memory that this domain still lacks of so many pages.

    DomainError when it has not so much left. Where Xen cannot keep it, it is not kept.
    """
    try:
        handles.xen.claim_pages(domid, min(pages, handles.xen.domain(domid).max_pages))
    except XenError as error:
        if error.errno == errno.ENOMEM:
            raise DomainError(
                f"{name} needs {pages >> 8} MiB, which somebody else has taken while it was created",
                name=ErrorName.HOST_LACKS_MEMORY,
                remedies=[Advice(Remedy.FREE_MEMORY)],
            ) from error
        # EINVAL: it has so many already. Others: a Xen that cannot, or is not allowed to.
        LOG.debug("no memory is claimed for domain %d: %s", domid, error)
        yield
        return
    try:
        yield
    finally:
        with suppress(XenError):  # it is gone, and its claim with it
            handles.xen.claim_pages(domid, 0)


def _promise(name: str, domain_uuid: UUID, guest_kib: int, other_kib: int) -> Promise:
    return {"name": name, "uuid": str(domain_uuid), "guest_kib": guest_kib, "other_kib": other_kib}


def _still_to_come_kib(promise: Promise, info: DomainInfo | None) -> int:
    """What of a promise free memory still has to give: not what the domain has, or Xen has claimed for it."""
    guest_kib = int(promise["guest_kib"])
    has_kib = 0 if info is None else (info.tot_pages + info.outstanding_pages) * KIB_A_PAGE
    if not has_kib:  # its page tables come before its memory
        return guest_kib + int(promise["other_kib"])
    return max(0, guest_kib - has_kib)


def _for_others(promises: dict[str, int]) -> str:
    """What is promised, and to whom; for people."""
    waiting = {name: kib for name, kib in promises.items() if kib}
    if not waiting:
        return ""
    return f", {-(-sum(waiting.values()) >> 10)} MiB of it for domains that are being restored ({', '.join(waiting)})"


def _held_by_dead(handles: Handles) -> str:
    """Domains that are being destroyed keep their memory while another process has pages of theirs mapped."""
    dead = [info for info in handles.xen.domains() if info.dying and info.tot_pages]
    if not dead:
        return ""
    numbers = ", ".join(str(info.domid) for info in dead)
    mib = sum(info.tot_pages for info in dead) >> 8
    return f" (and {mib} MiB are still held by domains that are being destroyed: {numbers})"
