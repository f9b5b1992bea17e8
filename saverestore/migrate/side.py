"""One side of a migration at work: it carries out what `handover.decide` says, step by step.

The live migration, recovery, and the answer to whoever asks later are all this, with other journals, copies, peers.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from typing import Protocol

from saverestore.errors import ExitCode, Interrupted, SaveRestoreError
from saverestore.guest.common.handles import XenError
from saverestore.interrupts import shield
from saverestore.migrate.handover import NOT_WRITTEN, Deed, Do, Event, Role, Send, State, Steps, Write, decide
from saverestore.migrate.journal import Journal
from saverestore.migrate.messages import (
    Abort,
    Aborted,
    Accepted,
    Ask,
    Grant,
    Lost,
    Message,
    MessageType,
    Ready,
    Running,
    StreamEnd,
    Unknown,
)

LOG = logging.getLogger(__name__)

Notes = dict[str, str | int]


class Copy(Protocol):
    """This host's copy of a domain that moves. Each deed does nothing where it is done already.

    All raise XenError or a SaveRestoreError when the deed cannot be done; it may then be tried again.
    """

    def is_here(self) -> bool:
        """Whether this host has a copy that belongs to the migration."""

    def resume(self) -> None:
        """Source: let it run as before."""

    def destroy(self) -> None:
        """Take it away, with all that belongs to it."""

    def start(self) -> None:
        """Destination: give it its name, and let it run unless it is to be paused."""


class NoCopy:
    """A `Copy` where there never was one: of a migration that this host has not heard of before."""

    def is_here(self) -> bool:
        """See Copy."""
        return False

    def resume(self) -> None:
        """See Copy."""

    def destroy(self) -> None:
        """See Copy."""

    def start(self) -> None:
        """See Copy."""


class Side:
    """See above. `journal`: None until the first state is written, then `create` makes it.

    `say`: sends a message; None where there is no peer. That it fails is noted in `unsaid` and raised by nobody: who
    waits for the answer finds out. `notes`: what else there is to be written and said, such as a reason.

    `is_grant_unwritten`: the entry GRANTED failed, so the disk may have it or not. Then nobody says GRANT.
    """

    def __init__(
        self,
        role: Role,
        migration: uuid.UUID,
        copy: Copy,
        *,
        journal: Journal | None = None,
        create: Callable[[State, Notes], Journal] | None = None,
        say: Callable[[Message], None] | None = None,
    ) -> None:
        self.role = role
        self.migration = migration
        self.copy = copy
        self.journal = journal
        self.say = say
        self.unsaid: BaseException | None = None
        self.is_grant_unwritten = False
        self._create = create

    @property
    def state(self) -> State | None:
        """Where this side is; None without a journal."""
        return None if self.journal is None else self.journal.state

    def happen(self, event: Event, **notes: str | int) -> None:
        """Carry out what is to be done at this event.

        IllegalEvent when there is none such. What a deed or the journal raises is raised, but in two cases: when the
        entry GRANTED fails, the source tells the destination to give up; and a domain that does not start is the
        destination's all the same, and the peer hears so.
        """
        steps = decide(self.role, self.state, event, is_here=self.copy.is_here())
        # What is only said may have to wait for all that was sent before it.
        with nullcontext() if _only_speaks(steps) else shield():
            self._carry_out(steps, notes)

    def _carry_out(self, steps: Steps, notes: Notes) -> None:
        for step in steps:
            match step:
                case Write(State.GRANTED):
                    try:
                        self._write(State.GRANTED, notes)
                    except BaseException as error:  # whatever it is: it may be on the disk
                        LOG.warning("%s; the migration ends here", error)
                        self.is_grant_unwritten = True
                        self.happen(Event.GRANT_UNWRITTEN, reason=str(error))
                        return
                case Write(state):
                    self._write(state, notes)
                case Do(Deed.START):
                    try:
                        self.copy.start()
                    except (XenError, SaveRestoreError) as error:
                        LOG.warning(
                            "the domain was granted to this host, but could not be started: %s", error
                        )
                        self.happen(Event.FAILED, **notes, started="committed", error=str(error))
                        return
                case Do(deed):
                    self._do(deed)
                case Send(kind):
                    self._send(kind, notes)

    def _write(self, state: State, notes: Notes) -> None:
        if self.journal is None:
            assert self._create is not None
            self.journal = self._create(state, notes)
        else:
            self.journal.enter(state, **notes)

    def _do(self, deed: Deed) -> None:
        if deed is Deed.RESUME:
            self.copy.resume()
        else:
            self.copy.destroy()

    def _send(self, kind: MessageType, notes: Notes) -> None:
        if self.say is None:
            return
        try:
            self.say(self._message(kind, notes))
        except Interrupted:  # not in a shield: nothing but this has been done
            raise
        except Exception as error:  # whatever it is: it must not undo what has been decided and written
            self.unsaid = error

    def _message(self, kind: MessageType, notes: Notes) -> Message:
        migration, reason = self.migration, str(notes.get("reason", ""))
        match kind:
            case MessageType.ACCEPTED:
                return Accepted(migration)
            case MessageType.STREAM_END:
                return StreamEnd(int(notes["length_bytes"]))
            case MessageType.READY:
                return Ready(migration, int(notes.get("domid", -1)))
            case MessageType.GRANT:
                return Grant(migration)
            case MessageType.RUNNING:
                return self._running(notes)
            case MessageType.ABORT:
                return Abort(migration, reason)
            case MessageType.ABORTED:
                name, code = str(notes.get("name", "")), int(notes.get("exit_code", ExitCode.IO))
                return Aborted(migration, reason or self._known("reason"), name or self._known("name"), code)
            case MessageType.ASK:
                return Ask(migration)
            case MessageType.LOST:
                return Lost(migration, reason or "the domain is not on its host any more")
            case MessageType.UNKNOWN:
                return Unknown(migration)
            case _:
                raise ValueError(f"{kind.name} is not a message of the hand-over")

    def _running(self, notes: Notes) -> Running:
        paused = self.journal is not None and self.journal.log.head.paused
        state = str(notes.get("started", "paused" if paused else "running"))
        return Running(self.migration, state, int(notes.get("domid", -1)), error=str(notes.get("error", "")))

    def _known(self, name: str) -> str:
        """What the journal has noted of this before."""
        found = None if self.journal is None else self.journal.log.note(name)
        return "" if found is None else str(found)


def _only_speaks(steps: Steps) -> bool:
    """Whether nothing is written or done."""
    return all(
        isinstance(step, Send) or (isinstance(step, Write) and step.state in NOT_WRITTEN) for step in steps
    )
