"""One fault, or two, at each step of a migration; then everything heals. As the machine does, without chance."""

from __future__ import annotations

import itertools
import os

import pytest
from simulation import Host, Process, RuleBroken, World

from saverestore.migrate.handover import Event, Role, State

NR_STEPS = 34
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thousands"


def at(world: World, role: Role) -> Process | None:
    return next((one for one in world.processes if one.role is role), None)


def happens(role: Role, event: Event):
    def fault(world: World) -> None:
        process = at(world, role)
        if process and process.state and not process.steps:
            process.happen(event)

    return fault


def kill(role: Role):
    def fault(world: World) -> None:
        if process := at(world, role):
            process.die()

    return fault


def lose(role: Role):
    def fault(world: World) -> None:
        if process := at(world, role):
            process.lose()

    return fault


def cut(world: World) -> None:
    for link in world.links:
        link.cut()


def switch_off(which: int):
    return lambda world: world.power_off(world.hosts[which])


def recover(which: int):
    return lambda world: world.recover(world.hosts[which])


def unstartable(world: World) -> None:
    process = at(world, Role.DESTINATION)
    if process and process.state is State.READY:
        happens(Role.DESTINATION, Event.UNSTARTABLE)(world)


def journal(how: str):
    def fault(world: World) -> None:
        world.next_write = how

    return fault


FAULTS = {
    "kill the source": kill(Role.SOURCE),
    "kill the destination": kill(Role.DESTINATION),
    "cut the link": cut,
    "the source waits in vain": lose(Role.SOURCE),
    "the destination waits in vain": lose(Role.DESTINATION),
    "cancel at the source": happens(Role.SOURCE, Event.FAILED),
    "a failure at the destination": happens(Role.DESTINATION, Event.FAILED),
    "it cannot be started": unstartable,
    "an entry is not written": journal("lost"),
    "an entry is written and reported as failed": journal("kept"),
    "switch host a off": switch_off(0),
    "switch host b off": switch_off(1),
    "recover at a": recover(0),
    "recover at b": recover(1),
}


def test_a_migration_that_nothing_disturbs_ends_with_the_domain_at_the_destination():
    world = World()
    world.start()
    world.run(10 * NR_STEPS)
    assert [host.copy for host in world.hosts] == [None, "running"]
    assert world.hosts[0].journals == {(Role.SOURCE, 1): State.DONE}
    assert world.hosts[1].journals == {(Role.DESTINATION, 1): State.RUNNING}
    assert not world.is_moving


def test_there_are_not_more_steps_than_are_tried():
    world = World()
    world.start()
    world.run(NR_STEPS)
    assert not world.is_moving


def superseded(*, settles_first: bool) -> World:
    """A migration whose source is killed, and a second one that has granted; the old one is recovered then."""
    world = World(settles_first=settles_first)
    source, target = world.hosts
    assert world.start()
    while source.journals[Role.SOURCE, 1] is not State.STREAMING:
        world.run(1)
    at(world, Role.SOURCE).die()
    cut(world)
    if (left := at(world, Role.DESTINATION)) is not None:
        left.lose()
        world.run(NR_STEPS)
    target.copy = None  # as `recover` there has it
    if not world.start():
        return world
    while source.journals[Role.SOURCE, 2] is not State.GRANTED:
        world.run(1)
    at(world, Role.SOURCE).die()
    cut(world)
    assert world.recover(source)
    world.run(NR_STEPS)
    return world


def test_a_second_migration_waits_until_the_first_is_settled():
    world = superseded(settles_first=True)
    assert [host.copy for host in world.hosts] == ["running", None]
    world.heal()
    world.check_healed()
    assert world.start()


def test_a_migration_that_is_settled_after_the_next_one_was_granted_resumes_nothing():
    world = superseded(settles_first=False)
    assert world.hosts[0].journals[Role.SOURCE, 1] is State.ABORTED
    assert world.hosts[0].copy == "suspended"
    world.heal()
    world.check_healed()
    assert world.hosts[1].copy == "running"


def test_without_notes_on_the_domain_that_would_double_it(monkeypatch):
    monkeypatch.setattr(Host, "moving", property(lambda _: 0, lambda *_: None), raising=False)
    with pytest.raises(RuleBroken):
        superseded(settles_first=False).heal()


@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_at_any_step_neither_loses_nor_doubles_the_domain(fault):
    for point in range(NR_STEPS):
        world = World()
        world.start()
        world.run(point)
        FAULTS[fault](world)
        world.heal()
        world.check_healed()


@pytest.mark.parametrize("first", FAULTS)
def test_two_faults_at_any_steps_neither_lose_nor_double_the_domain(first):
    cases = itertools.product(range(NR_STEPS), FAULTS, range(20) if THOROUGH else (0, 3, 11))
    for point, second, gap in cases:
        world = World()
        world.start()
        world.run(point)
        FAULTS[first](world)
        world.run(gap)
        FAULTS[second](world)
        try:
            world.heal()
            world.check_healed()
        except AssertionError as error:
            error.add_note(f"after {point} steps, and {gap} more to {second!r}")
            raise
