"""Hypothesis kills, cuts, delays, switches off and recovers, step by step: the rule of the hand-over holds.

By default a few seconds' worth of runs, and of broken rules those that are found soon. HYPOTHESIS_PROFILE=thousands
makes 5000 runs, and tries all of them.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from simulation import Decide, RuleBroken, World

from saverestore.migrate import handover
from saverestore.migrate.handover import Deed, Do, Event, Role, Send, State, Write
from saverestore.migrate.messages import MessageType

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thousands"
RUNS = 5000 if THOROUGH else 400
SETTINGS = settings(
    max_examples=RUNS,
    stateful_step_count=16,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
WHICH = st.integers(0, 3)
POINTS = st.integers(0, 36)
"""How many steps, of all processes in turn, a migration is let go on: it has about 30."""


class Migrations(RuleBasedStateMachine):
    """Each rule is one thing that may happen; `advance` lets a process take its next step."""

    decide: Decide = staticmethod(handover.decide)
    connections = 1

    def __init__(self) -> None:
        super().__init__()
        self.world = World(type(self).decide, connections=self.connections)

    def _process(self, which: int):
        processes = self.world.processes
        return processes[which % len(processes)] if processes else None

    @initialize(steps=POINTS, settles_first=st.booleans())
    def begin(self, steps: int, settles_first: bool = True) -> None:
        """Without the check for earlier migrations the notes on the domain have to do."""
        self.world.settles_first = settles_first
        self.world.start()
        self.world.run(steps)

    @rule(steps=POINTS)
    def start(self, steps: int) -> None:
        """A migration, if none is under way, as far as one of its points: any is as likely as any other."""
        if self.world.start():
            self.world.run(steps)

    @rule(which=WHICH)
    @precondition(lambda self: self.world.processes)
    def advance(self, which: int) -> None:
        self._process(which).advance()

    @rule(steps=st.integers(1, 12))
    @precondition(lambda self: self.world.is_moving)
    def run(self, steps: int) -> None:
        self.world.run(steps)

    @rule(which=WHICH)
    @precondition(lambda self: self.world.processes)
    def kill(self, which: int) -> None:
        self._process(which).die()

    @rule(which=WHICH)
    @precondition(lambda self: self.world.processes)
    def wait_in_vain(self, which: int) -> None:
        self._process(which).lose()

    @rule(which=WHICH)
    @precondition(lambda self: self.world.processes)
    def cancel_or_fail(self, which: int) -> None:
        process = self._process(which)
        if not process.steps and process.state is not None:
            process.happen(Event.FAILED)

    @rule(which=WHICH)
    @precondition(lambda self: self.world.processes)
    def cannot_be_started(self, which: int) -> None:
        process = self._process(which)
        if process.role is Role.DESTINATION and process.state is State.READY and not process.steps:
            process.happen(Event.UNSTARTABLE)

    @rule(which=st.integers(0, 9))
    @precondition(lambda self: self.world.links)
    def cut(self, which: int) -> None:
        link = self.world.links[-1 - which % min(3, len(self.world.links))]
        link.cut()

    @rule(which=WHICH)
    @precondition(lambda self: self.world.processes)
    def say_twice(self, which: int) -> None:
        process = self._process(which)
        if queue := process.link.to[process.role]:
            queue.append(queue[0])

    @rule(which=st.integers(0, 1), steps=POINTS)
    def recover(self, which: int, steps: int) -> None:
        if self.world.recover(self.world.hosts[which]):
            self.world.run(steps)

    @rule(which=st.integers(0, 1))
    def switch_off(self, which: int) -> None:
        self.world.power_off(self.world.hosts[which])

    @rule(how=st.sampled_from(["lost", "kept"]), steps=POINTS)
    @precondition(lambda self: self.world.processes)
    def let_a_journal_fail(self, how: str, steps: int) -> None:
        self.world.next_write = how
        self.world.run(steps)

    @rule(steps=POINTS)
    def heal_and_begin_anew(self, steps: int) -> None:
        self.world.heal()
        self.world.check_healed()
        self.start(steps)

    @invariant()
    def at_most_one_host_runs_the_domain(self) -> None:
        if sum(host.copy == "running" for host in self.world.hosts) > 1:
            raise RuleBroken("two hosts run the domain")

    def teardown(self) -> None:
        self.world.heal()
        self.world.check_healed()


class OverSeveral(Migrations):
    """The same over four connections, each of which may break."""

    connections = 4


@pytest.mark.parametrize("machine", [Migrations, OverSeveral], ids=["1 connection", "4 connections"])
def test_whatever_happens_at_most_one_host_runs_the_domain_and_exactly_one_when_everything_heals(machine):
    run_state_machine_as_test(machine, settings=SETTINGS)


def test_three_connections_of_four_may_break_and_a_migration_ends_as_if_none_had():
    state = OverSeveral()
    state.begin(steps=0)
    for _ in range(3):
        state.run(steps=6)
        state.cut(which=0)
    state.world.run(100)
    assert [host.copy for host in state.world.hosts].count("running") == 1
    assert state.world.hosts[1].copy == "running"
    state.teardown()


def test_an_offer_that_comes_late_does_not_mix_with_the_next_migration():
    state = Migrations()
    state.begin(steps=0)
    state.wait_in_vain(which=0)
    state.advance(which=0)
    state.advance(which=0)
    state.start(steps=0)
    state.teardown()


def test_a_receiver_whose_peer_is_gone_before_its_offer_was_read_just_ends():
    state = Migrations()
    state.begin(steps=27)
    state.start(steps=1)
    state.kill(which=0)
    state.wait_in_vain(which=0)
    state.teardown()


# ---- the rule, broken on purpose ---------------------------------------------------------------------


def changed(role: Role, state: State, event: Event, *steps: handover.Step) -> Decide:
    """The hand-over, but that these are the steps of one row."""

    def decide(of: Role, at: State | None, what: Event, *, is_here: bool) -> handover.Steps:
        if (of, at, what) == (role, state, event):
            return steps
        return handover.decide(of, at, what, is_here=is_here)

    return decide


SOURCE, DESTINATION = Role.SOURCE, Role.DESTINATION
SINS = {
    "the source resumes when the destination is silent": changed(
        SOURCE, State.GRANTED, Event.LINK_LOST, Do(Deed.RESUME), Write(State.ABORTED)
    ),
    "the grant is sent before it is on the disk": changed(
        SOURCE, State.SUSPENDED, Event.HEARD_READY, Send(MessageType.GRANT), Write(State.GRANTED)
    ),
    "the domain is started before COMMITTED is on the disk": changed(
        DESTINATION,
        State.READY,
        Event.HEARD_GRANT,
        Do(Deed.START),
        Write(State.COMMITTED),
        Write(State.RUNNING),
        Send(MessageType.RUNNING),
    ),
    "the destination starts when the source is silent": changed(
        DESTINATION,
        State.READY,
        Event.LINK_LOST,
        Write(State.COMMITTED),
        Do(Deed.START),
        Write(State.RUNNING),
    ),
    "the destination gives up by itself when it is READY, and says so before it is on the disk": changed(
        DESTINATION, State.READY, Event.FAILED, Send(MessageType.ABORTED)
    ),
    "the destination gives back what it has committed to": changed(
        DESTINATION, State.COMMITTED, Event.HEARD_GRANT, Send(MessageType.ABORTED)
    ),
    "recovery at the source resumes a domain that was granted": changed(
        SOURCE, State.GRANTED, Event.RECOVER, Do(Deed.RESUME), Write(State.ABORTED)
    ),
    "the source destroys its copy when it has granted it": changed(
        SOURCE, State.GRANTED, Event.LINK_LOST, Do(Deed.DESTROY), Write(State.DONE)
    ),
}


FOUND_LATE = (
    "the domain is started before COMMITTED is on the disk",
    "the destination starts when the source is silent",
    "the destination gives up by itself when it is READY, and says so before it is on the disk",
    "the destination gives back what it has committed to",
)
"""These take thousands of runs, or hundreds."""


@pytest.mark.parametrize("sin", [sin for sin in SINS if THOROUGH or sin not in FOUND_LATE])
def test_a_hand_over_that_breaks_the_rule_is_found(sin):
    class Broken(Migrations):
        decide = staticmethod(SINS[sin])

    # The same runs each time: by chance all of 5000 may miss it, seen once.
    once = settings(SETTINGS, max_examples=5000, database=None, derandomize=True, phases=[Phase.generate])
    with pytest.raises(RuleBroken):
        run_state_machine_as_test(Broken, settings=once)
