"""Who may run a domain that moves: states, and what is done at each event, as a table. Pure.

At every moment, whatever is killed or cut, at most one host runs the domain; nothing starts a domain on a time-out.

     source                                   destination
     OFFERED    offer            ──────────►
                                 ◄──────────  ACCEPTED    preflight found nothing
     ACCEPTED
     STREAMING  the image        ══════════►  RECEIVING   a domain is made, paused
     SUSPENDED  end of stream    ──────────►
                                 ◄──────────  READY       whole, verified, paused; on the disk
     GRANTED    on the disk; grant ────────►
                                              COMMITTED   on the disk; then it is started
     DONE       destroyed        ◄──────────  RUNNING

- Until GRANTED is on the source's disk the source owns the domain. From then on it never resumes it by itself: only
  when the destination says ABORTED, or a person says that the destination will never run it.
- Until COMMITTED is on its disk the destination never starts it. From then on it never gives it back, but to xl.
- The destination gives up by itself until it is READY. Then it keeps its paused copy until the source has said what
  holds.
- ABORTED is final, and is a tombstone: a grant that comes later is refused.
- LOST: whoever owned the domain does not have it any more: its host was booted again, or it crashed. The other copy
  may be the last, so a person decides.

`decide` is all of it. What carries the steps out takes them in this order, one after the other; it may die between
any two. `is_here`: whether this host still has its copy of the domain.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, StrEnum, auto

from saverestore.migrate.messages import MessageType


class Role(StrEnum):
    """Which side of a migration a host is."""

    SOURCE = "source"
    DESTINATION = "destination"


class State(StrEnum):
    """How far one side is, as its journal has it."""

    OFFERED = "OFFERED"
    ACCEPTED = "ACCEPTED"
    STREAMING = "STREAMING"
    RECEIVING = "RECEIVING"
    SUSPENDED = "SUSPENDED"
    READY = "READY"
    GRANTED = "GRANTED"
    COMMITTED = "COMMITTED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    ABORTED = "ABORTED"
    LOST = "LOST"


class Event(Enum):
    """What happens on one side."""

    # ---- the work
    BEGUN = auto()  # source: the image begins; destination: a domain is about to be made
    STREAM_ENDED = auto()  # source: all of the image is sent, the domain is suspended
    VERIFIED = auto()  # destination: the domain is whole, its digest holds, its devices are there
    FAILED = auto()  # the work here failed, or a person cancelled it
    LINK_LOST = auto()  # the peer is gone or silent, which says nothing of what it does
    GRANT_UNWRITTEN = auto()  # source: writing GRANTED failed, it may be on the disk or not
    READY_UNWRITTEN = (
        auto()
    )  # destination: writing READY failed, it may be on the disk or not; the source has not heard it
    UNSTARTABLE = auto()  # destination: it is granted, and cannot be started here
    GIVEN_BACK = (
        auto()
    )  # the same, where the source is xl: it waits for this, and has not destroyed its copy yet

    # ---- what the peer says
    HEARD_OFFER = auto()
    HEARD_ACCEPTED = auto()
    HEARD_REFUSED = auto()
    HEARD_READY = auto()
    HEARD_GRANT = auto()
    HEARD_RUNNING = auto()
    HEARD_ABORT = auto()
    HEARD_ABORTED = auto()
    HEARD_ASK = auto()
    HEARD_LOST = auto()
    HEARD_UNKNOWN = auto()

    # ---- what a person asks for, when no process works on the migration
    RECOVER = auto()
    FORCE_RUN = auto()  # "the other host does not run it, and never will"
    FORCE_DESTROY = auto()  # "the other host has it"


class Deed(Enum):
    """What is done with this host's copy of the domain. Each does nothing where it is done already."""

    RESUME = auto()  # source: it runs as before
    DESTROY = auto()
    START = auto()  # destination: it gets its name and runs, unless it is to be paused


@dataclass(frozen=True)
class Write:
    """Be in this state from now on. It is in the journal, on the disk, before the next step; see `NOT_WRITTEN`."""

    state: State


@dataclass(frozen=True)
class Send:
    """Say this to the peer, if it can be reached."""

    type: MessageType


@dataclass(frozen=True)
class Do:
    """See Deed."""

    deed: Deed


Step = Write | Send | Do
Steps = tuple[Step, ...]

NOT_WRITTEN = frozenset({State.SUSPENDED})
"""States that a journal does not have: recovery does the same as for STREAMING, and just then the domain is down."""

BEFORE_GRANT = (State.OFFERED, State.ACCEPTED, State.STREAMING, State.SUSPENDED)
"""In these the source owns the domain."""

BEFORE_READY = (State.ACCEPTED, State.RECEIVING)
"""In these the destination gives up by itself."""

OVER = frozenset({State.RUNNING, State.DONE, State.ABORTED, State.LOST})
"""Nothing more is done, but to answer."""


class IllegalEvent(RuntimeError):
    """An event at a moment that has none such: the peer's mistake where it is a message, else ours."""

    def __init__(self, role: Role, state: State | None, event: Event) -> None:
        super().__init__(f"{event.name} at the {role}, which is {state or 'without a journal of that'}")


@dataclass(frozen=True)
class _Row:
    here: Steps
    gone: Steps


_Key = tuple[Role, State | None, Event]
_TABLE: dict[_Key, _Row] = {}


def _row(
    role: Role,
    states: Iterable[State | None] | State | None,
    events: Iterable[Event] | Event,
    *here: Step,
    gone: Steps | None = None,
) -> None:
    for state in [states] if states is None or isinstance(states, State) else states:
        for event in [events] if isinstance(events, Event) else events:
            key = (role, state, event)
            assert key not in _TABLE
            _TABLE[key] = _Row(here, here if gone is None else gone)


def _source() -> None:
    role = Role.SOURCE
    resume = (Do(Deed.RESUME), Write(State.ABORTED))
    lost = (Write(State.LOST),)
    say = {kind: Send(kind) for kind in MessageType}
    _row(role, State.OFFERED, Event.HEARD_ACCEPTED, Write(State.ACCEPTED))
    _row(role, State.ACCEPTED, Event.BEGUN, Write(State.STREAMING))
    _row(role, State.STREAMING, Event.STREAM_ENDED, Write(State.SUSPENDED), say[MessageType.STREAM_END])
    _row(role, State.SUSPENDED, Event.HEARD_READY, Write(State.GRANTED), say[MessageType.GRANT])

    _row(role, BEFORE_GRANT, Event.FAILED, *resume, say[MessageType.ABORT])
    _row(role, BEFORE_GRANT, (Event.HEARD_REFUSED, Event.HEARD_ABORTED, Event.LINK_LOST), *resume)
    _row(role, BEFORE_GRANT, Event.RECOVER, *resume, say[MessageType.ABORT], gone=lost)
    answer = say[MessageType.ABORTED]
    _row(role, BEFORE_GRANT, Event.HEARD_ASK, *resume, answer, gone=(*lost, say[MessageType.LOST]))

    granted = State.GRANTED
    _row(role, granted, Event.HEARD_RUNNING, Do(Deed.DESTROY), Write(State.DONE))
    _row(role, granted, Event.HEARD_ABORTED, *resume, gone=lost)
    _row(role, granted, Event.GRANT_UNWRITTEN, say[MessageType.ABORT])
    _row(role, granted, (Event.RECOVER, Event.HEARD_ASK), say[MessageType.GRANT])
    _row(role, granted, (Event.FAILED, Event.LINK_LOST, Event.HEARD_READY, Event.HEARD_LOST))
    _row(role, granted, Event.FORCE_RUN, *resume, gone=lost)
    _row(role, granted, Event.FORCE_DESTROY, Do(Deed.DESTROY), Write(State.DONE))

    _row(role, State.DONE, Event.HEARD_ASK, say[MessageType.GRANT])
    _row(role, State.ABORTED, Event.HEARD_ASK, say[MessageType.ABORTED])
    _row(role, State.LOST, Event.HEARD_ASK, say[MessageType.LOST])
    _row(role, None, Event.HEARD_ASK, say[MessageType.UNKNOWN])
    late = (Event.HEARD_READY, Event.HEARD_RUNNING, Event.HEARD_ABORTED, Event.HEARD_LOST)
    _row(role, (State.DONE, State.ABORTED, State.LOST), (*late, Event.LINK_LOST, Event.FAILED, Event.RECOVER))


def _destination() -> None:
    role = Role.DESTINATION
    give_up = (Do(Deed.DESTROY), Write(State.ABORTED), Send(MessageType.ABORTED))
    run = (Do(Deed.START), Write(State.RUNNING), Send(MessageType.RUNNING))
    lost = (Write(State.LOST), Send(MessageType.LOST))
    tombstone = (Write(State.ABORTED), Send(MessageType.ABORTED))
    _row(role, None, Event.HEARD_OFFER, Write(State.ACCEPTED), Send(MessageType.ACCEPTED))
    _row(role, State.ACCEPTED, Event.BEGUN, Write(State.RECEIVING))
    _row(role, State.RECEIVING, Event.VERIFIED, Write(State.READY), Send(MessageType.READY))

    ends = (Event.FAILED, Event.LINK_LOST, Event.RECOVER, Event.HEARD_ABORT, Event.HEARD_GRANT)
    _row(role, BEFORE_READY, ends, *give_up)

    ready = State.READY
    _row(role, ready, Event.HEARD_GRANT, Write(State.COMMITTED), *run, gone=tombstone)
    _row(role, ready, (Event.HEARD_ABORT, Event.UNSTARTABLE, Event.READY_UNWRITTEN), *give_up)
    _row(role, ready, Event.HEARD_ABORTED, Do(Deed.DESTROY), Write(State.ABORTED))
    _row(role, ready, (Event.FAILED, Event.LINK_LOST, Event.HEARD_LOST, Event.HEARD_UNKNOWN))
    _row(role, ready, Event.RECOVER, Send(MessageType.ASK), gone=(Write(State.ABORTED),))
    _row(role, ready, Event.FORCE_RUN, Write(State.COMMITTED), *run, gone=(Write(State.ABORTED),))
    _row(role, ready, Event.FORCE_DESTROY, Do(Deed.DESTROY), Write(State.ABORTED))

    _row(role, State.COMMITTED, (Event.RECOVER, Event.HEARD_GRANT, Event.HEARD_ABORT), *run, gone=lost)
    _row(role, State.COMMITTED, Event.FAILED, Send(MessageType.RUNNING))
    _row(role, (ready, State.COMMITTED), Event.GIVEN_BACK, *give_up, gone=tombstone)
    _row(role, State.COMMITTED, Event.LINK_LOST)

    asked = (Event.HEARD_GRANT, Event.HEARD_ABORT)
    _row(role, State.RUNNING, asked, Send(MessageType.RUNNING))
    _row(role, State.ABORTED, (*asked, Event.HEARD_OFFER), Send(MessageType.ABORTED))
    _row(role, State.LOST, asked, Send(MessageType.LOST))
    _row(role, None, asked, *tombstone)
    late = (Event.HEARD_ABORTED, Event.HEARD_LOST, Event.HEARD_UNKNOWN)
    _row(role, OVER - {State.DONE}, (*late, Event.LINK_LOST, Event.FAILED, Event.RECOVER))


_source()
_destination()


def decide(role: Role, state: State | None, event: Event, *, is_here: bool) -> Steps:
    """What is to be done, in this order. IllegalEvent when the table has none such.

    `state`: as the journal has it, None where there is none. Of GRANTED that may be in the journal: GRANTED.
    """
    row = _TABLE.get((role, state, event))
    if row is None:
        raise IllegalEvent(role, state, event)
    return row.here if is_here else row.gone


def may_follow(role: Role, state: State) -> frozenset[State]:
    """States that this one may change to."""
    found = set()
    for (of, before, _), row in _TABLE.items():
        for steps in (row.here, row.gone) if of is role else ():
            at = before
            for step in steps:
                if isinstance(step, Write):
                    if at is state:
                        found.add(step.state)
                    at = step.state
    return frozenset(found)


def owns(role: Role, state: State | None) -> bool:
    """Whether this side alone says what becomes of the domain."""
    if role is Role.SOURCE:
        return state in BEFORE_GRANT
    return state in (State.COMMITTED, State.RUNNING)
