"""Two hosts as migration needs them: they reach each other, guests move by stock xl, faults can be made."""

from __future__ import annotations

import time

import pytest
from pair_lab import Guest, cut_link, domains_of, must, run, wait_for_line
from xenlab import link
from xenlab.link import CUT, Link
from xenlab.pair import Host, Pair

GUEST_ADDRESS = 77
PORT = 7777
SHARED = "/dev/vdb"

LISTENER = f"""
import socket
connection, address = socket.create_server(("10.0.9.2", {PORT})).accept()
print(address[0], flush=True)
while data := connection.recv(4096):
    print(len(data), flush=True)
"""
CONNECT = """python3 -c 'import socket; socket.create_connection(("10.0.9.2", 22), 5)'"""


@pytest.mark.core
@pytest.mark.parametrize(("source", "target"), [("a", "b"), ("b", "a")])
def test_root_of_each_host_reaches_the_other_without_a_question(pair: Pair, source: str, target: str) -> None:
    there = pair.host(target)
    assert must(pair.host(source), "ssh", there.label, "hostname").strip() == there.label


@pytest.mark.usefixtures("xl_migrates")
def test_stock_xl_migrates_a_guest_there_and_back(a: Host, b: Host, guest: Guest) -> None:
    before = guest.state()
    must(a, "xl", "migrate", guest.name, b.label)
    guest.has_moved_to(b)
    there = guest.resumed(before)
    must(b, "xl", "migrate", guest.name, a.label)
    guest.has_moved_to(a)
    guest.resumed(there)
    assert list(domains_of(a)) == [guest.name]
    assert domains_of(b) == {}


def test_a_guests_connection_to_the_other_host_goes_over_the_cable(pair: Pair, a: Host, b: Host) -> None:
    must(b, f"python3 -c '{LISTENER}' </dev/null >/run/received 2>&1 & sleep 1")
    guest = Guest(pair, "wired")
    net = ("--net", str(GUEST_ADDRESS), str(PORT), "--peer", "10.0.9.2")
    guest.create(a, more=net)
    try:
        must(b, "timeout 60 sh -c 'until grep -q 10.0.9.77 /run/received; do sleep 0.2; done'")
        must(b, "timeout 60 sh -c 'until [ $(wc -l < /run/received) -gt 5 ]; do sleep 0.2; done'")
    finally:
        guest.destroy()


def test_what_one_host_writes_to_the_disk_that_both_see_the_other_one_reads(a: Host, b: Host) -> None:
    must(a, f"echo written by hosta | dd of={SHARED} bs=512 conv=sync oflag=direct status=none")
    assert must(b, f"dd if={SHARED} bs=512 count=1 iflag=direct status=none").startswith("written by hosta")


def test_a_cut_cable_lets_nothing_through_until_it_is_healed(pair: Pair, a: Host) -> None:
    with cut_link(pair):
        assert "timed out" in run(a, CONNECT).stderr
        assert pair.shown_link() == {"a": CUT, "b": CUT}
    must(a, CONNECT)
    assert pair.shown_link() == {"a": Link(), "b": Link()}


def test_rate_delay_and_loss_are_those_asked_for(pair: Pair, a: Host) -> None:
    wanted = link.parse("100mbit", "20ms", "0.1%")
    pair.link(wanted)
    assert pair.shown_link() == {"a": wanted, "b": wanted}
    assert connect_s(a) > 0.04
    pair.heal()
    assert connect_s(a) < 0.04


def connect_s(host: Host) -> float:
    """How long it takes to connect to hostb: one round trip. The least of some, as emulation has its moments."""
    script = (
        "import socket, time\n"
        "def once():\n"
        "    start = time.monotonic()\n"
        '    socket.create_connection(("10.0.9.2", 22)).close()\n'
        "    return time.monotonic() - start\n"
        "print(min(once() for _ in range(5)))\n"
    )
    return float(must(host, f"python3 -c '{script}'"))


def test_a_host_whose_plug_was_pulled_has_what_it_had_flushed_and_no_guests(pair: Pair, b: Host) -> None:
    guest = Guest(pair, "lost")
    guest.create(b)
    must(
        b,
        "mkdir -p /var/lib/xen/pymigrate && echo granted > /var/lib/xen/pymigrate/x && sync -f /var/lib/xen",
    )
    began = time.monotonic()
    assert pair.power_off("b")
    assert time.monotonic() - began < 5
    pair.power_on("b")
    assert must(b, "cat", "/var/lib/xen/pymigrate/x").strip() == "granted"
    must(b, "rm -r /var/lib/xen/pymigrate")
    assert domains_of(b) == {}
    assert must(pair.a, "ssh", "hostb", "hostname").strip() == "hostb"


def test_a_guests_console_is_followed_on_the_host_where_it_is(a: Host, guest: Guest) -> None:
    counter = guest.state()["counter"]
    assert f"counter={counter + 10} " in wait_for_line(a, guest.name, f"counter={counter + 10} ")
