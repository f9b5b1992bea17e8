"""Tests on two real Xen hosts: `tools/test --variant pair` boots them, and runs pytest on the lab's machine.

Here, as a host that is switched off cannot run a test. Without a pair they are skipped with that reason; with
PYSAVE_REQUIRE_PAIR=1 its absence is a failure. After each test both hosts run, the cable is whole, and no domain is
left over.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from on_xen import RUN, Emulated

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import pair_lab
from pair_lab import FREED_IS_ZERO, Guest, domains_of, is_running, kept, run
from xenlab import triple_faults
from xenlab.pair import Host, Pair

HERE = Path(__file__).parent

FIRST = "_hosts"
"""The file of tests that runs first: without it nothing was shown of the pair."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cold: commands are started as a user does, not by a server")
    if config.stash[RUN].emulated is None and Pair().is_there:
        faults = Faults(Pair())
        config.stash[RUN].emulated = Emulated(
            folder=HERE,
            triple_faults=triple_faults,
            faults=faults.until_now,
            untouched=faults.untouched,
            first=FIRST,
            boots_repeated=pair_lab.boots_repeated,
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: HERE in item.path.parents and not item.path.stem.endswith(FIRST))
    if Pair().is_there or os.environ.get("PYSAVE_REQUIRE_PAIR"):
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs a pair of the lab's hosts: tools/lab pair up"))


class Faults:
    """The triple faults that both Xens reported."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.by_domid: dict[int, list[Host]] = {}

    def until_now(self) -> Sequence[Any]:
        found = []
        for host in self.pair.hosts:
            if host.state is not None:
                for fault in triple_faults.parse(run(host, "xl", "dmesg", "-c").stdout):
                    self.by_domid.setdefault(fault.domid, []).append(host)
                    found.append(fault)
        return found

    def untouched(self, domid: int) -> bool:
        """On each host where a domain of this number had one."""
        return all(pair_lab.only_booted(host, domid) for host in self.by_domid[domid])


@pytest.fixture(scope="session")
def pair() -> Iterator[Pair]:
    """The pair, both hosts running."""
    found = Pair()
    for host in found.hosts:
        run(host, "xl", "dmesg", "-c")  # triple faults of before
    with pair_lab.quick_commands(found):
        yield found
    while kept:
        kept.pop().destroy()


@pytest.fixture
def a(pair: Pair) -> Host:
    return pair.a


@pytest.fixture
def b(pair: Pair) -> Host:
    return pair.b


@pytest.fixture(autouse=True)
def commands_as_users_start_them(request: pytest.FixtureRequest, pair: Pair) -> Iterator[None]:
    """For a test marked `cold`; others have their commands from a server."""
    if request.node.get_closest_marker("cold"):
        with pair_lab.cold_commands(pair):
            yield
    else:
        yield


@pytest.fixture
def xl_migrates(pair: Pair) -> None:
    """Skip a test of stock xl's migrations where it has none: Xen's own tools save nothing on ARM."""
    if pair.a.variant.is_arm64:
        pytest.skip("stock xl saves nothing on arm64")


@pytest.fixture
def no_kept_guest(pair: Pair) -> None:
    """No guest of an earlier test is on either host."""
    while kept:
        kept.pop().destroy()


@pytest.fixture
def guest(request: pytest.FixtureRequest, pair: Pair, a: Host, no_kept_guest: None) -> Iterator[Guest]:
    """A running, healthy guest on hosta, and no other on either host; parametrised, of that (kind, vcpus)."""
    kind, vcpus = getattr(request, "param", ("pvh", 1))
    pair_lab.need_kind(pair, kind)
    found = Guest(pair, f"{kind}{vcpus}", kind, vcpus)
    found.create(a, more=FREED_IS_ZERO)
    yield found
    found.destroy()


@pytest.fixture
def kept_guest(pair: Pair) -> Guest:
    """A running, healthy PV guest on one of the hosts. It stays where a test leaves it, for the next one."""
    if kept and not is_running(kept[0].host, kept[0].name):
        kept.pop().destroy()
    if not kept:
        # The emulator is at its best with PV guests. How much it writes does not matter here.
        found = Guest(pair, "kept", "pvh" if pair.a.variant.is_arm64 else "pv", memory_mib=96)
        found.create(pair.a, pages=512, rate=50, more=FREED_IS_ZERO)
        kept.append(found)
    return kept[0]


@pytest.fixture(autouse=True)
def nothing_is_left_over(pair: Pair) -> Iterator[None]:
    """A test that leaves a domain, besides the kept one, has failed. Hosts and cable are put right for the next."""
    yield
    for host in pair.hosts:
        pair.power_on(host.member.name)
        if run(host, "tc qdisc show dev eth1 | grep -q netem").returncode == 0:  # healing takes seconds
            pair.heal(sent_by=host.member.name)
    expected = {host.label: [one.name for one in kept if one.host.label == host.label] for host in pair.hosts}
    found = {host.label: list(domains_of(host)) for host in pair.hosts}
    if found != expected:
        kept.clear()
        for host in pair.hosts:
            for name in found[host.label]:
                run(host, "xl", "destroy", name)
    assert found == expected, "domains are left over, or missing"
