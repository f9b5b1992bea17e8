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

from xenlab.link import CUT, Link

from benchmarks.errors import BenchError

ADDRESSES = ("10.203.0.1", "10.203.0.2")
PREFIX = 24
BURST_S = 0.002
"""So much is sent at once by the token bucket."""

ROOT, BUCKET = 0x10000, 0x20000


def _pyroute2() -> Any:
    try:
        import pyroute2
    except ImportError as error:
        raise BenchError(
            "links between name spaces need the Python package pyroute2 (Debian: python3-pyroute2)"
        ) from error
    if os.geteuid() != 0:
        raise BenchError("links between name spaces need root")
    return pyroute2


@dataclass(frozen=True)
class Wire:
    """Two name spaces with a link between them; `ends` are their names, and have `ADDRESSES`."""

    ends: tuple[str, str]

    def enter(self, end: int) -> None:
        """Have this process use the network of one end from now on."""
        _pyroute2().netns.setns(self.ends[end])

    def become(self, link: Link) -> None:
        """Let the link be so from now on, both ways."""
        for end in self.ends:
            with _pyroute2().NetNS(end) as there:
                index = there.link_lookup(ifname=end)[0]
                with contextlib.suppress(_pyroute2().NetlinkError):
                    there.tc("del", index=index, root=True)
                _shape(there, index, link)


def _shape(there: Any, index: int, link: Link) -> None:
    netem: dict[str, int | float] = {"limit": link.queue_frames}
    if link.delay_us:
        netem["delay"] = link.delay_us
    if link.loss_percent:
        netem["loss"] = link.loss_percent
    there.tc("add", "netem", index, handle=ROOT, **netem)
    if link.rate_bits_s is not None:
        rate = link.rate_bits_s // 8
        burst = max(16_000, int(rate * BURST_S))
        # Below netem, and with room for all that netem lets wait.
        there.tc("add", "tbf", index, handle=BUCKET, parent=ROOT + 1, rate=rate, burst=burst,
                 limit=burst + link.queue_frames * 1514)  # fmt: skip


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
            made.become(link)
        except (pyroute2.NetlinkError, OSError) as error:
            raise BenchError(f"a link between two name spaces cannot be made: {error}") from error
        yield made
    finally:
        for end in made.ends:
            with contextlib.suppress(OSError):
                pyroute2.netns.remove(end)


__all__ = ["ADDRESSES", "CUT", "Link", "Wire", "wire"]
