"""Hypervisor versions that break what a save or restore relies on: found out at its start, not by the guest."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pyxc.control import XenVersion

Version = tuple[int, int, int]


@dataclass(frozen=True)
class KnownBad:
    """`first` to `last`, both included. `what`: what such a version does, for people; `source`: who says so."""

    first: Version
    last: Version
    what: str
    source: str


LOSES_REGISTERS = "loses r8 to r15 of a vCPU whose context is read or set"

TABLE = (
    # Since xen 9f892f84c2 ("x86/domctl: Stop using XLAT_cpu_user_regs()"). By the release tags, 4.21.2 and 4.22.0
    # have the fix, bedbc17d84 ("x86/domctl: restore all registers in arch_{get,set}_info_guest()").
    KnownBad((4, 21, 0), (4, 21, 1), LOSES_REGISTERS, "xen.git bedbc17d84"),
)
"""All are of x86, and concern PV domains, and any domain that is resumed: libxc sets a context for it."""


def found(version: XenVersion) -> KnownBad | None:
    """What is known to be bad of the running one. A distribution may have mended it without another number."""
    patch = re.match(r"\.(\d+)", version.extra)
    number = (version.major, version.minor, int(patch[1]) if patch else 0)
    return next((bad for bad in TABLE if bad.first <= number <= bad.last), None)
