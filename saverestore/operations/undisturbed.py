"""A running domain that nobody works on: what somebody who wants to shut it down has to know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from saverestore.errors import DomainError, ErrorName
from saverestore.guest.common.suspend import check_not_asked
from saverestore.operations.host import Host
from saverestore.toolstack import moving
from saverestore.toolstack.condition import Condition
from saverestore.toolstack.domains import Domain


@contextmanager
def undisturbed(host: Host, domain: Domain, *, was_aborted: Callable[[Domain, str], bool]) -> Iterator[None]:
    """At the start of this block the domain runs, and inside it no other process of ours saves or moves it.

    DomainError, with the reason, where somebody saves, moves or restores it, or it is paused, stopped or gone. What
    another program does is seen by the domain's state, and by a request that it has not answered. `was_aborted`: see
    `recover_domain`.
    """
    with host.locked(domain):
        migration = moving.noted(host.handles.store, domain.domid)
        if migration is not None and not was_aborted(domain, migration):
            raise DomainError(
                f"{domain} moves to another host, which may run it", name=ErrorName.DOMAIN_NEEDS_RECOVERY
            )
        found = host.look_up(domain)
        if found.condition is not Condition.RUNNING:
            raise DomainError(f"{domain} {found.what}", name=ErrorName.DOMAIN_STOPPED)
        check_not_asked(host.handles.store, domain.domid, str(domain))
        yield
