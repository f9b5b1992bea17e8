"""arm64: what no hypercall tells of a vCPU is in the restored domain what it was in the saved one."""

from __future__ import annotations

from pathlib import Path

import pytest
from xen_lab import Guest, must

VCPUS = pytest.mark.parametrize(
    "guest",
    [pytest.param(("pvh", 1), id="1vcpu"), pytest.param(("pvh", 2), id="2vcpus", marks=pytest.mark.slow)],
    indirect=True,
)

MOST_S = 120
"""So long at most between a register being loaded and it being read again, under emulation."""


pytestmark = pytest.mark.usefixtures("on_arm64")


def in_image(image: Path) -> tuple[int, list]:
    """The version of the GIC; of each vCPU, context and hidden registers by name."""
    from saverestore.guest.arm64.vcpu import unpack_record
    from saverestore.operations.image import opened
    from saverestore.stream.reader import LibxcReader
    from saverestore.stream.records import Arm64Platform, Arm64Vcpu

    gic, found = 0, []
    with opened(str(image)) as source:
        reader = LibxcReader(source.source)
        while not reader.ended:
            record = reader.next()
            if isinstance(record, Arm64Platform):
                gic = record.gic
            elif isinstance(record, Arm64Vcpu):
                context, hidden = unpack_record(record, gic)
                found.append((context, {register.name: value for register, value in hidden.items()}))
    return gic, found


def in_domain(domid: int, gic: int, nr_vcpus: int) -> list:
    """The same of a paused domain, which is left as it was."""
    from saverestore.guest.arm64.stubs import Piece, Scratch, get_context, set_context
    from saverestore.guest.arm64.vcpu import read_slots
    from saverestore.guest.common.handles import open_handles

    with open_handles() as handles:
        contexts = [get_context(handles, domid, number) for number in range(nr_vcpus)]
        with Scratch(handles, domid, nr_vcpus, gic) as scratch:
            scratch.run(Piece.SAVE, contexts, range(nr_vcpus), lambda: handles.xen.unpause(domid))
            hidden = [read_slots(scratch.data(number), gic) for number in range(nr_vcpus)]
        for number, context in enumerate(contexts):
            set_context(handles, domid, number, context)
    return [
        (context, {register.name: value for register, value in values.items()})
        for context, values in zip(contexts, hidden, strict=True)
    ]


@VCPUS
def test_registers_saved_and_restored_and_read_again_are_the_same_but_for_those_that_move(
    guest: Guest, images: Path
):
    before = guest.state()
    must("pysave", guest.name, str(images / "a.img"))
    gic, saved = in_image(images / "a.img")
    domid = int(must("pyrestore", "--paused", "--no-watch", str(images / "a.img")))
    again = in_domain(domid, gic, guest.vcpus)
    for number, ((context, hidden), (context_now, now)) in enumerate(zip(saved, again, strict=True)):
        # vCPU 0 comes back from its hypercall, with the result of a restored domain.
        assert context_now == (context.with_x0(0) if number == 0 else context)
        # Time goes on: timers fire as much later as the counter of the new domain is ahead of the old one's.
        shift = (now["cntv_cval_el0"] - hidden["cntv_cval_el0"]) % 2**64
        assert (now["cntp_cval_el0"] - hidden["cntp_cval_el0"]) % 2**64 == shift
        since_loaded = (now["cntvct_el0"] - hidden["cntvct_el0"] - shift) % 2**64
        assert since_loaded < MOST_S * hidden["cntfrq_el0"]
        # Whether one fired is for the processor to say; whether it is enabled is the guest's.
        assert now["cntv_ctl_el0"] & 1 == hidden["cntv_ctl_el0"] & 1
        assert now["cntp_ctl_el0"] & 3 == hidden["cntp_ctl_el0"] & 3
        moved = {"cntv_cval_el0", "cntp_cval_el0", "cntvct_el0", "cntv_ctl_el0", "cntp_ctl_el0"}
        assert {n: v for n, v in now.items() if n not in moved} == {
            n: v for n, v in hidden.items() if n not in moved
        }
    must("xl", "unpause", str(domid))
    guest.goes_on(before)
