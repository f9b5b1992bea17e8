"""The shared_info page of a running domain: found by what is in it, and proved by making Xen write into it."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack

from pyxc import arm64
from saverestore.errors import DomainError, ErrorName
from saverestore.guest.arm64.find import WallClock, shared_info_candidates, wall_clock
from saverestore.guest.arm64.memory import KeptMemory
from saverestore.guest.common.handles import Handles
from saverestore.interrupts import shield

SHIFTS_NS = (100_000_000, 900_000_000)
"""Of these it is drawn how far the clock is moved: nothing else moves by that."""

ATTEMPTS = 3
"""Dom0's kernel tells Xen the time now and then, and may do so just between two of our steps."""


def find_shared_info(handles: Handles, domid: int, memory: KeptMemory) -> int:
    """The gfn of the domain's shared_info page. DomainError unless exactly one page proves to be it.

    The domain goes on running. For some milliseconds Xen believes that the wall clock is less than a second further
    than it is; were we killed meanwhile, until dom0's kernel tells it again, eleven minutes later at most.
    """
    gfns = _candidates(memory)
    proved: list[int] = []
    for _ in range(ATTEMPTS):
        proved = _prove(handles, domid, gfns)
        if len(proved) == 1:
            return proved[0]
    found = f"{len(proved)} pages" if proved else "no page"
    raise DomainError(
        f"domain {domid}: {found} of its memory prove{'s' if not proved else ''} to be what it shares with Xen "
        "(shared_info); it cannot be saved, and is running",
        name=ErrorName.DOMAIN_UNREADABLE,
    )


def _candidates(memory: KeptMemory) -> list[int]:
    found = []
    for first, mapping in memory.chunks():
        if (mapping.errors == 0).all():
            found += [first + int(index) for index in shared_info_candidates(mapping.pages)]
            continue
        for index in (mapping.errors == 0).nonzero()[0]:
            if len(shared_info_candidates(mapping.pages[index : index + 1])):
                found.append(first + int(index))
    return found


def _prove(handles: Handles, domid: int, gfns: list[int]) -> list[int]:
    """Move Xen's wall clock by a time drawn by lot, and back: those of these pages whose clocks moved just so.

    Xen thereupon writes the clock in each domain's shared_info page anew, and nobody else does.
    """
    now_ns, system_ns = time.time_ns(), time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    drawn_ns = random.randrange(*SHIFTS_NS)

    def clocks_at(time_ns: int) -> list[WallClock]:
        arm64.set_host_time(handles.xen, time_ns, system_ns)
        return [wall_clock(page) for page in pages]

    with ExitStack() as stack, shield():
        pages = [stack.enter_context(handles.memory.map_page(domid, gfn)).pages[0] for gfn in gfns]
        original = clocks_at(now_ns)
        try:
            moved = clocks_at(now_ns + drawn_ns)
        finally:
            after = clocks_at(now_ns)
    return [
        gfn
        for gfn, *clocks in zip(gfns, original, moved, after, strict=True)
        if [clock.ns - clocks[0].ns for clock in clocks] == [0, drawn_ns, 0]
    ]
