"""The other host as both sides and recovery see it: greeting it, asking it, and what it says as errors for people."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from saverestore.errors import (
    Advice,
    DomainError,
    ErrorName,
    ExitCode,
    Remedy,
    SaveRestoreError,
    UsageError,
    fact_of,
)
from saverestore.migrate import addresses
from saverestore.migrate.channel import Channel, SaidOtherwise
from saverestore.migrate.journal import Journals, boot_id
from saverestore.migrate.messages import (
    Abort,
    Aborted,
    Busy,
    Grant,
    Hello,
    Lost,
    Refused,
    Running,
    for_people,
)
from saverestore.migrate.records import Head
from saverestore.migrate.side import Side
from saverestore.migrate.ssh_child import Begun
from saverestore.transport.connection import within
from saverestore.transport.sockets import Address
from saverestore.transport.tls import Credentials


class MigrationRefused(DomainError):
    """The destination found something that stands in the way. `findings`: all of it; no changes were made."""

    def __init__(self, peer: str, findings: Sequence[SaveRestoreError]) -> None:
        self.findings = tuple(findings)
        first = findings[0]
        super().__init__(f"{peer} refuses: {'; '.join(str(one) for one in findings)}", name=first.name)
        self.exit_code = first.exit_code


class MigrationAborted(SaveRestoreError):
    """The destination gave up; the domain is running at the source."""

    exit_code = ExitCode.IO
    name = ErrorName.MIGRATION_ABORTED


class InDoubt(SaveRestoreError):
    """The domain was granted to the destination, which has not answered, or has lost it: it is suspended here."""

    exit_code = ExitCode.IN_DOUBT
    name = ErrorName.MIGRATION_IN_DOUBT


class NotStarted(SaveRestoreError):
    """The domain is at the destination, complete and paused, and could not be started there; it is not here."""

    exit_code = ExitCode.IN_DOUBT
    name = ErrorName.MIGRATION_NOT_STARTED


Connect = Callable[[Address, Sequence[str]], AbstractContextManager[Channel]]


@contextmanager
def open_channel(address: Address, ssh: Sequence[str], begun: Begun | None = None) -> Iterator[Channel]:
    """A channel to the receiver at this address. `begun`: see `addresses.connected`."""
    with addresses.connected(address, ssh=ssh, begun=begun) as connection, Channel(connection) as channel:
        yield channel


def connecting(tls: Credentials) -> Connect:
    """What opens channels as `open_channel` does, with these files where the address is one for TLS."""
    return lambda address, ssh: open_channel(replace(address, tls=tls), ssh)


def connecting_by(begun: Begun) -> Connect:
    """What opens channels as `open_channel` does, the first of them by what was begun."""
    return lambda address, ssh: open_channel(address, ssh, begun)


def greeted(channel: Channel, journals: Journals) -> Hello:
    """Exchange HELLO: the peer's. UsageError when it is this host."""
    identity, boot = journals.identity(), boot_id()
    hello = channel.greet(identity, boot, socket.gethostname())
    if (hello.journals, hello.boot) == (identity, boot):
        raise UsageError(f"{channel.peer} is this host; no changes were made", name=ErrorName.SAME_HOST)
    return hello


def heard_of_grant(channel: Channel, *, within_s: float | None = None) -> Running | Aborted:
    """The answer to a grant. SaidOtherwise for LOST, BUSY.

    `within_s`: PeerTimeout when there is none by then, also from a peer that is alive: its disk may hang, or its Xen.
    None: it may take as long as it likes.
    """
    connection = channel.connection
    with within(connection, None if within_s is None else max(within_s, connection.timeout_s)):
        answer = channel.hear(Running, Aborted)
    assert isinstance(answer, Running | Aborted)
    return answer


def ask_again(
    channel: Channel, journals: Journals, side: Side, *, within_s: float | None = None
) -> Running | Aborted:
    """On a connection of its own: grant once more, or give up what could not be written down. Either has an answer.

    InDoubt when it is not the host that was granted to. `within_s`: see `heard_of_grant`.
    """
    hello = greeted(channel, journals)
    assert side.journal is not None
    if hello.journals != side.journal.log.head.peer_journals:
        raise InDoubt(f"{channel.peer} is another host now, or has lost its journals of migrations")
    if side.is_grant_unwritten:
        # After a crash the disk may not have it, and the source then runs the domain.
        channel.say(Abort(side.migration, "the grant could not be written down"))
    else:
        channel.say(Grant(side.migration))
    return heard_of_grant(channel, within_s=within_s)


def in_doubt(head: Head, failure: BaseException) -> InDoubt:
    """The error for people."""
    said = getattr(failure, "message", None)
    why = f"there is no answer from {head.peer}: {fact_of(failure)}"
    if isinstance(said, Lost):
        why = f"{head.peer} has lost it: {for_people(said.reason)}"
    elif isinstance(said, Busy):
        why = f"another process there works on it, state {for_people(said.state, 20)}"
    return InDoubt(
        f"{head.name} was granted to {head.peer}, and it is not known whether it runs there; {why}; the domain is "
        "still here, suspended, and must not be resumed before that is known",
        remedies=[Advice(Remedy.RECOVER_MIGRATION, head.name), Advice(Remedy.FORCE_MIGRATION, head.name)],
    )


def aborted_error(peer: str, message: Aborted) -> MigrationAborted:
    """The destination's failure, for people, with its own name and exit code."""
    known = {str(name): name for name in ErrorName}
    error = MigrationAborted(
        f"{peer} aborted the migration: {for_people(message.reason) or 'no reason was sent'}",
        name=known.get(message.name, ErrorName.MIGRATION_ABORTED),
    )
    with contextlib.suppress(ValueError):
        error.exit_code = ExitCode(message.exit_code)
    return error


def otherwise_error(peer: str, error: SaidOtherwise) -> SaveRestoreError:
    """What a destination said instead of what was hoped for, as an error of its kind."""
    message = error.message
    if isinstance(message, Refused):
        return MigrationRefused(peer, findings_of(message))
    return aborted_error(peer, message) if isinstance(message, Aborted) else error


def findings_of(message: Refused) -> list[SaveRestoreError]:
    """Errors as they were found there."""
    known = {str(name): name for name in ErrorName}
    found = []
    for name, code, text in zip(message.names, message.exit_codes, message.texts, strict=True):
        one = SaveRestoreError(for_people(text), name=known.get(name, ErrorName.UNEXPECTED))
        one.exit_code = ExitCode(code) if code in set(ExitCode) else ExitCode.IO
        found.append(one)
    return found
