"""arm64 guests: saved at rest and live, restored, and put right after a save that was killed."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from scenarios import a_saved_guest_goes_on, live_by_digests
from xen_lab import Command, Guest, must, no_partial_files, run, state_of

pytestmark = pytest.mark.usefixtures("on_arm64")

slow = pytest.mark.slow
one_vcpu = pytest.mark.parametrize("guest", [("pvh", 1)], indirect=True, ids=["1vcpu"])
VCPUS = pytest.mark.parametrize("guest", [("pvh", 1), ("pvh", 2)], indirect=True, ids=["1vcpu", "2vcpus"])
UP_TO_FOUR = [
    pytest.param(("pvh", 1), id="1vcpu"),
    pytest.param(("pvh", 2), id="2vcpus"),
    pytest.param(("pvh", 4), id="4vcpus", marks=slow),
]


@pytest.mark.parametrize("guest", UP_TO_FOUR, indirect=True)
def test_a_saved_guest_goes_on_in_a_new_domain(guest: Guest, images: Path):
    a_saved_guest_goes_on(guest, images)


@slow
@VCPUS
def test_a_guest_saved_and_restored_three_times_in_a_row_goes_on_each_time(guest: Guest, images: Path):
    for _ in range(3):
        a_saved_guest_goes_on(guest, images)
        (images / "a.img").unlink()


@slow
@one_vcpu
def test_a_guest_saved_and_restored_by_the_bare_toolstack_goes_on(guest: Guest, images: Path):
    a_saved_guest_goes_on(guest, images, "bare")


@pytest.mark.parametrize(
    "busy_guest",
    [
        pytest.param(("pvh", 1), id="1vcpu"),
        pytest.param(("pvh", 2), id="2vcpus", marks=slow),
        pytest.param(("pvh", 4), id="4vcpus", marks=slow),
    ],
    indirect=True,
)
def test_a_guest_saved_live_goes_on_and_so_does_its_copy(busy_guest: Guest, images: Path):
    live_by_digests(busy_guest, images)


@one_vcpu
def test_an_image_is_whole_and_restored_the_user_is_told_that_the_wall_clock_stood_still(
    guest: Guest, images: Path
):
    must("pysave", guest.name, str(images / "a.img"))
    found = json.loads(must("pyimage", "verify", "--json", str(images / "a.img")))
    assert (found["whole"], found["domain_type"], found["digest"]["compared"]) == (True, "ARM64", True)
    assert found["records"]["ARM64_VCPU"]["count"] == guest.vcpus
    restored = run("pyrestore", str(images / "a.img"))
    assert restored.returncode == 0, restored.stderr
    assert f"the wall clock of {guest.name} was stopped since it was saved, about " in restored.stderr


@slow
@one_vcpu
@pytest.mark.parametrize("phase", ["suspending", "last round"])
def test_a_guest_whose_save_was_killed_is_put_right_by_recover(guest: Guest, images: Path, phase: str):
    before = guest.state()
    save = Command("pysave", guest.name, str(images / "a.img"))
    save.wait_for(phase)
    save.send(signal.SIGKILL)
    save.finish()
    if set(state_of(guest.name)) & set("ps"):
        refused = run("pysave", guest.name, str(images / "b.img"))
        assert refused.returncode == 3
        assert "--recover" in refused.stderr
    must("pysave", "--recover", guest.name)
    guest.goes_on(before)
    a_saved_guest_goes_on(guest, images)
    no_partial_files(images)
    assert list(Path("/var/lib/xen").glob("pysave-arm64.*")) == []


@slow
@one_vcpu
def test_live_cannot_be_had_from_a_log_that_xen_has_not(guest: Guest, images: Path):
    said = run("pysave", "--live", "--dirty", "log", guest.name, str(images / "a.img"))
    assert said.returncode == 3
    assert "does not log dirty pages" in said.stderr
    assert guest.is_running()
