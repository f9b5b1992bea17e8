"""After a crash: what a host does by itself, what it asks the other, and what it answers to who asks.

None of it starts or resumes a domain that the other host may run: see `handover`.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass

from saverestore.errors import (
    Advice,
    DomainError,
    ErrorName,
    Interrupted,
    Remedy,
    SaveRestoreError,
    UsageError,
    fact_of,
)
from saverestore.guest.common.handles import XenError
from saverestore.migrate import addresses, xl_recovery
from saverestore.migrate.channel import Channel, SaidOtherwise
from saverestore.migrate.copies import CopyOf, HostCopy, incoming_name, name_kept
from saverestore.migrate.handover import Event, Role, State
from saverestore.migrate.journal import Journal, JournalBusy, Journals, boot_id, now
from saverestore.migrate.messages import Abort, Aborted, Ask, Busy, Grant, Lost, Unknown, for_people
from saverestore.migrate.peers import Connect, InDoubt, ask_again, greeted, in_doubt, open_channel
from saverestore.migrate.records import Head, JournalError, Log
from saverestore.migrate.side import NoCopy, Notes, Side
from saverestore.operations.host import Host

LOG = logging.getLogger(__name__)

IN_DOUBT = (State.GRANTED, State.READY)
"""What is true then only the other host knows, or a person."""


@dataclass(frozen=True)
class Settled:
    """A migration that was looked at. `text`: how it stands, for people. `error`: why it could not be settled."""

    log: Log
    text: str
    error: SaveRestoreError | None = None


@dataclass(frozen=True)
class RecoverRequest:
    """What `recover` was asked for. `peer`: how the other host is reached, if not as the journal says.

    `force`: a person says who has the domain: Event.FORCE_RUN, this host; Event.FORCE_DESTROY, the other.
    """

    peer: str | None = None
    force: Event | None = None
    ssh: Sequence[str] = ("ssh",)


def found(journals: Journals, domain: str | None) -> tuple[list[Log], list[JournalError]]:
    """The migrations of a domain, by its name, UUID or the migration's id; None: all. The oldest first.

    And the journals that cannot be read: nobody knows of which domain these are. DomainError when a domain has none.
    """
    logs, errors = [], []
    number = None
    with suppress(ValueError):
        number = uuid.UUID(domain or "")
    for one in journals.all():
        if isinstance(one, JournalError):
            errors.append(one)
        elif domain in (None, one.head.name) or number in (one.head.uuid, one.head.migration):
            logs.append(one)
    if domain is not None and not logs and not errors:
        raise DomainError(
            f"no migration of {domain} is recorded on this host", name=ErrorName.MIGRATION_NOT_FOUND
        )
    return logs, errors


def to_force(logs: Sequence[Log], domain: str) -> list[Log]:
    """Of the migrations of a domain that are not over, the one that a person may decide; or what `recover` refuses.

    UsageError where there are several: the other copies may be of other domains that have that name.
    """
    asked = [log for log in logs if log.state in IN_DOUBT]
    if len(asked) > 1:
        shown = ", ".join(f"{one.head.migration} (UUID {one.head.uuid}, {one.state})" for one in asked)
        raise UsageError(
            f"{len(asked)} migrations of {domain} are not settled: {shown}; name one of these in place of the "
            "domain; no changes were made"
        )
    return asked or list(logs)


def recover(
    log: Log,
    request: RecoverRequest,
    host: Host,
    *,
    journals: Journals | None = None,
    copy_of: CopyOf = HostCopy,
    connect: Connect = open_channel,
) -> Settled:
    """Settle one migration as far as it can be. What stands in the way is in the result; Interrupted is raised."""
    journals = journals or Journals()
    head = log.head
    try:
        journal = journals.open(head.role, head.migration)
    except SaveRestoreError as error:
        return Settled(log, str(error), error)
    if journal is None:
        return Settled(log, "its journal is gone", JournalError(f"the journal of {head.name} is gone"))
    with journal:
        side = Side(head.role, head.migration, copy_of(host, journal.log.head), journal=journal)
        try:
            if request.force is not None:
                _force(side, head, request.force, host)
            else:
                _settle(side, journal, request, journals, connect, host)
            return Settled(journal.log, _told(side, head))
        except Interrupted:
            raise
        except SaveRestoreError as error:
            return Settled(journal.log, _told(side, head), error)
        except XenError as error:
            return Settled(
                journal.log, _told(side, head), SaveRestoreError(fact_of(error), name=ErrorName.XEN_REFUSED)
            )


def _force(side: Side, head: Head, force: Event, host: Host) -> None:
    """A person says who has the domain. UsageError where that is no question: this host knows."""
    if side.state not in IN_DOUBT:
        raise UsageError(
            f"the migration of {head.name} is {side.state} here: this host decides about it alone, and nobody has to "
            "say who has the domain; no changes were made",
            remedies=[Advice(Remedy.RECOVER_MIGRATION, head.name)],
        )
    starts = head.role is Role.DESTINATION and force is Event.FORCE_RUN
    with name_kept(host, head) if starts else nullcontext():
        side.happen(force, reason="a person said so")


def _settle(
    side: Side, journal: Journal, request: RecoverRequest, journals: Journals, connect: Connect, host: Host
) -> None:
    head = journal.log.head
    if head.with_xl:
        xl_recovery.settle(side, head)
        return
    address = request.peer or head.peer
    if side.state is State.GRANTED:
        try:
            with connect(addresses.parse(address), request.ssh) as channel:
                answered = ask_again(channel, journals, side)
        except Interrupted:
            raise
        except SaveRestoreError as error:
            raise _unanswered(side, head, error) from error
        if isinstance(answered, Aborted):
            side.happen(Event.HEARD_ABORTED, reason=for_people(answered.reason))
        else:
            side.happen(Event.HEARD_RUNNING)
        return
    if side.state is State.READY and side.copy.is_here():
        _ask_source(side, head, address, request, journals, connect, host)
        return
    was_ours = side.role is Role.SOURCE
    side.happen(Event.RECOVER, reason="recovered")
    if was_ours and side.state is State.ABORTED:
        # Only so that its copy goes at once: it never runs it without a grant, and there is none.
        try:
            with connect(addresses.parse(address), request.ssh) as channel:
                greeted(channel, journals)
                channel.say(Abort(head.migration, "recovered at the source"))
                channel.hear(Aborted)
        except Interrupted:
            raise
        except SaveRestoreError as error:
            LOG.info("%s has not heard that %s was aborted: %s", address, head.name, fact_of(error))


def _ask_source(
    side: Side,
    head: Head,
    address: str,
    request: RecoverRequest,
    journals: Journals,
    connect: Connect,
    host: Host,
) -> None:
    """The destination is READY: the source says what holds."""
    try:
        with connect(addresses.parse(address), request.ssh) as channel:
            hello = greeted(channel, journals)
            if hello.journals != head.peer_journals:
                raise InDoubt(f"{address} is another host now, or has lost its journals of migrations")
            channel.say(Ask(head.migration))
            said = channel.hear(Grant, Aborted, Lost, Unknown)
            side.say = channel.say
            if isinstance(said, Grant):
                granted(host, side, head)
            elif isinstance(said, Aborted):
                side.happen(Event.HEARD_ABORTED, reason=for_people(said.reason))
            elif isinstance(said, Lost):
                raise InDoubt(f"{address} has lost its own copy of the domain")
            else:
                raise InDoubt(f"{address} has no journal of this migration")
    except Interrupted:
        raise
    except (SaidOtherwise, InDoubt) as error:
        raise _kept(head, address, error) from error
    except SaveRestoreError as error:
        if side.state is not State.READY:
            raise
        raise _kept(head, address, error) from error


def _unanswered(side: Side, head: Head, error: SaveRestoreError) -> InDoubt:
    """The source has granted it, and the other side does not answer: what there is here is looked up."""
    if side.copy.is_here():
        return in_doubt(head, error)
    return InDoubt(
        f"{head.name} was granted to {head.peer}, and it is not known whether it runs there: {fact_of(error)}; the "
        "copy on this host is gone",
        remedies=[Advice(Remedy.RECOVER_MIGRATION, head.name)],
    )


def _kept(head: Head, address: str, error: BaseException) -> InDoubt:
    return InDoubt(
        f"{head.name} is complete here, paused, as {incoming_name(head.name)}, and it is not known whether it may "
        f"run: {fact_of(error)}",
        remedies=[Advice(Remedy.RECOVER_MIGRATION, head.name), Advice(Remedy.FORCE_MIGRATION, head.name)],
    )


def granted(host: Host, side: Side, head: Head) -> None:
    """HEARD_GRANT, unless the domain's name has been taken meanwhile: then it cannot be started here."""
    with ExitStack() as stack:
        if side.state is State.READY and side.copy.is_here():
            try:
                stack.enter_context(name_kept(host, head))
            except DomainError as error:
                notes: Notes = {
                    "reason": fact_of(error),
                    "name": str(error.name),
                    "exit_code": int(error.exit_code),
                }
                side.happen(Event.UNSTARTABLE, **notes)
                raise
        side.happen(Event.HEARD_GRANT)


def answer(
    channel: Channel, host: Host, journals: Journals, copy_of: CopyOf, asked: Grant | Abort | Ask
) -> None:
    """Say how a migration stands here, after what is to be done about it has been done."""
    role = Role.SOURCE if isinstance(asked, Ask) else Role.DESTINATION
    try:
        journal = journals.open(role, asked.migration)
    except JournalBusy:
        channel.say(Busy(asked.migration, _state_of(journals, role, asked.migration)))
        return
    side = Side(
        role,
        asked.migration,
        NoCopy() if journal is None else copy_of(host, journal.log.head),
        journal=journal,
        create=lambda state, notes: journals.create(
            _tombstone(asked.migration, channel.peer), state, **notes
        ),
        say=channel.say,
    )
    try:
        if isinstance(asked, Grant):
            head = _tombstone(asked.migration, channel.peer) if journal is None else journal.log.head
            granted(host, side, head)
        elif isinstance(asked, Abort):
            side.happen(Event.HEARD_ABORT, reason=for_people(asked.reason))
        else:
            side.happen(Event.HEARD_ASK, reason="recovered, as the destination asked")
    finally:
        if side.journal is not None:
            side.journal.close()
    if side.unsaid is not None:
        raise side.unsaid


def _tombstone(migration: uuid.UUID, peer: str) -> Head:
    """Of a migration that this host has not heard of, and will have nothing to do with."""
    return Head(Role.DESTINATION, migration, "", uuid.UUID(int=0), -1, boot_id(), peer, "", now())


def _state_of(journals: Journals, role: Role, migration: uuid.UUID) -> str:
    for one in journals.all():
        if isinstance(one, Log) and (one.head.role, one.head.migration) == (role, migration):
            return str(one.state)
    return ""


def _told(side: Side, head: Head) -> str:
    """How it stands, for people."""
    texts = {
        (Role.SOURCE, State.ABORTED): "was aborted; the domain is this host's, as before",
        (Role.SOURCE, State.DONE): f"is done; the domain is at {head.peer}",
        (Role.SOURCE, State.GRANTED): f"was granted to {head.peer}, which has not answered",
        (Role.DESTINATION, State.RUNNING): "is done; the domain is this host's",
        (Role.DESTINATION, State.ABORTED): "was aborted; nothing is left of it here",
        (Role.DESTINATION, State.READY): "waits, complete and paused, for what the source says",
        (Role.DESTINATION, State.COMMITTED): "is this host's, and not started yet",
    }
    booted = head.boot != boot_id()
    why = "when this host was booted again" if booted else "as its domain is not on this host any more"
    lost = f"was lost, {why}; the other host may have a copy"
    state = side.state
    text = lost if state is State.LOST else texts.get((side.role, state or State.OFFERED), f"is {state}")
    return f"the migration of {head.name or head.migration} {text}"
