"""What `docs/how-to/boot.md` says, on a host that systemd boots and shuts down: guests are saved, and are back.

Only one host of the pair takes part. It is here as the disks of these hosts outlive a power-off.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from pair_lab import FREED_IS_ZERO, Guest, domains_of, is_running, kept, must, run
from xenlab.pair import Host, Pair

pytestmark = pytest.mark.slow

MARK = "/etc/lab-systemd"
UNITS = "/opt/pysave/saverestore/systemd"
STORE = "/var/lib/xen/pysave"
POWER_OFF_S = 900  # the unit itself may take 780
START_S = 600
OWED = ("--maxmem", "160", "--extra", "initcall_blacklist=balloon_init")
"""A guest that has not all its memory, and will not ask for it: its save is refused."""


@pytest.fixture(scope="module")
def booted(pair: Pair) -> Iterator[Host]:
    """One that systemd has booted, with our units; afterwards as the lab boots it."""
    b = pair.b
    if b.variant.is_arm64:
        pytest.skip("Xen's services of Debian's arm64 dom0 are not what is tested here")
    while kept:
        kept.pop().destroy()
    must(b, f"touch {MARK}; mkdir -p /var/log/journal; sync")
    pair.power_off("b")
    pair.power_on("b")
    must(b, f"cp {UNITS}/*.service {UNITS}/*.timer /etc/systemd/system/ && systemctl daemon-reload")
    try:
        yield b
    finally:
        pair.power_on("b")
        run(b, "systemctl disable pysave-domains.service; systemctl unmask xendomains.service")
        must(b, f"rm -rf {MARK} {STORE} /var/log/journal; sync")
        pair.power_off("b")
        pair.power_on("b")


@pytest.fixture
def host(booted: Host) -> Host:
    """The same, for one test: nothing of ours is enabled or stored."""
    run(booted, "systemctl disable --now pysave-domains.service; systemctl unmask xendomains.service")
    run(booted, f"rm -rf {STORE}")
    favour_dom0(booted)
    return booted


def favour_dom0(host: Host) -> None:
    """It has one processor, and guests that all want it: without this each of our processes takes minutes."""
    must(host, "xl", "sched-credit2", "-d", "Domain-0", "-w", "8192")


def shut_down(host: Host) -> None:
    """As an administrator does, and wait until the machine is off."""
    run(host, "systemctl poweroff")
    deadline = time.monotonic() + POWER_OFF_S
    while host.state is not None:
        assert time.monotonic() < deadline, f"{host.label} is not off after {POWER_OFF_S} s"
        time.sleep(1)


def wait_until_started(host: Host) -> None:
    """One guest after the other is restored, while those that are there already want the processor, too."""
    deadline = time.monotonic() + START_S
    while (state := run(host, "systemctl is-active pysave-domains.service").stdout.strip()) != "active":
        assert state in ("activating", "inactive"), log_of(host, "pysave-domains.service")
        assert time.monotonic() < deadline, (
            f"{state} after {START_S} s: {log_of(host, 'pysave-domains.service')}"
        )
        time.sleep(2)


def log_of(host: Host, unit: str) -> str:
    return must(host, "journalctl", "--no-pager", "-o", "cat", "-u", unit)


def test_the_service_refuses_to_run_beside_xendomains(host: Host):
    """Debian enables that. Stopping it would save or shut down what runs, so it is masked."""
    must(host, "systemctl", "enable", "--now", "xendomains.service")
    assert run(host, "systemctl", "start", "pysave-domains.service").returncode != 0
    assert "xendomains.service is in use, too" in log_of(host, "pysave-domains.service")
    must(host, "systemctl", "mask", "xendomains.service")
    must(host, "systemctl", "start", "pysave-domains.service")


def test_the_nightly_snapshot_leaves_guests_running_and_prunes(pair: Pair, host: Host):
    guest = Guest(pair, "night", "pvh", memory_mib=96)
    try:
        guest.create(host, pages=512, rate=50, more=FREED_IS_ZERO)
        before = guest.state()
        must(host, "systemctl", "enable", "--now", "pysave-snapshots.timer")
        assert "pysave-snapshots.service" in must(host, "systemctl list-timers --no-pager")
        for _ in range(3):
            must(host, "systemctl", "start", "pysave-snapshots.service")
        guest.resumed(before)
        images = json.loads(must(host, "pyimage", "list", "--json"))
        # --keep-last 2, and the rules for days and weeks are content with these.
        assert [one["domain"] for one in images] == ["night", "night"], images
        must(host, "pyimage", "verify", STORE)
    finally:
        run(host, "systemctl", "disable", "--now", "pysave-snapshots.timer")
        guest.destroy()


def test_guests_are_there_again_after_their_host_was_shut_down_and_booted(pair: Pair, host: Host):
    guests = [
        Guest(pair, name, kind, memory_mib=96)
        for name, kind in (("one", "pv"), ("two", "pvh"), ("three", "pvh"))
    ]
    owed = Guest(pair, "owed", "pvh", memory_mib=96)
    try:
        must(host, "systemctl", "enable", "--now", "xendomains.service")
        owed.create(host, pages=0, rate=1, more=OWED)
        for guest in guests:  # this host has one processor
            guest.create(host, pages=64, rate=10, more=FREED_IS_ZERO)
        must(host, "systemctl", "mask", "xendomains.service")  # and active: it would save them at shutdown
        must(host, "systemctl", "enable", "--now", "pysave-domains.service")
        assert set(domains_of(host)) == {"one", "two", "three", "owed"}, "the first start changes nothing"
        before = [guest.state() for guest in guests]

        shut_down(host)
        pair.power_on("b")
        favour_dom0(host)
        wait_until_started(host)

        for guest, since in zip(guests, before, strict=True):
            guest.resumed(since)
            assert is_running(host, guest.name)
        said = log_of(host, "pysave-domains.service")
        assert "3 domains saved, 1 failed, 1 of 1 unsaved shut down" in said, said
        assert "populated on demand" in said, said
        assert "owed" not in domains_of(host)
        assert (
            "pyrestore: 0 domains would be restored, 0 failed; "
            in run(host, "pyrestore --all --dry-run").stderr
        )
        assert must(host, f"ls {STORE}/pending").split() == []
    finally:
        for guest in (*guests, owed):
            guest.destroy()
