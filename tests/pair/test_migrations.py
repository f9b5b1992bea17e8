"""`pymigrate` between two real Xen hosts, over ssh: the domain is on one of them, whatever happens."""

from __future__ import annotations

import json
import signal

import pytest
from pair_lab import MEMORY_MIB, Command, Guest, domains_of, must, run
from xenlab.pair import Host, Pair

slow = pytest.mark.slow
PORT = 7778
HEARD = "/run/heard"
SHARED = "/dev/vdb"
HVM_MEMORY_MIB = 160


def kinds(*slow_ones: tuple[str, int]) -> pytest.MarkDecorator:
    """A guest of each of these kinds, by (kind, vcpus); those of `slow_ones` with --slow only."""
    found = [pytest.param(("pvh", 1), id="pvh"), pytest.param(("pv", 1), id="pv")]
    found += [pytest.param(one, marks=slow, id=f"{one[0]}-{one[1]}vcpus") for one in slow_ones]
    return pytest.mark.parametrize("guest", found, indirect=True)


def states_of(host: Host) -> list[str]:
    """How the migrations that this host has taken part in stand, the latest last."""
    return [one["state"] for one in json.loads(must(host, "pymigrate", "status", "--json"))]


def is_running(host: Host, name: str) -> bool:
    return not set(domains_of(host).get(name, "-----p")) & set("pscd")


def signal_to(host: Host, what: str, number: signal.Signals) -> None:
    """To the one process in that dom0 whose command line begins like this."""
    must(host, f"kill -{int(number)} $(pgrep -f '^[^ ]*python3 [^ ]*{what}')")


@kinds(("pvh", 2), ("pv", 2))
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


@slow
def test_moved_live_by_digests_three_times_there_and_back(pair: Pair, a: Host, b: Host, guest: Guest) -> None:
    state = guest.state()
    for here, there in ((a, b), (b, a)) * 3:
        said = run(here, "pymigrate", "--dirty", "digest", guest.name, there.label)
        assert said.returncode == 0, said.stderr
        guest.has_moved_to(there)
        state = guest.resumed(state)
        assert {host.label: list(domains_of(host)) for host in pair.hosts} == {
            here.label: [],
            there.label: [guest.name],
        }


LISTENER = f"""
import socket
connection, _ = socket.create_server(("10.0.9.2", {PORT})).accept()
while data := connection.recv(4096):
    print(data.decode(), end="", flush=True)
print("closed", flush=True)
"""


def numbers_heard(b: Host) -> list[int]:
    """What has come over the guest's one connection; it is still open."""
    text = must(b, f"cat {HEARD}")
    assert "closed" not in text
    return [int(line) for line in text.rpartition("\n")[0].split()]


@pytest.mark.parametrize(
    ("kind", "vcpus"), [("pvh", 1), pytest.param("pv", 1, marks=slow), pytest.param("hvm", 1, marks=slow)]
)
def test_disk_and_network_connection_of_a_guest_go_on_at_the_other_host(
    pair: Pair, a: Host, b: Host, kind: str, vcpus: int
) -> None:
    must(b, f"setsid python3 -c '{LISTENER}' </dev/null >{HEARD} 2>&1 & sleep 2")
    guest = Guest(pair, f"{kind}-equipped", kind, vcpus, HVM_MEMORY_MIB if kind == "hvm" else MEMORY_MIB)
    net = ("--net", "77", str(PORT), "--peer", "10.0.9.2")
    guest.create(a, more=("--disk-on", SHARED, *net))
    try:
        must(b, f"timeout 60 sh -c 'until [ $(wc -l < {HEARD}) -gt 5 ]; do sleep 0.2; done'")
        before = guest.state()
        said = run(a, "pymigrate", "-v", guest.name, b.label)
        assert said.returncode == 0, said.stderr
        assert domains_of(a) == {}
        guest.has_moved_to(b)
        guest.resumed(before)
        heard = len(numbers_heard(b))
        must(b, f"timeout 120 sh -c 'until [ $(wc -l < {HEARD}) -gt {heard + 5} ]; do sleep 0.2; done'")
        numbers = numbers_heard(b)
        assert numbers == list(range(1, len(numbers) + 1)), "lines are missing or doubled"
        guest.assert_clean()
    finally:
        guest.destroy()
    must(b, f"fsck.ext4 -p -E journal_only {SHARED} || [ $? = 1 ]; fsck.ext4 -n -f {SHARED}")
    must(b, f"mkdir -p /run/disk && mount -o ro {SHARED} /run/disk")
    try:
        logged = [int(line) for line in must(b, "cat /run/disk/log").split()]
    finally:
        must(b, "umount /run/disk")
    assert len(logged) > 10
    assert logged == list(range(1, len(logged) + 1)), "lines of the disk's log are missing or doubled"


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
    migration = Command(a, "pymigrate", "-v", guest.name, b.label, "--resume-for", "10")
    migration.wait_for("round 0")
    signal_to(a, f"pymigrate -v {guest.name}", signal.SIGKILL)
    migration.finish()
    must(a, "pymigrate", "recover", guest.name)
    guest.resumed(before)
    must(b, "timeout 60 sh -c 'until xl list | wc -l | grep -q 2; do sleep 0.5; done'")
    assert is_running(a, guest.name)
