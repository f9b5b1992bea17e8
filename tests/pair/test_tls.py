"""`pymigrate` over TLS between two real Xen hosts: who is let in, who is not, and what plain TCP needs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pair_lab import Command, Guest, domains_of, is_running, must, run, states_of
from xenlab import certificates
from xenlab.pair import Host, Pair

pytestmark = pytest.mark.slow

OTHERS = "/run/other-certificates"
LISTENS_WITHIN_S = 60.0


@contextmanager
def receiver(host: Host, *words: str, at: str = "tls://0.0.0.0:8701") -> Iterator[Command]:
    """A receiver that listens there. It is ended after this block if it has not ended by then."""
    under_way = Command(host, "pymigrate", "receive", "--listen", at, *words)
    port = at.rpartition(":")[2]
    try:
        deadline = time.monotonic() + LISTENS_WITHIN_S
        while run(host, f"ss -Hltn 'sport = :{port}' | grep -q .").returncode != 0:
            assert time.monotonic() < deadline, "it does not listen"
            threading.Event().wait(0.5)
        yield under_way
    finally:
        run(host, "kill -INT $(pgrep -f '^[^ ]*python3 [^ ]*pymigrate receive') 2> /dev/null")
        under_way.finish()


@pytest.fixture(scope="module")
def certified(pair: Pair) -> Pair:
    """Both hosts have certificates of one CA, and let each other in."""
    certificates.give(pair.hosts)
    return pair


def test_a_guest_is_moved_over_tls_there_and_back(certified: Pair, a: Host, b: Host, guest: Guest) -> None:
    state = guest.state()
    for here, there in ((a, b), (b, a)):
        with receiver(there) as receiving:
            said = run(here, "pymigrate", guest.name, f"tls://{there.label}")
            assert said.returncode == 0, said.stderr
            assert receiving.finish() == 0, receiving.lines
        guest.has_moved_to(there)
        state = guest.resumed(state)
        assert domains_of(here) == {}
        assert is_running(there, guest.name)
        assert (states_of(here)[-1], states_of(there)[-1]) == ("DONE", "RUNNING")


@pytest.mark.parametrize(
    ("whose", "reason"),
    [
        ("of another CA", "does not accept this host's certificate"),
        ("expired", "has expired"),
        ("not on the list", "not on"),
    ],
)
def test_who_has_no_right_certificate_is_refused_and_the_guest_is_untouched(
    certified: Pair, kept_guest: Guest, whose: str, reason: str
) -> None:
    here, there = kept_guest.host, kept_guest.other_host
    before = kept_guest.state()
    with certificates.authority() as ours, certificates.authority() as strange:
        server, line_of_there = ours.certify(there.label)
        own, line_of_here = (strange if whose == "of another CA" else ours).certify(
            here.label, days=-3 if whose == "expired" else 30
        )
        lines = [line_of_there] if whose == "not on the list" else [line_of_here, line_of_there]
        certificates.put(there, OTHERS, server | {"allowed": "".join(f"{line}\n" for line in lines).encode()})
        certificates.put(here, OTHERS, own | {"ca.pem": server["ca.pem"]})
    files = [word for name in ("cert", "key", "ca") for word in (f"--{name}", f"{OTHERS}/{name}.pem")]
    with receiver(there, *files, "--allow", f"{OTHERS}/allowed") as receiving:
        said = run(here, "pymigrate", *files, kept_guest.name, f"tls://{there.label}")
        assert said.returncode not in (0, 7), said.stderr
        assert reason in said.stderr
    assert any("refused" in line for line in receiving.lines), receiving.lines
    kept_guest.resumed(before)
    assert is_running(here, kept_guest.name)
    assert domains_of(there) == {}


def test_plain_tcp_is_refused_unless_both_sides_call_the_network_trusted(
    kept_guest: Guest,
) -> None:
    here, there = kept_guest.host, kept_guest.other_host
    said = run(here, "pymigrate", kept_guest.name, "tcp://10.0.9.2:8700")
    assert said.returncode == 2
    assert "--trust-network" in said.stderr
    said = run(there, "pymigrate", "receive", "--listen", "tcp://10.0.9.2:8700")
    assert said.returncode == 2
    assert "--trust-network" in said.stderr
    assert is_running(here, kept_guest.name)
    must(there, "xl", "list")


def test_a_guest_is_moved_over_plain_tcp_that_both_sides_call_trusted(a: Host, b: Host, guest: Guest) -> None:
    before = guest.state()
    address = f"tcp://{certificates.ADDRESSES[b.label]}:8700"
    with receiver(b, "--trust-network", at=address) as receiving:
        said = run(a, "pymigrate", "--trust-network", "--streams", "4", guest.name, address)
        assert said.returncode == 0, said.stderr
        assert receiving.finish() == 0, receiving.lines
    assert "4 connections" in said.stderr
    guest.has_moved_to(b)
    guest.resumed(before)
    assert domains_of(a) == {}
