"""Limits of live saves on real Xen: an aim for the downtime, and guests that write as fast as they can."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
from xen_lab import Command, Guest, must, run

busy_pvh = pytest.mark.parametrize("busy_guest", [("pvh", 1)], indirect=True, ids=["pvh"])

# By digests a round takes so long that the dirtier writes all its pages in each: a stall, on any machine.
THROTTLED = ("pysave", "--live", "-c", "--dirty", "digest", "--on-stall", "throttle")


def cap_of(guest: Guest) -> int:
    """As `xl sched-credit2` tells it: Name, ID, Weight, Cap."""
    said = must("xl", "sched-credit2", "-d", guest.name)
    found = re.search(rf"^{re.escape(guest.name)}\s+\d+\s+\d+\s+(\d+)", said, flags=re.MULTILINE)
    assert found is not None, said
    return int(found[1])


def note_of(guest: Guest) -> str:
    """What stands in xenstore for as long as the cap is lowered."""
    return run("xenstore-read", f"/local/domain/{guest.domid}/pysave/cap").stdout.strip()


@pytest.mark.parametrize(
    "busy_guest",
    [pytest.param(("pv", 1), id="pv", marks=pytest.mark.slow), pytest.param(("pvh", 1), id="pvh")],
    indirect=True,
)
def test_an_aim_is_in_the_report_with_what_came_of_it(busy_guest: Guest, images: Path):
    guest, before = busy_guest, busy_guest.state()
    command = ["pysave", "--live", "-c", "--downtime-ms", "20000", "--report", str(images / "r.json")]
    said = run(*command, guest.name, str(images / "a.img"))
    assert said.returncode == 0, said.stderr
    facts = json.loads((images / "r.json").read_text())
    assert facts["result"] == "done"
    assert facts["decision"]["downtime_limit_s"] == 20.0
    assert facts["decision"]["why"] == "the rest fits into 20000 ms"
    downtime = facts["downtime"]
    parts = sum(downtime[f"{name}_s"] for name in ("suspend", "last_round", "state", "resume"))
    assert 0 < parts <= downtime["total_s"]
    print(
        f"expected {facts['decision']['expected_downtime_s']:.3f} s, was {downtime['total_s']:.3f} s: {downtime}"
    )
    guest.goes_on(before)


@busy_pvh
def test_a_guest_that_writes_too_fast_is_not_saved_if_it_is_to_be_so(busy_guest: Guest, images: Path):
    guest, before = busy_guest, busy_guest.state()
    command = ["pysave", "--live", "-c", "--dirty", "digest", "--downtime-ms", "1", "--on-stall", "abort"]
    said = run(*command, "--max-rounds", "3", guest.name, str(images / "a.img"))
    assert said.returncode == 3, said.stderr
    assert "the save was ended" in said.stderr
    assert "suspending" not in said.stderr
    assert list(images.iterdir()) == []
    guest.goes_on(before)


@busy_pvh
def test_a_guest_that_writes_too_fast_is_slowed_down_and_then_has_all_its_time_again(
    busy_guest: Guest, images: Path
):
    guest, before = busy_guest, busy_guest.state()
    assert cap_of(guest) == 0
    save = Command(*THROTTLED, guest.name, str(images / "a.img"))
    save.wait_for(r"is left \d+% of its processor time")
    assert cap_of(guest) > 0
    assert note_of(guest) == "0"
    assert save.finish() == 0, save.said
    assert cap_of(guest) == 0
    assert note_of(guest) == ""
    guest.goes_on(before)
    must("pyimage", "verify", str(images / "a.img"))


@busy_pvh
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, id="ctrl-c", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, id="kill-9"),
    ],
)
def test_a_save_that_ends_while_a_guest_is_slowed_down_gives_it_its_time_back(
    busy_guest: Guest, images: Path, number: signal.Signals
):
    guest, before = busy_guest, busy_guest.state()
    must("xl", "sched-credit2", "-d", guest.name, "-c", "90")
    try:
        save = Command(*THROTTLED, guest.name, str(images / "a.img"))
        save.wait_for(r"is left \d+% of its processor time")
        while cap_of(guest) == 90:  # it says so first, and does it then
            assert save.process.poll() is None, save.said
        save.send(number)
        save.finish()
        if number == signal.SIGKILL:
            assert cap_of(guest) < 90
            assert note_of(guest) == "90"
            said = run("pysave", "--recover", guest.name).stderr
            assert "its processor cap was put back (90% instead of" in said
        assert cap_of(guest) == 90
        assert note_of(guest) == ""
    finally:
        must("xl", "sched-credit2", "-d", guest.name, "-c", "0")
    guest.goes_on(before)
