"""Whether an earlier migration of a domain may still decide about it: then it is not moved anew, nor recovered."""

from __future__ import annotations

from saverestore.errors import Advice, DomainError, ErrorName, Remedy
from saverestore.migrate.handover import Role, State
from saverestore.migrate.journal import Journals, boot_id, is_over
from saverestore.migrate.records import Head, JournalError, JournalUnread
from saverestore.operations.host import Host
from saverestore.toolstack import moving
from saverestore.toolstack.domains import Domain


def check_settled(journals: Journals, host: Host, domain: Domain) -> None:
    """DomainError when a migration of this very domain is not over on this host. The domain is locked.

    Else an old migration, which still owns the domain by its journal, resumes what the new one has granted. It is not
    settled in passing: the other host may hold a copy, and `recover` has both sides hear of it.

    A damaged journal is in nobody's way: it can neither be recovered nor asked about. JournalUnread when one is not
    to be had: that may be of this domain.
    """
    boot = boot_id()
    for log in journals.all():
        if isinstance(log, JournalUnread):
            raise log
        if isinstance(log, JournalError) or is_over(log) or log.head.boot != boot:
            continue
        if _is_of(log.head, host, domain):
            raise DomainError(
                f"an earlier migration of {domain}, with {log.head.peer}, is not settled: it is {log.state}; no "
                "changes were made",
                name=ErrorName.DOMAIN_NEEDS_RECOVERY,
                remedies=[Advice(Remedy.RECOVER_MIGRATION, log.head.name)],
            )


def was_aborted(journals: Journals, domain: Domain, migration: str) -> bool:
    """Whether this migration of this very domain is over, and has left it here: by its journal, which is final.

    What cannot be read says nothing, and the migration may have granted the domain to another host.
    """
    return any(
        not isinstance(log, JournalError)
        and (log.head.role, str(log.head.migration)) == (Role.SOURCE, migration)
        and (log.head.uuid, log.head.domid, log.head.boot) == (domain.info.uuid, domain.domid, boot_id())
        and log.state is State.ABORTED
        for log in journals.all()
    )


def _is_of(head: Head, host: Host, domain: Domain) -> bool:
    """Whether the domain is what it moves, or has brought: not another one that has the UUID now."""
    if head.uuid != domain.info.uuid:
        return False
    if head.role is Role.SOURCE:
        return head.domid == domain.domid
    return moving.brought_by(host.handles.store, domain.domid) == str(head.migration)
