"""A link between two network name spaces, as slow, late and lossy as is asked for: veth, netem and a token bucket.

What each end sends passes netem, which delays, loses and holds to the rate. Needs root, and pyroute2.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from xenlab.link import FULL_FRAME_BYTES, Link

from benchmarks.errors import BenchError

ADDRESSES = ("10.203.0.1", "10.203.0.2")
PREFIX = 24
BURST_S = 0.002
"""So much is sent at once by the token bucket."""

LEAST_BURST = 64_000
HANDLE = 0x10000


class NoWire(BenchError):
    """This machine has no links that can be shaped so."""


def _pyroute2() -> Any:
    try:
        import pyroute2
    except ImportError as error:
        raise NoWire(
            "links between name spaces need the Python package pyroute2 (Debian: python3-pyroute2)"
        ) from error
    if os.geteuid() != 0:
        raise NoWire("links between name spaces need root")
    return pyroute2


@dataclass(frozen=True)
class Wire:
    """Two name spaces with a link between them; `ends` are their names, and have `ADDRESSES`."""

    ends: tuple[str, str]

    def enter(self, end: int) -> None:
        """Have this process use the network of one end from now on."""
        _pyroute2().netns.setns(self.ends[end])

    def cut(self) -> None:
        """Nothing passes from now on, and nobody is told."""
        self._switch("down")

    def heal(self) -> None:
        """The link is as it was."""
        self._switch("up")

    def _switch(self, state: str) -> None:
        # The other end sees its carrier go, as with a cable that is pulled out; addresses and routes stay.
        with _pyroute2().NetNS(self.ends[1]) as there:
            there.link("set", index=there.link_lookup(ifname=self.ends[1])[0], state=state)


def _shape(there: Any, index: int, link: Link) -> None:
    parent = {}
    if link.delay_us or link.loss_percent:
        there.tc("add", "netem", index, handle=HANDLE, limit=link.queue_frames, delay=link.delay_us,
                 loss=link.loss_percent)  # fmt: skip
        parent = {"parent": HANDLE + 1}
    if link.rate_bits_s is not None:
        rate = link.rate_bits_s // 8
        burst = max(LEAST_BURST, int(rate * BURST_S))
        there.tc("add", "tbf", index, handle=2 * HANDLE, rate=rate, burst=burst,
                 limit=burst + link.queue_frames * FULL_FRAME_BYTES, **parent)  # fmt: skip


@contextmanager
def wire(link: Link) -> Iterator[Wire]:
    """A link that is so; gone with the block. BenchError where it cannot be had."""
    pyroute2 = _pyroute2()
    made = Wire((f"bench{os.getpid()}a", f"bench{os.getpid()}b"))
    try:
        try:
            for end in made.ends:
                pyroute2.netns.create(end)
            with pyroute2.NetNS(made.ends[0]) as there:
                there.link("add", ifname=made.ends[0], kind="veth",
                           peer={"ifname": made.ends[1], "net_ns_fd": made.ends[1]})  # fmt: skip
            for end, address in zip(made.ends, ADDRESSES, strict=True):
                with pyroute2.NetNS(end) as there:
                    index = there.link_lookup(ifname=end)[0]
                    there.addr("add", index=index, address=address, prefixlen=PREFIX)
                    there.link("set", index=index, state="up")
                    _shape(there, index, link)
        except (pyroute2.NetlinkError, OSError) as error:
            raise NoWire(
                f"a link between two name spaces, {link}, cannot be made: {error}; the kernel needs veth, sch_tbf, "
                "and for delay and loss sch_netem"
            ) from error
        yield made
    finally:
        for end in made.ends:
            with contextlib.suppress(OSError):
                pyroute2.netns.remove(end)
