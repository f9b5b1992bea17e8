"""Cancelling a migration from outside: the process at work on it gets a signal, and decides whether it still can."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

from saverestore.errors import Advice, DomainError, ErrorName, Remedy
from saverestore.migrate.handover import BEFORE_GRANT, Role, State
from saverestore.migrate.journal import Journals
from saverestore.migrate.records import Log

LOOK_EVERY_S = 0.1


def cancel(logs: Sequence[Log], domain: str, *, journals: Journals, wait_s: float) -> None:
    """Have the migration of which this host is the source given up. When it returns, the domain is running here.

    `logs`: the journals of the domain. DomainError when none is under way, when it is too late, or when the process
    that works on it has not ended within `wait_s`.
    """
    log, pid = source_at_work(logs, domain, journals=journals)
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        process = None  # it has just ended
    if process is not None:
        try:
            # It may have ended since, and its number be another process's.
            if journals.holder(Role.SOURCE, log.head.migration) == pid:
                signal.pidfd_send_signal(process, signal.SIGTERM)
        except ProcessLookupError:
            pass
        finally:
            os.close(process)
    _wait(journals, log, pid, wait_s)


def source_at_work(logs: Sequence[Log], domain: str, *, journals: Journals) -> tuple[Log, int]:
    """The migration of the domain to another host that is under way, and the process that works on it.

    `logs`: the journals of the domain. DomainError when there is none, or when the domain has been granted.
    """
    states = (*BEFORE_GRANT, State.GRANTED)
    found = [log for log in reversed(logs) if log.head.role is Role.SOURCE and log.state in states]
    for log in found:  # not the latest: a clock may have been set back since one began that nobody works on
        pid = journals.holder(Role.SOURCE, log.head.migration)
        if pid is not None and log.state is State.GRANTED:
            raise _too_late(log)
        if pid is not None:
            return log, pid
    for log in found:
        _check_over(journals, log)
    raise DomainError(
        f"no migration of {domain} to another host is under way", name=ErrorName.MIGRATION_NOT_FOUND
    )


def _wait(journals: Journals, log: Log, pid: int, wait_s: float) -> None:
    end = time.monotonic() + wait_s
    while journals.holder(Role.SOURCE, log.head.migration) == pid:
        if time.monotonic() > end:
            raise DomainError(
                f"process {pid}, which works on the migration of {log.head.name}, was asked to end, and has "
                f"not done so within {wait_s:.0f} s",
                name=ErrorName.MIGRATION_BUSY,
            )
        time.sleep(LOOK_EVERY_S)
    _check_over(journals, log)


def _check_over(journals: Journals, log: Log) -> None:
    """No process works on it any more: DomainError unless it is over, and has left the domain here."""
    for one in journals.all():
        if isinstance(one, Log) and one.head == log.head:
            if one.state in (State.GRANTED, State.DONE):
                raise _too_late(one)
            if one.state is not State.ABORTED:
                raise _unsettled(one)
            return
    raise DomainError(
        f"no process works on the migration of {log.head.name} any more, and it is not known how it ended: its "
        "journal is gone, or cannot be read",
        name=ErrorName.DOMAIN_NEEDS_RECOVERY,
    )


def _unsettled(log: Log) -> DomainError:
    return DomainError(
        f"no process works on the migration of {log.head.name} any more, which is not settled (state {log.state})",
        name=ErrorName.DOMAIN_NEEDS_RECOVERY,
        remedies=[Advice(Remedy.RECOVER_MIGRATION, log.head.name)],
    )


def _too_late(log: Log) -> DomainError:
    return DomainError(
        f"{log.head.name} has been granted to {log.head.peer}: it is too late to cancel or change it "
        f"(state {log.state})",
        name=ErrorName.MIGRATION_TOO_LATE,
    )
