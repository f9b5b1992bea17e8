"""Limits of live saves on real Xen: an aim for the downtime, and guests that write as fast as they can."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from scenarios import THROTTLED, a_save_that_ends_gives_time_back, cap_of, note_of
from xen_lab import Command, Guest, must, run

busy_pvh = pytest.mark.parametrize("busy_guest", [("pvh", 1)], indirect=True, ids=["pvh"])


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
    a_save_that_ends_gives_time_back(busy_guest, images, number)
