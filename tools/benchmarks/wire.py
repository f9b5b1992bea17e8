"""A link between two network name spaces, as slow, late and lossy as is asked for: veth, netem and a token bucket.

What each end sends passes netem, which delays, loses and holds to the rate; where the kernel has none, a process of
ours does (`tun_link`). Needs root, and pyroute2.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
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


def _shape(end: str, index: int, link: Link) -> None:
    parent = {}
    with _pyroute2().NetNS(end) as there:
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
    with ExitStack() as stack:
        try:
            for end in made.ends:
                pyroute2.netns.create(end)
                stack.callback(_remove, end)
            try:
                _by_veth(made, link)
            except pyroute2.NetlinkError as error:
                if error.code != errno.ENOENT or not (link.delay_us or link.loss_percent):
                    raise
                stack.enter_context(_by_process(made, link))  # this kernel has no netem
        except (pyroute2.NetlinkError, OSError) as error:
            raise NoWire(
                f"a link between two name spaces, {link}, cannot be made: {error}; the kernel needs veth and "
                "sch_tbf, and for delay and loss sch_netem or tun"
            ) from error
        yield made


def _remove(end: str) -> None:
    with contextlib.suppress(OSError):
        _pyroute2().netns.remove(end)


def _by_veth(made: Wire, link: Link) -> None:
    """Shaped by the kernel. Nothing is left of it where that fails."""
    with _pyroute2().NetNS(made.ends[0]) as there:
        there.link("add", ifname=made.ends[0], kind="veth",
                   peer={"ifname": made.ends[1], "net_ns_fd": made.ends[1]})  # fmt: skip
        try:
            for end, address in zip(made.ends, ADDRESSES, strict=True):
                _shape(end, _up(end, address), link)
        except BaseException:
            there.link("del", ifname=made.ends[0])
            raise


@contextmanager
def _by_process(made: Wire, link: Link) -> Iterator[None]:
    """Shaped by `tun_link`."""
    rate = (link.rate_bits_s or 10**9) // 8
    words = [
        *made.ends,
        rate,
        link.delay_us / 10**6,
        link.loss_percent / 100,
        link.queue_frames * FULL_FRAME_BYTES,
    ]
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("tun_link.py")), *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        if process.stdout.readline() != "ready\n":
            raise OSError(errno.ENODEV, "no tun devices")
        try:
            for end, address in zip(made.ends, ADDRESSES, strict=True):
                _up(end, address)
            yield
        finally:
            process.stdin.close()


def _up(end: str, address: str) -> int:
    """Have the end's device an address, and be used: its index."""
    with _pyroute2().NetNS(end) as there:
        index: int = there.link_lookup(ifname=end)[0]
        there.addr("add", index=index, address=address, prefixlen=PREFIX)
        there.link("set", index=index, state="up")
        return index
