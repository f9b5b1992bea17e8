"""A host's copy of a domain that moves: finding it again, also after a crash, and what is done with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

from saverestore.errors import Advice, DomainError, ErrorName, Remedy
from saverestore.migrate.handover import Role
from saverestore.migrate.journal import boot_id
from saverestore.migrate.records import Head
from saverestore.migrate.side import Copy
from saverestore.operations.host import Host
from saverestore.operations.recover import recover_locked
from saverestore.toolstack import choice, domains, moving
from saverestore.toolstack.announce import announce
from saverestore.toolstack.domains import Domain

LOG = logging.getLogger(__name__)


def incoming_name(name: str) -> str:
    """What a domain is called at the destination until it is committed."""
    return f"{name}{moving.INCOMING}"


class HostCopy:
    """See Copy: by Xen and the toolstack that has made the domain.

    What another migration moves meanwhile is left as it is, by every deed: that one alone says what becomes of it.
    """

    def __init__(self, host: Host, head: Head) -> None:
        self._host = host
        self._head = head

    def is_here(self) -> bool:
        """See Copy."""
        return self._find() is not None

    def resume(self) -> None:
        """See Copy. As after a save that was killed: processor cap, log-dirty and device model, too."""
        domain = self._find()
        if domain is None:
            return
        with self._host.locked(domain):
            if self._is_moved_by_another(domain):
                return
            self._put_right(domain)
            # Still locked: the next note may be another migration's.
            moving.forget(self._host.handles.store, domain.domid)

    def _put_right(self, domain: Domain) -> None:
        recover_locked(self._host.handles, domain, self._host.architecture)

    def destroy(self) -> None:
        """See Copy. At the destination DomainError while another process restores a domain of this UUID."""
        with ExitStack() as stack:
            if self._head.role is Role.DESTINATION:
                stack.enter_context(self._host.restoring(self._head.uuid, None))
            domain = self._find()
            if domain is None or not self._is_own(domain):
                return
            stack.enter_context(self._host.locked(domain))
            if self._is_moved_by_another(domain):
                return
            self._host.handles.memory.unmap_lingering()  # or some of it would outlive its end
            toolstack = stack.enter_context(closing(self._host.toolstack_for_saving(domain, choice.AUTO)))
            toolstack.destroy(domain)

    def start(self) -> None:
        """See Copy. The name first: a domain that runs is never without it. Then the network hears where it is."""
        domain = self._find()
        if domain is None or self._is_moved_by_another(domain):
            return
        domains.rename(self._host.handles.store, domain, self._head.name)
        if not self._head.paused and domain.info.paused:
            self._host.handles.xen.unpause(domain.domid)
        announce(domain)

    def _is_moved_by_another(self, domain: Domain) -> bool:
        """Whether its note names another migration than this one, which may have granted it to another host."""
        by = moving.noted(self._host.handles.store, domain.domid)
        if by in (None, str(self._head.migration)):
            return False
        LOG.warning("%s is left as it is: migration %s moves it", domain, by)
        return True

    def _is_own(self, domain: Domain) -> bool:
        """Whether it surely is this migration's, and may be destroyed.

        One that is incomplete has no note yet, and not its own name either.
        """
        return (
            self._head.role is Role.SOURCE
            or domain.name != self._head.name
            or moving.brought_by(self._host.handles.store, domain.domid) is not None
        )

    def _find(self) -> Domain | None:
        """The domain by what does not change while the host runs. A copy does not outlive the host's boot."""
        head = self._head
        if head.boot != boot_id():
            return None
        for domain in domains.all_domains(self._host.handles):
            if domain.domid == 0 or domain.info.uuid != head.uuid or domain.info.dying:
                continue
            if head.role is Role.SOURCE and domain.domid == head.domid:
                return domain
            # One that died half made has no name yet, and is called by its number.
            names = (head.name, incoming_name(head.name), str(domain.domid))
            if head.role is Role.DESTINATION and domain.name in names and not self._is_anothers(domain):
                return domain
        return None

    def _is_anothers(self, domain: Domain) -> bool:
        """Whether another migration has brought it here. One that has rebooted since has no note."""
        brought_by = moving.brought_by(self._host.handles.store, domain.domid)
        return brought_by not in (None, str(self._head.migration))


@contextmanager
def name_kept(host: Host, head: Head) -> Iterator[None]:
    """Inside this block no other process of ours gives a domain this name. DomainError when one has it or gets it."""
    with host.restoring(head.uuid, head.name):
        check_name_free(host, head.name)
        yield


def check_name_free(host: Host, name: str) -> None:
    """DomainError when a domain of this name is there; one that is being destroyed has none any more."""
    for domain in domains.all_domains(host.handles):
        if domain.name == name and not domain.info.dying:
            raise DomainError(
                f"there is a domain called {name!r} already (domain {domain.domid})",
                name=ErrorName.DOMAIN_NAME_TAKEN,
                remedies=[Advice(Remedy.LIST_DOMAINS)],
            )


CopyOf = Callable[[Host, Head], Copy]
