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
from pair_lab import Command, Guest, cut_link, domains_of, must, run
from test_migrations import is_running, states_of
from xenlab.pair import Host, Pair

STOPPING = "/root/pysave/tests/pair/stopping.py"
STOPPED = "/run/pymigrate-stopped"
STOPS_WITHIN_S = 150.0
GIVES_UP_WITHIN_S = 150.0  # a silent peer is given up after 30 s
SETTLE_S = "5"

OVER = {"ABORTED", "DONE", "RUNNING", "LOST"}


class Fault(StrEnum):
    """What happens at the point."""

    KILL = "killed"
    CUT = "cut off"
    OFF = "switched off"


@dataclass(frozen=True)
class Point:
    """`side` is stopped at `step`, and has the fault. `owner`: the host that runs the domain after recovery.

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
        Point("source", "after OFFERED", kill, "a"),
        Point("source", "after ACCEPTED", kill, "a"),
        Point("source", "after STREAMING", kill, "a"),
        Point("source", "after saying STREAM_END", kill, "a"),
        Point("source", "before GRANTED", kill, "a", core=True),
        Point("source", "after GRANTED", kill, "b", core=True),
        Point("source", "after saying GRANT", kill, "b"),
        Point("source", "before DONE", kill, "b"),
        Point("destination", "after ACCEPTED", kill, "a"),
        Point("destination", "after RECEIVING", kill, "a"),
        Point("destination", "before READY", kill, "a"),
        Point("destination", "after READY", kill, "a"),
        Point("destination", "before COMMITTED", kill, "b", core=True),
        Point("destination", "after COMMITTED", kill, "b"),
        Point("destination", "before RUNNING", kill, "b"),
        Point("source", "after STREAMING", cut, "a"),
        Point("source", "after saying STREAM_END", cut, "a"),
        Point("source", "before GRANTED", cut, "b"),
        Point("destination", "after READY", cut, "a"),
        Point("destination", "after COMMITTED", cut, "b"),
        Point("source", "after STREAMING", off, None),
        Point("source", "before GRANTED", off, "b", by_hand=True),
        Point("source", "after GRANTED", off, "b"),
        Point("destination", "after RECEIVING", off, "a"),
        Point("destination", "before COMMITTED", off, "a"),
    ]


POINTS = [pytest.param(one, id=str(one), marks=() if one.core else pytest.mark.slow) for one in _points()]


@pytest.mark.parametrize("point", POINTS)
def test_whatever_happens_at_this_step_at_most_one_host_runs_it_and_recovery_settles_it(
    pair: Pair, a: Host, b: Host, guest: Guest, point: Point
) -> None:
    before = guest.state()
    faulty = a if point.side == "source" else b
    migration = begun(a, b, guest.name, point)
    wait_until_stopped(faulty)
    code = hit(pair, faulty, point.fault, migration)
    assert_at_most_one_runs_it(a, b, guest.name)
    if point.fault is Fault.OFF:
        pair.power_on(faulty.member.name)
        wait_for_no_worker(pair)
    said = [recovered(host) for host in (a, b, a)]
    print(f"{point}: pymigrate ended with {code}; recover: {said}")
    if point.by_hand:
        assert domains_of(a) == {}
        assert is_paused(b, f"{guest.name}--incoming")
        must(b, "pymigrate", "recover", "--force", "run", guest.name)
    assert {host.label: list(domains_of(host)) for host in (a, b)} == {
        host.label: [guest.name] if host.member.name == point.owner else [] for host in (a, b)
    }
    assert {*states_of(a)[-1:], *states_of(b)[-1:]} <= OVER
    if point.owner is None:
        assert states_of(a)[-1] == "LOST"
        return
    assert is_running(pair.host(point.owner), guest.name)
    if point.owner == "b":
        guest.has_moved_to(b)
    if point.fault is Fault.OFF:
        # What its console had printed on the host that was switched off may not have come to that host's disk.
        now = guest.next_lines(2)
        assert now["hash"] == before["hash"]
        assert now["boots"] == before["boots"]
        assert now["corrupt"] == 0
    else:
        guest.resumed(before)


def begun(a: Host, b: Host, name: str, point: Point) -> Command:
    """The migration, one side of which will stop."""
    for host in (a, b):
        must(host, "rm", "-f", STOPPED)
    words = ["--settle-for", SETTLE_S, name, b.label]
    if point.side == "source":
        return Command(a, "python3", STOPPING, point.step, *words)
    return Command(a, "pymigrate", "--ssh", f"python3 {STOPPING} --ssh '{point.step}'", *words)


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


def assert_at_most_one_runs_it(a: Host, b: Host, name: str) -> None:
    """Looked at while nothing has recovered yet."""
    names = (name, f"{name}--incoming")
    runs = [
        (host.label, one) for host in (a, b) if host.state is not None for one in names if runs_on(host, one)
    ]
    assert len(runs) <= 1, runs


def runs_on(host: Host, name: str) -> bool:
    return name in domains_of(host) and is_running(host, name)


def is_paused(host: Host, name: str) -> bool:
    return "p" in domains_of(host)[name]
