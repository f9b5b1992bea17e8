"""Triple faults in what Xen printed (`xl dmesg`). Shipped into dom0 too; needs nothing but Python.

    (XEN) d5v0 Triple fault - invoking HVM shutdown action 1
    (XEN) *** Dumping Dom5 vcpu#0 state: ***
    (XEN) ----[ Xen-4.17.7  x86_64  debug=n  Not tainted ]----
    (XEN) CPU:    1
    (XEN) RIP:    e008:[<ffff82d0402e9f3d>]
    (XEN) RFLAGS: 0000000000010046   CONTEXT: hvm guest (d5v0)
    ...                                                              registers, up to the next fault

QEMU's emulated SVM now and then fails so that Xen sees a triple fault of a guest with Xen's *own* registers in it:
its code segment, e008, and an address of its image, ffff82d0…, where no guest runs. It also meets guests with their
own registers, among them some that have only booted and that nobody saved or restored; but a bug of a restore looks
like that. `judge` says what becomes of a test that failed meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

_BEGIN = re.compile(r"^.*Triple fault.*$", flags=re.MULTILINE)
_DOMAIN = re.compile(r"\bd(?P<domid>\d+)v\d+ Triple fault")
_PROGRAM_COUNTER = re.compile(r"\bRIP:\s+(?P<segment>[0-9a-f]{4}):\[<(?P<address>[0-9a-f]{16})>\]")

XEN_SEGMENT = "e008"
XEN_IMAGE = "ffff82d0"


@dataclass(frozen=True)
class TripleFault:
    """One that Xen reported."""

    dump: str
    """From its first line to that of the next fault, or to the end."""

    @property
    def domid(self) -> int | None:
        """Whose it was; None when Xen's line does not say."""
        found = _DOMAIN.search(self.dump)
        return int(found["domid"]) if found is not None else None

    @property
    def by_emulator(self) -> bool:
        """Whether the registers are Xen's own. Without registers, or with others, it counts as the guest's."""
        found = _PROGRAM_COUNTER.search(self.dump)
        return found is not None and (
            found["segment"] == XEN_SEGMENT and found["address"].startswith(XEN_IMAGE)
        )


class Verdict(Enum):
    """What becomes of a test that failed."""

    NO_EXCUSE = "no triple fault: the test has failed"
    REPEAT = "the emulator's: the test is run again"
    PASS_TWICE = "one that may be ours: the test must pass twice in a row"
    FAILED = "one too many in this run that may be ours: the test has failed"


MOST_MAYBE_OURS = 3
"""So many tests of one run may meet a fault that may be ours: the emulator makes one or two an hour of those."""


def judge(faults: Sequence[TripleFault], untouched: Callable[[int], bool], nr_before: int) -> Verdict:
    """Judge a failure during which these faults were reported.

    `untouched`: whether a domain was only booted, so that no save or restore can be the reason. `nr_before`: how many
    tests of this run had a fault before that may be ours. A bug comes back: such a test must pass twice in a row, and
    there may be `MOST_MAYBE_OURS` of them.
    """
    if not faults:
        return Verdict.NO_EXCUSE
    if all(one.by_emulator or (one.domid is not None and untouched(one.domid)) for one in faults):
        return Verdict.REPEAT
    return Verdict.FAILED if nr_before >= MOST_MAYBE_OURS else Verdict.PASS_TWICE


def parse(log: str) -> list[TripleFault]:
    """Return the triple faults in Xen's log, in order."""
    starts = [found.start() for found in _BEGIN.finditer(log)]
    return [TripleFault(log[at:end]) for at, end in pairwise([*starts, len(log)])]
