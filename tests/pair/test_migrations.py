"""`pymigrate` between two real Xen hosts, over ssh: the domain is on one of them, whatever happens."""

from __future__ import annotations

import json
import signal

import pytest
from pair_lab import Command, Guest, domains_of, must, run
from xenlab.pair import Host

each_kind = pytest.mark.parametrize("guest", [("pvh", 1), ("pv", 1)], indirect=True, ids=["pvh", "pv"])


def states_of(host: Host) -> list[str]:
    """How the migrations that this host has taken part in stand, the latest last."""
    return [one["state"] for one in json.loads(must(host, "pymigrate", "status", "--json"))]


def is_running(host: Host, name: str) -> bool:
    return not set(domains_of(host).get(name, "-----p")) & set("pscd")


def signal_to(host: Host, what: str, number: signal.Signals) -> None:
    """To the one process in that dom0 whose command line begins like this."""
    must(host, f"kill -{int(number)} $(pgrep -f '^[^ ]*python3 [^ ]*{what}')")


@each_kind
def test_a_guest_that_writes_is_moved_live_there_and_back(a: Host, b: Host, guest: Guest) -> None:
    before = guest.state()
    said = run(a, "pymigrate", guest.name, b.label)
    assert said.returncode == 0, said.stderr
    assert domains_of(a) == {}
    guest.has_moved_to(b)
    there = guest.resumed(before)
    assert is_running(b, guest.name)
    assert (states_of(a)[-1], states_of(b)[-1]) == ("DONE", "RUNNING")
    said = run(b, "pymigrate", guest.name, a.label)
    assert said.returncode == 0, said.stderr
    guest.has_moved_to(a)
    guest.resumed(there)
    assert domains_of(b) == {}


def test_a_dry_run_changes_nothing_on_either_host(a: Host, b: Host, guest: Guest) -> None:
    said = run(a, "pymigrate", "--dry-run", guest.name, b.label)
    assert said.returncode == 0, said.stderr
    assert is_running(a, guest.name)
    assert domains_of(b) == {}


def test_ctrl_c_amid_the_rounds_leaves_it_running_at_the_source_alone(a: Host, b: Host, guest: Guest) -> None:
    before = guest.state()
    migration = Command(a, "pymigrate", "-v", guest.name, b.label)
    migration.wait_for("round 0")
    signal_to(a, f"pymigrate -v {guest.name}", signal.SIGINT)
    assert migration.finish() == 130, migration.lines
    guest.resumed(before)
    assert is_running(a, guest.name)
    assert domains_of(b) == {}
    assert states_of(a)[-1] == states_of(b)[-1] == "ABORTED"


def test_a_receiver_that_is_killed_leaves_it_running_at_the_source(a: Host, b: Host, guest: Guest) -> None:
    before = guest.state()
    migration = Command(a, "pymigrate", "-v", guest.name, b.label)
    migration.wait_for("round 0")
    signal_to(b, "pymigrate receive", signal.SIGKILL)
    assert migration.finish() == 5, migration.lines
    guest.resumed(before)
    must(b, "pymigrate", "recover", "--all")
    assert domains_of(b) == {}
    assert is_running(a, guest.name)


def test_a_source_that_is_killed_amid_the_rounds_is_recovered_and_the_other_has_nothing(
    a: Host, b: Host, guest: Guest
) -> None:
    before = guest.state()
    migration = Command(a, "pymigrate", "-v", guest.name, b.label)
    migration.wait_for("round 0")
    signal_to(a, f"pymigrate -v {guest.name}", signal.SIGKILL)
    migration.finish()
    must(a, "pymigrate", "recover", guest.name)
    guest.resumed(before)
    must(b, "timeout 60 sh -c 'until xl list | wc -l | grep -q 2; do sleep 0.5; done'")
    assert is_running(a, guest.name)
