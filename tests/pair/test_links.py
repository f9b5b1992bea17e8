"""The link between two real Xen hosts: several connections, a cut cable, codecs, a limit, several domains at once."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from pair_lab import (
    FREED_IS_ZERO,
    Command,
    Guest,
    domains_of,
    have_moved_to,
    is_running,
    must,
    run,
)
from xenlab import link
from xenlab.pair import Host, Pair

REPORT = "/run/links.json"
CUT_S = 5.0
CUT = f"tc qdisc replace dev eth1 root netem loss 100% && sleep {CUT_S} && tc qdisc del dev eth1 root"
"""Of what this host sends. By tc itself: `lab-link` takes seconds to load, which would be added."""

DOM0_WEIGHT = ("xl", "sched-credit2", "-d", "Domain-0", "-w")

MIB = 1 << 20
SLOW_LINK = "24mbit"
"""Emulated hosts send some 80 Mbit/s, which takes their processors."""

PROBE_S = 5.0

DATA = "ss -tnH state established dst 10.0.9.2 and not dport = :22 and not sport = :22"
"""The connections with the pages, at hosta."""


def begun(guest: Guest, *options: str) -> Command:
    """Its migration to the other host, amid round 0."""
    migration = Command(
        guest.host, "pymigrate", "-v", "--report", REPORT, *options, guest.name, guest.other_host.label
    )
    migration.wait_for("round 0")
    return migration


def sent_bytes(host: Host) -> int:
    """What its card on the cable has sent."""
    return int(must(host, "cat", "/sys/class/net/eth1/statistics/tx_bytes"))


def arrived(migration: Command, guest: Guest, since: dict[str, Any]) -> dict[str, Any]:
    """It has ended well, and the guest is the same at the other host: the report."""
    here, there = guest.host, guest.other_host
    assert migration.finish() == 0, migration.lines
    print("".join(migration.lines))
    report: dict[str, Any] = json.loads(must(here, "cat", REPORT))
    print({name: report[name] for name in ("link", "codecs", "pages", "bytes", "seconds", "downtime")})
    assert domains_of(here) == {}
    guest.has_moved_to(there)
    guest.resumed(since)
    assert is_running(there, guest.name)
    return report


@pytest.mark.slow
@pytest.mark.parametrize("silence_s", [3, 20])
def test_a_cable_that_is_cut_for_some_seconds_and_healed_costs_little_more_than_that(
    pair: Pair, guest: Guest, silence_s: int
) -> None:
    """With a short silence the connections are given up and made anew; else TCP itself sends again what is lost.

    It waits twice as long before each attempt: after a cut of 5 s up to 10 s in all.
    """
    before = guest.state()
    # The limit makes it last long enough.
    migration = begun(guest, "--streams", "4", "--silence", str(silence_s), "--bwlimit", "4MiB/s")
    for cut in [Command(host, CUT) for host in pair.hosts]:
        assert cut.finish() == 0, cut.lines
    report = arrived(migration, guest, before)
    assert report["link"]["streams"] == 4
    assert report["link"]["over"] == "tls"
    assert (report["link"]["reconnects"] > 0) == (silence_s < CUT_S)
    assert report["link"]["resent_pages"] < report["pages"]["sent"] / 10


@pytest.mark.slow
def test_one_of_four_connections_that_is_killed_does_no_harm(guest: Guest) -> None:
    before = guest.state()
    here = guest.host
    migration = begun(guest, "--streams", "4")
    data = must(here, f"{DATA} | awk '{{print $3}}'").split()
    assert len(data) == 4, data
    must(here, f"ss -K -tn src {data[1]}")
    assert data[1] not in must(here, DATA)
    report = arrived(migration, guest, before)
    assert report["link"]["reconnects"] == 0
    assert report["link"]["over"] == "tls"


@pytest.mark.slow
def test_a_limit_holds_and_is_lifted_on_the_way(guest: Guest) -> None:
    before = guest.state()
    here = guest.host
    migration = begun(guest, "--bwlimit", "1MiB/s")
    sent = sent_bytes(here)
    threading.Event().wait(PROBE_S)
    slowly = (sent_bytes(here) - sent) / PROBE_S
    must(here, "pymigrate", "bwlimit", guest.name, "none")
    sent = sent_bytes(here)
    threading.Event().wait(PROBE_S)
    freely = (sent_bytes(here) - sent) / PROBE_S
    print(f"{slowly / MIB:.1f} MiB/s with the limit, {freely / MIB:.1f} without")
    arrived(migration, guest, before)
    assert slowly < 1.5 * MIB  # with headers, and what runs ahead; the clock is read over ssh
    assert freely > 2 * slowly


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["auto", "xor"])
def test_on_a_slow_and_long_link_pages_are_compressed_and_bbr_sends_them(
    pair: Pair, guest: Guest, codec: str
) -> None:
    before = guest.state()
    pair.link(link.parse(SLOW_LINK, "20ms", "0.1%"))
    report = arrived(begun(guest, "--codec", codec), guest, before)
    coded = {name: one for name, one in report["codecs"].items() if name != "none"}
    assert coded, report["codecs"]
    assert sum(one["out_bytes"] for one in coded.values()) < sum(one["in_bytes"] for one in coded.values())
    assert report["link"]["congestion"] == "bbr"


@pytest.mark.slow
def test_three_domains_move_at_once_also_beside_one_that_never_converges(
    pair: Pair, a: Host, b: Host, no_kept_guest: None
) -> None:
    guests = [Guest(pair, f"many{number}", memory_mib=96) for number in range(3)]
    for number, guest in enumerate(guests):
        # The first dirties its pages faster than they are sent.
        guest.create(
            a, pages=1024 if number == 0 else 256, rate=3000 if number == 0 else 50, more=FREED_IS_ZERO
        )
        # Emulated, one that runs while another one boots lost its vector registers (docs/lab.md).
        must(a, "xl", "pause", guest.name)
    for guest in guests:
        must(a, "xl", "unpause", guest.name)
    try:
        # Three guests and two migrations at once on one processor: dom0's share is what administrators give it.
        for host in pair.hosts:
            must(host, *DOM0_WEIGHT, "2048")
        before = [guest.state() for guest in guests]
        said = run(a, "pymigrate", *(guest.name for guest in guests), b.label, timeout_s=1200)
        assert said.returncode == 0, said.stderr
        print(said.stderr)
        assert domains_of(a) == {}
        have_moved_to(b, guests)
        for guest, state in zip(guests, before, strict=True):
            guest.resumed(state)
    finally:
        for host in pair.hosts:
            run(host, *DOM0_WEIGHT, "256")
        for guest in guests:
            guest.destroy()
