"""Faults at every state of the hand-over, on two real hosts: a process killed, the cable cut, a plug pulled.

A side is stopped just at a step (`stopping.py`), the fault is made, and both hosts recover. `POINTS` has the steps,
and who has the domain in the end; docs/migration.md shows them as a table.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from enum import StrEnum

import pytest
from pair_lab import QUICK, Command, Guest, cut_link, domains_of, is_running, kept, must, run, states_of
from xenlab.pair import Host, Pair

STOPPING = "/root/pysave/tests/pair/stopping.py"
STOPPED = "/run/pymigrate-stopped"
STOPS_WITHIN_S = 300.0
GIVES_UP_WITHIN_S = 300.0  # a silent peer is given up after SILENCE_S
SETTLE_S = "5"
SILENCE_S = "40"  # a side that is stopped is silent, and a command in dom0 takes its time

RESUME_S = "15"  # so long a side whose peer was killed waits for it

SOURCE, DESTINATION = "source", "destination"
OVER = {"ABORTED", "DONE", "RUNNING", "LOST"}


class Fault(StrEnum):
    """What happens at the point."""

    KILL = "killed"
    CUT = "cut off"
    OFF = "switched off"


@dataclass(frozen=True)
class Point:
    """`side` is stopped at `step`, and has the fault. `owner`: the side that runs the domain after recovery.

    `by_hand`: the other host has the last copy, and a person must say that it may run.
    """

    side: str
    step: str
    fault: Fault
    owner: str | None
    by_hand: bool = False
    core: bool = False

    def __str__(self) -> str:
        return f"{self.side} {self.fault} {self.step}"


def _points() -> list[Point]:
    kill, cut, off = Fault.KILL, Fault.CUT, Fault.OFF
    return [
        Point(SOURCE, "after OFFERED", kill, SOURCE),
        Point(SOURCE, "after ACCEPTED", kill, SOURCE),
        Point(SOURCE, "after STREAMING", kill, SOURCE),
        Point(SOURCE, "after saying STREAM_END", kill, SOURCE),
        Point(SOURCE, "before GRANTED", kill, SOURCE),
        Point(SOURCE, "after GRANTED", kill, DESTINATION, core=True),
        Point(SOURCE, "after saying GRANT", kill, DESTINATION),
        Point(SOURCE, "before DONE", kill, DESTINATION),
        Point(DESTINATION, "after ACCEPTED", kill, SOURCE),
        Point(DESTINATION, "after RECEIVING", kill, SOURCE),
        Point(DESTINATION, "before READY", kill, SOURCE),
        Point(DESTINATION, "after READY", kill, SOURCE),
        Point(DESTINATION, "before COMMITTED", kill, DESTINATION, core=True),
        Point(DESTINATION, "after COMMITTED", kill, DESTINATION),
        Point(DESTINATION, "before RUNNING", kill, DESTINATION),
        Point(SOURCE, "after STREAMING", cut, SOURCE),
        Point(SOURCE, "before GRANTED", cut, DESTINATION),
        Point(DESTINATION, "before READY", cut, SOURCE),
        Point(DESTINATION, "after READY", cut, SOURCE),
        Point(DESTINATION, "after COMMITTED", cut, DESTINATION),
        Point(SOURCE, "after STREAMING", off, None),
        Point(SOURCE, "before GRANTED", off, DESTINATION, by_hand=True),
        Point(SOURCE, "after GRANTED", off, DESTINATION),
        Point(DESTINATION, "after RECEIVING", off, SOURCE),
        Point(DESTINATION, "before COMMITTED", off, SOURCE),
    ]


POINTS = [
    pytest.param(one, id=str(one), marks=pytest.mark.core if one.core else pytest.mark.slow)
    for one in _points()
]


@pytest.mark.parametrize("point", POINTS)
def test_whatever_happens_at_this_step_at_most_one_host_runs_it_and_recovery_settles_it(
    pair: Pair, kept_guest: Guest, point: Point
) -> None:
    guest = kept_guest
    before = guest.state()
    here, there = guest.host, guest.other_host
    faulty = here if point.side == SOURCE else there
    migration = begun(here, there, guest.name, point)
    wait_until_stopped(faulty)
    code = hit(pair, faulty, point.fault, migration)
    assert_at_most_one_runs_it(here, there, guest.name)
    if point.fault is Fault.OFF:
        pair.power_on(faulty.member.name)
        wait_for_no_worker(pair)
    said = [recovered(host) for host in (here, there, here)]
    print(f"{point}: pymigrate ended with {code}; recover: {said}")
    if point.by_hand:
        assert domains_of(here) == {}
        assert is_paused(there, f"{guest.name}--incoming")
        must(there, "pymigrate", "recover", "--force", "run", guest.name)
    expected = {here.label: point.owner == SOURCE, there.label: point.owner == DESTINATION}
    assert {host.label: guest.name in domains_of(host) for host in (here, there)} == expected
    assert sum(len(domains_of(host)) for host in (here, there)) == sum(expected.values())
    assert {*states_of(here)[-1:], *states_of(there)[-1:]} <= OVER
    if point.owner is None:
        kept.clear()  # it is lost
        assert states_of(here)[-1] == "LOST"
        return
    if point.owner == DESTINATION:
        guest.has_moved_to(there)
    assert is_running(guest.host, guest.name)
    if point.fault is Fault.OFF:
        # What its console had printed on the host that was switched off may not have come to that host's disk.
        now = guest.next_lines(2)
        assert now["hash"] == before["hash"]
        assert now["boots"] == before["boots"]
        assert now["corrupt"] == 0
        kept.pop().destroy()  # its log has a gap now
    else:
        guest.resumed(before)


def begun(here: Host, there: Host, name: str, point: Point) -> Command:
    """The migration, one side of which will stop."""
    for host in (here, there):
        must(host, "rm", "-f", STOPPED)
    words = [
        "--max-rounds",
        "1",
        "--settle-for",
        SETTLE_S,
        "--silence",
        SILENCE_S,
        "--resume-for",
        RESUME_S,
        name,
        there.label,
    ]
    if point.side == SOURCE:
        return Command(here, *QUICK, STOPPING, point.step, *words)
    return Command(here, "pymigrate", "--ssh", f"python3 {STOPPING} --ssh '{point.step}'", *words)


def wait_until_stopped(host: Host) -> None:
    """Until the side there has reached its step."""
    done = run(
        host,
        f"timeout {STOPS_WITHIN_S:.0f} sh -c 'until [ -e {STOPPED} ]; do sleep 0.2; done'",
        timeout_s=STOPS_WITHIN_S + 30,
    )
    assert done.returncode == 0, "the step was not reached"


def hit(pair: Pair, faulty: Host, fault: Fault, migration: Command) -> int:
    """Make the fault, and wait until both processes have ended: the exit code at the source."""
    if fault is Fault.OFF:
        pair.power_off(faulty.member.name)
        return migration.finish(GIVES_UP_WITHIN_S)
    if fault is Fault.KILL:
        must(faulty, f"kill -KILL $(cat {STOPPED})")
        code = migration.finish(GIVES_UP_WITHIN_S)
    else:
        with cut_link(pair):
            must(faulty, f"kill -CONT $(cat {STOPPED})")
            code = migration.finish(GIVES_UP_WITHIN_S)
            wait_for_no_worker(pair)
    wait_for_no_worker(pair)
    return code


def wait_for_no_worker(pair: Pair) -> None:
    """Until no process works on a migration on either host."""
    end = time.monotonic() + GIVES_UP_WITHIN_S
    for host in pair.hosts:
        while run(host, "pgrep", "-f", "^[^ ]*python3 .*(pymigrate|stopping.py)").returncode == 0:
            assert time.monotonic() < end, must(host, "ps", "-ef")
            threading.Event().wait(1)


def recovered(host: Host) -> str:
    """`recover --all` there: what it said. It fails where the other host must be asked again, or a person."""
    done = run(host, "pymigrate", "recover", "--all")
    return f"{host.label}: {done.returncode} {done.stderr.strip()}"


def assert_at_most_one_runs_it(here: Host, there: Host, name: str) -> None:
    """Looked at while nothing has recovered yet."""
    names = (name, f"{name}--incoming")
    runs = [
        (host.label, one)
        for host in (here, there)
        if host.state is not None
        for one in names
        if runs_on(host, one)
    ]
    assert len(runs) <= 1, runs


def runs_on(host: Host, name: str) -> bool:
    return name in domains_of(host) and is_running(host, name)


def is_paused(host: Host, name: str) -> bool:
    return "p" in domains_of(host)[name]
