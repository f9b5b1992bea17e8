"""The shared_info page of a running domain: found by what is in it, and proved by making Xen write into it."""

from __future__ import annotations

import random
import time

from pyxc import arm64
from saverestore.errors import DomainError
from saverestore.guest.arm64.find import WallClock, shared_info_candidates, time_offset_of, wall_clock
from saverestore.guest.arm64.memory import KeptMemory
from saverestore.guest.x86.common import Handles
from saverestore.interrupts import shield

OFFSETS = (1 << 24, 1 << 25)
"""Of these a time offset is drawn: larger than any that a domain on a sane host has, so that it cannot be one."""

WHOLE_OFFSET = 1 << 31


def find_shared_info(handles: Handles, domid: int, memory: KeptMemory) -> int:
    """The gfn of the domain's shared_info page. DomainError unless exactly one page proves to be it.

    The domain is paused for the proof, some milliseconds, during which its wall clock offset is another one.
    """
    proved = []
    for gfn in _candidates(memory):
        offset = _prove(handles, domid, gfn)
        if offset is not None:
            proved.append(gfn)
    if len(proved) != 1:
        found = f"{len(proved)} pages" if proved else "no page"
        raise DomainError(
            f"domain {domid}: {found} of its memory prove{'s' if not proved else ''} to be what it shares with Xen "
            "(shared_info); it cannot be saved, and goes on running"
        )
    return proved[0]


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


def _prove(handles: Handles, domid: int, gfn: int) -> int | None:
    """Set the domain's time offset and see whether this page's clock moves: the offset it had before, or None.

    Xen writes a domain's wall clock when it is told the host's. Told the same pair of times again and again, the only
    thing that moves it is the offset. There is no call to read that (and on ARM it is not 0, but the time at which
    the domain was made): it is what the clock moved by, and is put back.
    """
    xen = handles.xen
    with shield(), handles.memory.map_page(domid, gfn) as mapping:
        page = mapping.pages[0]
        now_ns, system_ns = time.time_ns(), time.clock_gettime_ns(time.CLOCK_MONOTONIC)

        def told() -> WallClock:
            arm64.set_host_time(xen, now_ns, system_ns)
            return wall_clock(page)

        xen.pause(domid)
        try:
            before = told()
            drawn = random.randrange(*OFFSETS)
            arm64.set_time_offset(xen, domid, drawn)
            original = time_offset_of(before, told(), drawn)
            if original is not None and not -WHOLE_OFFSET <= original < WHOLE_OFFSET:
                original = None
            if original is None:
                return None
            arm64.set_time_offset(xen, domid, original)
            after = told()
            return original if (after.sec, after.nsec) == (before.sec, before.nsec) else None
        finally:
            xen.unpause(domid)
