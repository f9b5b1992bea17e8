"""By which interface connections leave this host, and what is told of that."""

from __future__ import annotations

import builtins
import ctypes
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from saverestore.transport.route import Route, route_to
from saverestore.transport.sockets import Way


def interface(folder: Path, name: str, *, beneath: tuple[str, ...] = (), **facts: str) -> None:
    """One as /sys/class/net has it."""
    (folder / name / "bonding").mkdir(parents=True)
    for fact, text in facts.items():
        (folder / name / (fact if fact != "slaves" else "bonding/slaves")).write_text(f"{text}\n")
    for lower in beneath:
        (folder / name / f"lower_{lower}").touch()


@pytest.mark.parametrize("said", ["-1", "0", "", "Unknown"])
def test_a_speed_that_is_not_known_is_not_told(tmp_path, monkeypatch, said):
    kernel(monkeypatch, "eth1")
    interface(tmp_path, "eth1", mtu="1500", speed=said)
    assert route_to("192.0.2.9", Way(), interfaces=tmp_path).for_people() == "by eth1, MTU 1500"


@pytest.fixture
def without_pyroute2(monkeypatch):
    real = builtins.__import__

    def importing(name: str, *given: Any, **more: Any) -> Any:
        if name == "pyroute2":
            raise ImportError(name)
        return real(name, *given, **more)

    monkeypatch.setattr(builtins, "__import__", importing)


class Kernel:
    """Answers as pyroute2's IPRoute does. `asked`: what it was asked for."""

    def __init__(self, index: int, **told: str) -> None:
        self.told = {"RTA_OIF": index} | told
        self.asked: dict[str, Any] = {}

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None: ...

    def route(self, command: str, **asked: Any) -> list[Any]:
        assert command == "get"
        self.asked = asked
        return [SimpleNamespace(get_attr=self.told.get)]


def kernel(monkeypatch, name: str, **told: str) -> Kernel:
    made = Kernel(7, **told)
    monkeypatch.setitem(sys.modules, "pyroute2", SimpleNamespace(IPRoute=lambda: made))
    monkeypatch.setattr("socket.if_indextoname", {7: name}.__getitem__)
    monkeypatch.setattr("socket.if_nametoindex", {name: 7}.__getitem__)
    return made


def test_a_route_is_the_kernels_and_its_facts_are_the_interfaces(tmp_path, monkeypatch):
    told = kernel(monkeypatch, "eth1", RTA_PREFSRC="10.1.0.1", RTA_GATEWAY="10.1.0.254")
    interface(tmp_path, "eth1", mtu="9000", speed="10000")
    route = route_to("192.0.2.9", Way(), interfaces=tmp_path)
    assert route == Route("eth1", "10.1.0.1", "10.1.0.254", 9000, 10000)
    assert route.for_people() == "by eth1, from 10.1.0.1, gateway 10.1.0.254, MTU 9000, 10000 Mbit/s"
    assert told.asked["dst"] == "192.0.2.9"
    assert "oif" not in told.asked


def test_the_interface_and_address_that_were_chosen_are_asked_for(tmp_path, monkeypatch):
    told = kernel(monkeypatch, "eth1", RTA_PREFSRC="10.1.0.1")
    route_to("192.0.2.9", Way("10.1.0.7", "eth1"), interfaces=tmp_path)
    assert (told.asked["oif"], told.asked["src"]) == (7, "10.1.0.7")


def test_of_a_bridge_over_a_bond_the_bonds_members_and_speed_are_told(tmp_path, monkeypatch):
    kernel(monkeypatch, "xenbr0")
    interface(tmp_path, "xenbr0", beneath=("vif3.0", "bond0.7"), mtu="1500", speed="")
    interface(tmp_path, "vif3.0", speed="100000")
    interface(tmp_path, "bond0.7", beneath=("bond0",), speed="-1")
    interface(tmp_path, "bond0", beneath=("eth1", "eth2"), speed="20000", slaves="eth1 eth2")
    route = route_to("192.0.2.9", Way(), interfaces=tmp_path)
    assert (route.speed_mbit, route.members) == (20000, ("eth1", "eth2"))
    assert route.for_people() == "by xenbr0, MTU 1500, 20000 Mbit/s, bond of eth1 and eth2"


def test_without_the_package_a_chosen_interface_is_told_from_sys_alone(tmp_path, without_pyroute2):
    interface(tmp_path, "eth1", mtu="1500", speed="1000")
    route = route_to("192.0.2.9", Way("10.1.0.7", "eth1"), interfaces=tmp_path)
    assert route == Route("eth1", "10.1.0.7", "", 1500, 1000)


def test_without_the_package_and_without_a_choice_nothing_is_told(without_pyroute2):
    assert route_to("192.0.2.9", Way()) is None


@pytest.mark.parametrize("host", ["no-such-host.invalid", "", "a\0b", "x" * 300])
def test_a_host_that_is_none_has_no_route_and_is_no_error(monkeypatch, host):
    kernel(monkeypatch, "eth1")
    monkeypatch.setattr("socket.getaddrinfo", lambda *_given, **_more: [][0])
    assert route_to(host, Way()) is None


def test_whatever_the_kernel_says_instead_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyroute2", SimpleNamespace(IPRoute=lambda: 1 / 0))
    assert route_to("192.0.2.9", Way(), interfaces=tmp_path) is None
    assert route_to("192.0.2.9", Way("", "eth9"), interfaces=tmp_path) == Route("eth9")


def test_interfaces_that_are_made_of_each_other_are_not_followed_for_ever(tmp_path, monkeypatch):
    kernel(monkeypatch, "a")
    interface(tmp_path, "a", beneath=("b",))
    interface(tmp_path, "b", beneath=("a",), speed="10")
    assert route_to("192.0.2.9", Way(), interfaces=tmp_path).speed_mbit == 10


def test_a_real_kernel_tells_of_an_interface_and_a_gateway():
    pytest.importorskip("pyroute2")

    def ask() -> list[Route | None]:
        # A thread's own network: nothing of this process's is touched, and it is gone with the thread.
        if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):  # CLONE_NEWNET
            pytest.skip("a network of its own needs root")
        for line in (
            "link add way0 type veth peer name end0",
            "link set end0 up",
            "addr add 10.9.0.1/24 dev way0",
            "addr add 10.9.0.7/24 dev way0",
            "link set way0 up",
            "route add 10.99.0.0/16 via 10.9.0.254",
        ):
            if subprocess.run(["ip", *line.split()], capture_output=True, check=False).returncode:
                pytest.skip("no such interfaces here")
        return [
            route_to(host, way, interfaces=Path("/nowhere"))
            for host, way in (
                ("10.9.0.2", Way()),
                ("10.99.0.1", Way("10.9.0.7")),
                ("10.99.0.1", Way("", "way0")),
                ("192.0.2.77", Way()),
            )
        ]

    with ThreadPoolExecutor(1) as threads:
        here, beyond, chosen, nowhere = threads.submit(ask).result()
    assert here == Route("way0", "10.9.0.1")
    assert beyond == Route("way0", "10.9.0.7", "10.9.0.254")
    assert chosen == Route("way0", "10.9.0.1", "10.9.0.254")
    assert nowhere is None
