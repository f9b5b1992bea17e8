"""Triple faults in what Xen printed (`xl dmesg`). Shipped into dom0 too; needs nothing but Python.

    (XEN) d5v0 Triple fault - invoking HVM shutdown action 1
    (XEN) *** Dumping Dom5 vcpu#0 state: ***
    (XEN) ----[ Xen-4.17.7  x86_64  debug=n  Not tainted ]----
    (XEN) CPU:    1
    (XEN) RIP:    e008:[<ffff82d0402e9f3d>]
    (XEN) RFLAGS: 0000000000010046   CONTEXT: hvm guest (d5v0)
    ...                                                              registers, up to the next fault

QEMU's emulated SVM now and then fails so that Xen sees a triple fault of a guest with Xen's *own* registers in it:
its code segment, e008, and an address of its image, ffff82d0…, where no guest runs. A triple fault with the guest's
registers is the guest's, and a bug of a restore looks like that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

_BEGIN = re.compile(r"^.*Triple fault.*$", flags=re.MULTILINE)
_PROGRAM_COUNTER = re.compile(r"\bRIP:\s+(?P<segment>[0-9a-f]{4}):\[<(?P<address>[0-9a-f]{16})>\]")

XEN_SEGMENT = "e008"
XEN_IMAGE = "ffff82d0"


@dataclass(frozen=True)
class TripleFault:
    """One that Xen reported."""

    dump: str
    """From its first line to that of the next fault, or to the end."""

    @property
    def by_emulator(self) -> bool:
        """Whether the registers are Xen's own. Without registers, or with others, it counts as the guest's."""
        found = _PROGRAM_COUNTER.search(self.dump)
        return found is not None and (
            found["segment"] == XEN_SEGMENT and found["address"].startswith(XEN_IMAGE)
        )


def parse(log: str) -> list[TripleFault]:
    """Return the triple faults in Xen's log, in order."""
    starts = [found.start() for found in _BEGIN.finditer(log)]
    return [TripleFault(log[at:end]) for at, end in pairwise([*starts, len(log)])]
