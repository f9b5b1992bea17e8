"""After a crash, where the other side is stock xl: what this host decides alone, and what a person has to."""

from __future__ import annotations

import logging

from saverestore.errors import Advice, Remedy
from saverestore.migrate.copies import incoming_name
from saverestore.migrate.handover import Event, Role, State
from saverestore.migrate.peers import InDoubt
from saverestore.migrate.records import Head
from saverestore.migrate.side import Side

LOG = logging.getLogger(__name__)

THERE = "there"
"""A note in the journal: what xl calls the domain until it starts it."""


def granted_to_xl(head: Head, there: str, why: str = "", *, is_here: bool = True) -> InDoubt:
    """A domain was granted to xl, whose report is missing. `there`: what xl calls it until it starts it.

    `is_here`: whether this host still has its copy.
    """
    here = "the domain is still here, suspended, and must not be resumed before that is known"
    return InDoubt(
        f"{head.name} was granted to xl at {head.peer}, and it is not known whether it runs there"
        f"{why and f': {why}'}; {here if is_here else 'the copy on this host is gone'}",
        remedies=[Advice(Remedy.LOOK_FOR_INCOMING, there), Advice(Remedy.FORCE_MIGRATION, head.name)],
    )


def not_granted_by_xl(head: Head, why: str = "") -> InDoubt:
    """A domain is complete here, and xl has not said whether it may run."""
    return InDoubt(
        f"{head.name} is complete here, paused, as {incoming_name(head.name)}, and xl at {head.peer} has not said "
        f"whether it may run{why and f': {why}'}",
        remedies=[Advice(Remedy.LOOK_FOR_OUTGOING, head.name), Advice(Remedy.FORCE_MIGRATION, head.name)],
    )


def settle(side: Side, head: Head) -> None:
    """Settle what this host owns. InDoubt for what xl may own, as it keeps no journal and cannot be asked."""
    assert side.journal is not None
    there = str(side.journal.log.note(THERE) or incoming_name(head.name))
    if side.state is State.GRANTED:
        raise granted_to_xl(head, there, is_here=side.copy.is_here())
    if side.state is State.READY and side.copy.is_here():
        raise not_granted_by_xl(head)
    side.happen(Event.RECOVER, reason="recovered")
    if side.role is Role.SOURCE and side.state is State.ABORTED:
        LOG.warning(
            "xl at %s may have a copy, which it does not start",
            head.peer,
            extra={"remedies": [Advice(Remedy.DESTROY_THERE, there)]},
        )
