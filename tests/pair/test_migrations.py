"""`pymigrate` between two real Xen hosts, over ssh: the domain is on one of them, whatever happens."""

from __future__ import annotations

import signal

import pytest
from pair_lab import (
    FREED_IS_ZERO,
    MEMORY_MIB,
    Command,
    Guest,
    domains_of,
    is_running,
    must,
    need_kind,
    run,
    signal_to,
    states_of,
)
from xenlab.pair import Host, Pair

core, slow, cold = pytest.mark.core, pytest.mark.slow, pytest.mark.cold
PORT = 7778
HEARD = "/run/heard"
SHARED = "/dev/vdb"
HVM_MEMORY_MIB = 160


def kinds(*slow_ones: tuple[str, int]) -> pytest.MarkDecorator:
    """A guest of each of these kinds, by (kind, vcpus); those of `slow_ones` with --slow only.

    Of the core cases PV guests are moved by those of faults.
    """
    found = [pytest.param(("pvh", 1), id="pvh", marks=core), pytest.param(("pv", 1), id="pv")]
    found += [pytest.param(one, marks=[slow, cold], id=f"{one[0]}-{one[1]}vcpus") for one in slow_ones]
    return pytest.mark.parametrize("guest", found, indirect=True)


def moved(here: Host, there: Host, guest: Guest, *options: str) -> None:
    """Move it; its memory goes by TLS beside ssh, as is the default."""
    said = run(here, "pymigrate", *options, guest.name, there.label)
    assert said.returncode == 0, said.stderr
    assert f"is running at {there.label}" in said.stderr
    assert "over ssh" not in said.stderr


@kinds(("pvh", 2), ("pv", 2))
def test_a_guest_that_writes_is_moved_live_there_and_back(a: Host, b: Host, guest: Guest) -> None:
    before = guest.state()
    moved(a, b, guest)
    assert domains_of(a) == {}
    guest.has_moved_to(b)
    there = guest.resumed(before)
    assert is_running(b, guest.name)
    assert (states_of(a)[-1], states_of(b)[-1]) == ("DONE", "RUNNING")
    moved(b, a, guest)
    guest.has_moved_to(a)
    guest.resumed(there)
    assert domains_of(b) == {}


@slow
def test_moved_live_by_digests_three_times_there_and_back(pair: Pair, a: Host, b: Host, guest: Guest) -> None:
    state = guest.state()
    for here, there in ((a, b), (b, a)) * 3:
        moved(here, there, guest, "--dirty", "digest")
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


ANNOUNCED = "/run/announced"
RARP_LISTENER = """
import socket
everything, rarp = 3, b"\\x80\\x35"
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(everything)) as cable:
    cable.bind(("eth1", everything))
    while True:
        frame = cable.recv(2048)
        if frame[12:14] == rarp:
            print(frame[6:12].hex(":"), flush=True)
"""


def numbers_heard(b: Host) -> list[int]:
    """What has come over the guest's one connection; it is still open."""
    text = must(b, f"cat {HEARD}")
    assert "closed" not in text
    return [int(line) for line in text.rpartition("\n")[0].split()]


@pytest.mark.parametrize(
    ("kind", "vcpus"), [("pvh", 1), pytest.param("pv", 1, marks=slow), pytest.param("hvm", 1, marks=core)]
)
def test_disk_and_network_connection_of_a_guest_go_on_at_the_other_host(
    pair: Pair, a: Host, b: Host, no_kept_guest: None, kind: str, vcpus: int
) -> None:
    need_kind(pair, kind)
    must(b, f"setsid python3 -c '{LISTENER}' </dev/null >{HEARD} 2>&1 & sleep 2")
    guest = Guest(pair, f"{kind}-equipped", kind, vcpus, HVM_MEMORY_MIB if kind == "hvm" else MEMORY_MIB)
    net = ("--net", "77", str(PORT), "--peer", "10.0.9.2")
    guest.create(a, more=("--disk-on", SHARED, *net, *FREED_IS_ZERO))
    try:
        must(b, f"timeout 60 sh -c 'until [ $(wc -l < {HEARD}) -gt 5 ]; do sleep 0.2; done'")
        before = guest.state()
        mac = must(a, "xl", "network-list", guest.name).splitlines()[1].split()[2]
        must(
            a,
            f"setsid python3 -c '{RARP_LISTENER}' </dev/null >{ANNOUNCED} 2>&1 & echo $! >{ANNOUNCED}.pid; sleep 2",
        )
        moved(a, b, guest, "-v")
        must(a, f"kill $(cat {ANNOUNCED}.pid)")
        assert must(a, f"cat {ANNOUNCED}").split() == [mac], "switches are told of its MAC, once"
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


@core
def test_a_dry_run_changes_nothing_on_either_host(kept_guest: Guest) -> None:
    here, there = kept_guest.host, kept_guest.other_host
    said = run(here, "pymigrate", "--dry-run", kept_guest.name, there.label)
    assert said.returncode == 0, said.stderr
    assert is_running(here, kept_guest.name)
    assert domains_of(there) == {}


def begun(guest: Guest, *options: str) -> Command:
    """Its migration to the other host, amid the rounds."""
    migration = Command(guest.host, "pymigrate", "-v", *options, guest.name, guest.other_host.label)
    migration.wait_for("round 0")
    return migration


@core
def test_ctrl_c_amid_the_rounds_leaves_it_running_at_the_source_alone(kept_guest: Guest) -> None:
    here, there = kept_guest.host, kept_guest.other_host
    before = kept_guest.state()
    migration = begun(kept_guest)
    signal_to(here, f"pymigrate -v {kept_guest.name}", signal.SIGINT)
    assert migration.finish() == 130, migration.lines
    kept_guest.resumed(before)
    assert is_running(here, kept_guest.name)
    assert domains_of(there) == {}
    assert states_of(here)[-1] == states_of(there)[-1] == "ABORTED"


@core
def test_a_receiver_that_is_killed_leaves_it_running_at_the_source(kept_guest: Guest) -> None:
    here, there = kept_guest.host, kept_guest.other_host
    before = kept_guest.state()
    migration = begun(kept_guest)
    signal_to(there, "pymigrate receive", signal.SIGKILL)
    assert migration.finish() == 5, migration.lines
    kept_guest.resumed(before)
    must(there, "pymigrate", "recover", "--all")
    assert domains_of(there) == {}
    assert is_running(here, kept_guest.name)


@core
def test_a_source_that_is_killed_amid_the_rounds_is_recovered_and_the_other_has_nothing(
    kept_guest: Guest,
) -> None:
    here, there = kept_guest.host, kept_guest.other_host
    before = kept_guest.state()
    migration = begun(kept_guest, "--resume-for", "10")
    signal_to(here, "pymigrate -v --resume-for", signal.SIGKILL)
    migration.finish()
    must(here, "pymigrate", "recover", kept_guest.name)
    kept_guest.resumed(before)
    must(there, "timeout 60 sh -c 'until xl list | wc -l | grep -q 2; do sleep 0.5; done'")
    assert is_running(here, kept_guest.name)
