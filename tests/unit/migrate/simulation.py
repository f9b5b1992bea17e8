"""Two hosts, their disks, processes and links as plain data, on which the hand-over is carried out step by step.

A process takes one step at a time, so that it can be killed before and after each journal entry, message and deed.
`World.decide` is what is under test: a test can give one that breaks the rule.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from saverestore.migrate.handover import (
    BEFORE_GRANT,
    NOT_WRITTEN,
    OVER,
    Deed,
    Do,
    Event,
    IllegalEvent,
    Role,
    Send,
    State,
    Step,
    Steps,
    Write,
    decide,
    owns,
)
from saverestore.migrate.messages import MessageType

Decide = Callable[..., Steps]
Key = tuple[Role, int]


class RuleBroken(AssertionError):
    """Two hosts run the domain, or one runs it that must not."""


@dataclass
class Host:
    """`copy`: this host's copy of the domain: None, "running", "suspended" or "paused"; `of`: by which migration.

    `moving`: the note on it of the migration that moves it on; 0: none.
    """

    name: str
    journals: dict[Key, State] = field(default_factory=dict)
    copy: str | None = None
    of: int = 0
    moving: int = 0

    def is_of(self, key: Key) -> bool:
        """Whether the copy is what that migration moves, or has brought."""
        role, number = key
        return self.copy is not None and (self.of < number if role is Role.SOURCE else self.of == number)


class Link:
    """What is under way to each end, over so many connections. An end that is gone takes nothing.

    Each connection may break: the others send again what it had under way, so nothing is lost before the last one
    breaks (`transport/links.py`, and its property tests).
    """

    def __init__(self, connections: int = 1) -> None:
        self.connections = connections
        self.to: dict[Role, deque[MessageType]] = {Role.SOURCE: deque(), Role.DESTINATION: deque()}
        self.ends: dict[Role, Process | None] = {Role.SOURCE: None, Role.DESTINATION: None}
        self.is_cut = False
        self.answerer: tuple[Host, Key] | None = None
        """Who is to answer, while nobody has taken the other end yet."""

    def send(self, role: Role, what: MessageType) -> None:
        if not self.is_cut:
            self.to[role].append(what)

    def cut(self) -> None:
        """One connection breaks."""
        self.connections = max(0, self.connections - 1)
        if not self.connections:
            self.is_cut = True
            for queue in self.to.values():
                queue.clear()


class Process:
    """One process at work on a migration, which has the journal's lock."""

    def __init__(self, world: World, host: Host, role: Role, number: int, link: Link) -> None:
        self.world, self.host, self.role, self.number, self.link = world, host, role, number, link
        self.state = host.journals.get((role, number))
        self.steps: deque[Step] = deque()
        self.begun_work = False
        self.stream_ended = False
        self.is_linked = True
        self.is_recovering = False
        link.ends[role] = self

    @property
    def peer_role(self) -> Role:
        return Role.DESTINATION if self.role is Role.SOURCE else Role.SOURCE

    @property
    def is_here(self) -> bool:
        return self.host.is_of((self.role, self.number))

    def happen(self, event: Event) -> None:
        """Plan what is to be done; of an event that makes no sense the peer is given up."""
        try:
            planned = self.world.decide(self.role, self.state, event, is_here=self.is_here)
        except IllegalEvent:
            self.is_linked = False
            planned = self.world.decide(self.role, self.state, Event.LINK_LOST, is_here=self.is_here)
        self.steps = deque(planned)

    # ---- one step ----------------------------------------------------------------------------------

    def advance(self) -> bool:
        """Do the next thing there is to be done: whether there was one."""
        if self.steps:
            self._take(self.steps.popleft())
        elif self.is_linked and self.link.to[self.role]:
            self._hear(self.link.to[self.role].popleft())
        elif not self._work():
            return False
        self._end_when_done()
        return True

    def _hear(self, what: MessageType) -> None:
        if what is MessageType.BUSY:
            self.is_linked = False
        elif what is MessageType.STREAM_END:
            self.stream_ended = True
        else:
            self.happen(Event[f"HEARD_{what.name}"])

    def _work(self) -> bool:
        """What is not an answer to a message."""
        if self.is_recovering or not self.is_linked:
            return False
        if self.state is State.ACCEPTED:
            self.happen(Event.BEGUN)
        elif self.state is State.STREAMING:
            self.host.copy = "suspended"
            self.happen(Event.STREAM_ENDED)
        elif self.state is State.RECEIVING and not self.is_here:
            self.host.copy, self.host.of = "paused", self.number
        elif self.state is State.RECEIVING and self.stream_ended:
            self.happen(Event.VERIFIED)
        else:
            return False
        return True

    def _take(self, step: Step) -> None:
        match step:
            case Write(state):
                self._write(state)
            case Send(what):
                if self.is_linked:
                    self.link.send(self.peer_role, what)
            case Do(deed):
                if self.is_here:
                    self._do(deed)

    def _write(self, state: State) -> None:
        self.state = state
        fails, self.world.next_write = self.world.next_write, ""
        if state not in NOT_WRITTEN and fails != "lost":
            self.host.journals[self.role, self.number] = state
        if not fails or state in NOT_WRITTEN:
            return
        if state is State.GRANTED:
            self.happen(Event.GRANT_UNWRITTEN)
        elif self.role is Role.SOURCE and state in BEFORE_GRANT:
            self.happen(Event.FAILED)
        elif state is State.READY:
            self.happen(Event.READY_UNWRITTEN)
        else:
            self.die()

    def _do(self, deed: Deed) -> None:
        if self.host.moving not in (0, self.number):
            return  # another migration says what becomes of it
        if deed is Deed.RESUME:
            self.host.moving = 0
            if self.host.copy == "suspended":
                self.host.copy = "running"
                self.world.check(f"resumed at {self.host.name}", self.number, Role.SOURCE)
        elif deed is Deed.START and self.host.copy == "paused":
            self.host.copy = "running"
            self.world.check(f"started at {self.host.name}", self.number, Role.DESTINATION)
        elif deed is Deed.DESTROY:
            if self.host.copy == "running":
                raise RuleBroken(f"{self.host.name} destroys the domain that it runs")
            self.host.copy, self.host.moving = None, 0
            self.world.note_power(None)

    def lose(self) -> None:
        """The peer is given up: silent for too long, or gone."""
        if self.is_linked:
            self.is_linked = False
            if not self.steps and self.state is not None:  # without a journal there is nothing to give up
                self.happen(Event.LINK_LOST)
        self._end_when_done()

    def _end_when_done(self) -> None:
        if not self.steps and (self.state in OVER or self.state is None or not self.is_linked):
            if self.state not in OVER and self.state not in (
                None,
                State.READY,
                State.GRANTED,
                State.COMMITTED,
            ):
                self.happen(Event.LINK_LOST)
                return
            self.die()

    def die(self) -> None:
        """End, or be killed: the lock is free, and the peer finds the end behind what was sent."""
        self.steps.clear()
        if self in self.world.processes:
            self.world.processes.remove(self)
        self.link.ends[self.role] = None
        self.link.to[self.role].clear()


class World:
    """Hosts a and b, of which a runs the domain at first.

    `settles_first`: whether a migration is refused where an earlier one may still decide about the domain.
    `connections`: how many a link has.
    """

    def __init__(self, decide: Decide = decide, *, settles_first: bool = True, connections: int = 1) -> None:
        self.decide = decide
        self.connections = connections
        self.settles_first = settles_first
        self.hosts = [Host("a", copy="running"), Host("b")]
        self.processes: list[Process] = []
        self.links: list[Link] = []
        self.number = 0
        self.next_write = ""
        """How the next entry of a journal fails: "" not at all, "lost" or "kept", as the disk then has it."""
        self.may_be_lost = False
        self.ran: dict[int, set[Role]] = {}

    # ---- what must hold ----------------------------------------------------------------------------

    def check(self, what: str, number: int, role: Role) -> None:
        """At most one host runs the domain; and of one migration, one side only ever does once it is handed over."""
        if sum(host.copy == "running" for host in self.hosts) > 1:
            raise RuleBroken(f"two hosts run the domain: {what}")
        sides = self.ran.setdefault(number, set())
        sides.add(role)
        if len(sides) > 1:
            raise RuleBroken(f"both sides of one migration have run the domain: {what}")

    def note_power(self, off: Host | None) -> None:
        """Whether the domain may be gone, or waits for a person, because a host was switched off."""
        if off is None:
            # A destination gave up after the source's host was switched off.
            self.may_be_lost |= self.was_off and all(host.copy is None for host in self.hosts)
            return
        self.was_off = True
        states = off.journals.items()
        owned = any(owns(role, state) for (role, number), state in states if number == self.number)
        left = [host for host in self.hosts if host.copy is not None]
        self.may_be_lost |= owned or not left or not self.number

    was_off = False

    # ---- what may happen ---------------------------------------------------------------------------

    def runner(self) -> Host | None:
        return next((host for host in self.hosts if host.copy == "running"), None)

    def other(self, host: Host) -> Host:
        return next(one for one in self.hosts if one is not host)

    def is_locked(self, host: Host, key: Key) -> bool:
        return any((one.host, one.role, one.number) == (host, *key) for one in self.processes)

    def is_taken(self, host: Host) -> bool:
        """Whether the domain is here or on its way: its name and UUID are locked, a second one is refused."""
        receives = any(
            one.host is host and one.role is Role.DESTINATION and not one.is_recovering
            for one in self.processes
        )
        return receives or host.copy is not None

    def start(self) -> bool:
        """A migration from where the domain runs, if nothing stands in its way there: the domain's lock, too."""
        source = self.runner()
        if source is None or any(one.host is source for one in self.processes):
            return False
        target = self.other(source)
        unsettled = any(state not in OVER and source.is_of(key) for key, state in source.journals.items())
        if target.copy is not None or (self.settles_first and unsettled):
            return False
        self.number += 1
        self.may_be_lost = False
        self.was_off = False
        link = Link(self.connections)
        self.links.append(link)
        source.journals[Role.SOURCE, self.number] = State.OFFERED
        source.moving = self.number
        self.processes.append(Process(self, source, Role.SOURCE, self.number, link))
        link.answerer = (target, (Role.DESTINATION, self.number))
        link.send(Role.DESTINATION, MessageType.OFFER)
        return True

    def recover(self, host: Host, *, newest: bool = False) -> bool:
        """`recover` on a host, of one migration that is not over there: whether there was one."""
        open_ones = [key for key, state in host.journals.items() if state not in OVER]
        for key in sorted(open_ones, reverse=newest):
            if self.is_locked(host, key):
                continue
            role, number = key
            link = Link(self.connections)
            self.links.append(link)
            peer = Role.DESTINATION if role is Role.SOURCE else Role.SOURCE
            link.answerer = (self.other(host), (peer, number))
            process = Process(self, host, role, number, link)
            process.is_recovering = True
            self.processes.append(process)
            process.happen(Event.RECOVER)
            return True
        return False

    def answer(self, link: Link) -> bool:
        """A message has come to a host on which nobody has the other end yet: whether that was so."""
        if link.answerer is None or not link.to[link.answerer[1][0]]:
            return False
        host, key = link.answerer
        link.answerer = None
        role, number = key
        is_offer = link.to[role][0] is MessageType.OFFER
        if self.is_locked(host, key):
            link.send(Role.DESTINATION if role is Role.SOURCE else Role.SOURCE, MessageType.BUSY)
            return True
        if is_offer and self.is_taken(host):
            link.send(Role.SOURCE, MessageType.REFUSED)
            return True
        process = Process(self, host, role, number, link)
        process.is_recovering = not is_offer
        self.processes.append(process)
        return True

    @property
    def is_moving(self) -> bool:
        """Whether any process is there, or could come to be by a message."""
        return bool(self.processes) or any(
            link.answerer and link.to[link.answerer[1][0]] for link in self.links
        )

    def run(self, steps: int) -> None:
        """So many steps, of all processes in turn."""
        while steps > 0 and self.is_moving:
            before = steps
            for link in self.links:
                self.answer(link)
            for process in list(self.processes):
                if steps > 0 and process in self.processes and process.advance():
                    steps -= 1
            if steps == before:
                return

    def power_off(self, host: Host) -> None:
        """Switch a host off and on: its processes and copies are gone, its disk is as it was."""
        for process in [one for one in self.processes if one.host is host]:
            process.die()
        if host.copy is not None:
            host.copy, host.moving = None, 0
            self.note_power(host)

    def heal(self) -> None:
        """All links and hosts work, everything is carried out, and `recover` is run on both until nothing changes."""
        self.next_write = ""
        for _ in range(20):
            for link in self.links:
                link.is_cut, link.connections = False, self.connections
            self._settle()
            before = [dict(host.journals) for host in self.hosts]
            for host in self.hosts:
                for newest in (False, True):
                    self.recover(host, newest=newest)
                    self._settle()
            if before == [host.journals for host in self.hosts] and not self.processes:
                return
        raise RuleBroken("recovery does not come to an end")

    def _settle(self) -> None:
        for _ in range(2000):
            moved = [link for link in self.links if self.answer(link)]
            moved += [one for one in list(self.processes) if one in self.processes and one.advance()]
            if not moved:
                if not self.processes:
                    return
                self.processes[0].lose()
        raise RuleBroken("the processes do not come to an end")

    def check_healed(self) -> None:
        """Exactly one host runs the domain, and nothing is left over."""
        running = [host.name for host in self.hosts if host.copy == "running"]
        if len(running) == 1:
            left = [host.name for host in self.hosts if host.copy not in (None, "running")]
            if left:
                raise RuleBroken(f"{running} runs the domain, and {left} has a copy left")
        elif running or not self.may_be_lost:
            raise RuleBroken(
                f"after everything healed, the domain runs on {running or 'no host'}: {self.hosts}"
            )
