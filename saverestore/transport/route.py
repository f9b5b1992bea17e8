"""By which interface connections to another host leave this one, and what that can carry: to be told, nothing else.

    destination ── the kernel's route (rtnetlink) ─► interface ── /sys/class/net ─► MTU, speed, what is beneath it

`pyroute2` is an extra: without it the interface is known where it was chosen, and else nothing is told. Nothing here
is an error: a host may have no /sys, or a kernel that says other things.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saverestore.transport.sockets import Way

INTERFACES = Path("/sys/class/net")

OF_GUESTS = re.compile(r"(vif|tap)[0-9]")
"""Ports of a bridge that belong to domains: no packet to another host leaves by them."""

DEEPEST = 4
"""A bridge over a VLAN over a bond has three."""


@dataclass(frozen=True)
class Route:
    """`interface`: the one that packets leave by. `source`: the address of this host that they have; `gateway`: to
    which they go first; each "" where nobody knows, or there is none.

    `mtu`: bytes; `speed_mbit`: what the interface, or what is beneath it, has negotiated; None: not known. `members`:
    of the bond that it is, or is made of; of one with several, a single connection uses one member.
    """

    interface: str
    source: str = ""
    gateway: str = ""
    mtu: int | None = None
    speed_mbit: int | None = None
    members: tuple[str, ...] = ()

    def for_people(self) -> str:
        """One line."""
        parts = [f"by {self.interface}"]
        parts += [f"from {self.source}"] if self.source else []
        parts += [f"gateway {self.gateway}"] if self.gateway else []
        parts += [f"MTU {self.mtu}"] if self.mtu else []
        parts += [f"{self.speed_mbit} Mbit/s"] if self.speed_mbit else []
        parts += [f"bond of {' and '.join(self.members)}"] if self.members else []
        return ", ".join(parts)


def route_to(host: str, way: Way, *, interfaces: Path = INTERFACES) -> Route | None:
    """How connections to a host leave this one, as far as that can be found out; None where it cannot at all."""
    found = None
    # Names that are none, kernels that say other things, changes of pyroute2.
    with contextlib.suppress(Exception):
        found = _asked(host, way)
    if found is None:
        found = Route(way.interface, way.source) if way.interface else None
    return found and _with_facts(found, interfaces)


def _asked(host: str, way: Way) -> Route | None:
    """What the kernel says, without what the interface can do; `mtu` where the route has one of its own."""
    try:
        import pyroute2
    except ImportError:
        return None
    family, _, _, _, where = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    asked: dict[str, Any] = {"dst": str(where[0]).partition("%")[0], "family": family}
    if way.interface:
        asked["oif"] = socket.if_nametoindex(way.interface)
    if way.source:
        asked["src"] = way.source
    with pyroute2.IPRoute() as kernel:
        (told, *_) = kernel.route("get", **asked)
    metrics = told.get_attr("RTA_METRICS")
    return Route(
        socket.if_indextoname(told.get_attr("RTA_OIF")),
        way.source or told.get_attr("RTA_PREFSRC") or "",
        told.get_attr("RTA_GATEWAY") or "",
        (metrics and metrics.get_attr("RTAX_MTU")) or None,
    )


def _with_facts(route: Route, interfaces: Path) -> Route:
    layers = list(_beneath(route.interface, interfaces))
    speeds = [speed for name in layers if (speed := _number(interfaces / name / "speed"))]
    members = [found for name in layers if (found := _read(interfaces / name / "bonding" / "slaves").split())]
    return Route(
        route.interface,
        route.source,
        route.gateway,
        route.mtu or _number(interfaces / route.interface / "mtu"),
        speeds[0] if speeds else None,
        tuple(members[0]) if members else (),
    )


def _beneath(name: str, interfaces: Path, depth: int = 0) -> Iterator[str]:
    """The interface, and those that it is made of, as bridges, VLANs and bonds are; without the ports of guests."""
    yield name
    if depth < DEEPEST:
        for lower in sorted(path.name.removeprefix("lower_") for path in (interfaces / name).glob("lower_*")):
            if not OF_GUESTS.match(lower):
                yield from _beneath(lower, interfaces, depth + 1)


def _number(path: Path) -> int | None:
    """None where there is none: without a cable reading the speed is an error, and some drivers say -1."""
    try:
        number = int(_read(path))
    except ValueError:
        return None
    return number if number > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
