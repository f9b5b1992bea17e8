"""Changing the bandwidth limit of a migration from outside, while it runs."""

from __future__ import annotations

from collections.abc import Sequence

from saverestore.errors import DomainError, ErrorName
from saverestore.migrate.cancelling import source_at_work
from saverestore.migrate.control_socket import ask
from saverestore.migrate.handover import Role
from saverestore.migrate.journal import Journals
from saverestore.migrate.records import Log

CHANGE = "bwlimit"
"""The request over the control socket: `rate`, in bytes per second or null, for no limit."""


def change_limit(logs: Sequence[Log], domain: str, rate: int | None, *, journals: Journals) -> int | None:
    """Have the migration of which this host is the source hold to another rate, in bytes per second: the one before.

    `logs`: the journals of the domain. None: no limit. DomainError when none is under way, when the domain has been
    granted, so that nothing is left to be sent, when it goes to stock xl, or when the process at work does not
    answer.
    """
    log, pid = source_at_work(logs, domain, journals=journals)
    if log.head.with_xl:
        raise DomainError(
            f"{log.head.name} moves to stock xl at {log.head.peer}: such a migration has no bandwidth limit",
            name=ErrorName.MIGRATION_UNSUPPORTED,
        )
    answer = ask(Role.SOURCE, log.head.migration, {"what": CHANGE, "rate": rate}, pid=pid)
    before = answer.get("before")
    return None if before is None else int(before)
