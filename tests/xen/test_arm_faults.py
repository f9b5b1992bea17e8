"""arm64: what goes wrong leaves a guest that goes on, or that --recover puts right, and no half image."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from arm_driver import ONLY_WHEN_IT_GOES_ON, POINTS
from scenarios import a_save_that_ends_gives_time_back, a_saved_guest_goes_on, the_disk_fills_up_half_way
from xen_lab import COMMAND_TIMEOUT_S, Guest, domid_of, must, no_partial_files, run, state_of

DRIVER = str(Path(__file__).with_name("arm_driver.py"))

slow = pytest.mark.slow
one_vcpu = pytest.mark.parametrize("guest", [("pvh", 1)], indirect=True, ids=["1vcpu"])
VCPUS = pytest.mark.parametrize("guest", [("pvh", 1), ("pvh", 2)], indirect=True, ids=["1vcpu", "2vcpus"])


pytestmark = pytest.mark.usefixtures("on_arm64")

CORE_POINT = "places cleared"
"""Where most has to be put back: contexts, lent pages, an event channel, words of the guest's memory."""


def with_fault(*argv: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, DRIVER, *argv, timeout_s=2 * COMMAND_TIMEOUT_S)


def journals() -> list[Path]:
    return list(Path("/var/lib/xen").glob("pysave-arm64.*"))


@one_vcpu
@pytest.mark.parametrize(
    "point", [pytest.param(point, marks=() if point == CORE_POINT else slow) for point in POINTS]
)
def test_a_save_killed_at_any_point_is_put_right_by_recover(guest: Guest, images: Path, point: str):
    before = guest.state()
    options = ["-c"] if point in ONLY_WHEN_IT_GOES_ON else []
    killed = with_fault("kill", point, "pysave", *options, guest.name, str(images / "a.img"))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if set(state_of(guest.name)) & set("ps"):
        refused = run("pysave", guest.name, str(images / "b.img"))
        assert refused.returncode == 3
        assert f"pysave --recover {guest.domid}" in refused.stderr
    must("pysave", "--recover", guest.name)
    guest.goes_on(before)
    assert journals() == []
    if point == "image has its name":
        assert json.loads(must("pyimage", "verify", "--json", str(images / "a.img")))["whole"]


@slow
@VCPUS
def test_after_being_killed_at_the_worst_point_and_recovered_a_guest_can_be_saved_and_restored(
    guest: Guest, images: Path
):
    for point in ("registers read", "event sent", "places cleared"):
        killed = with_fault("kill", point, "pysave", guest.name, str(images / "a.img"))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        must("pysave", "--recover", guest.name)
    a_saved_guest_goes_on(guest, images)
    no_partial_files(images)


@slow
@pytest.mark.parametrize("busy_guest", [("pvh", 1)], indirect=True, ids=["kill-9"])
def test_a_killed_save_that_has_slowed_a_guest_down_is_put_right_by_recover(busy_guest: Guest, images: Path):
    a_save_that_ends_gives_time_back(busy_guest, images, signal.SIGKILL)
    assert journals() == []


@slow
@VCPUS
def test_a_guest_with_events_pending_is_saved_and_restored(guest: Guest, images: Path):
    before = guest.state()
    said = with_fault("pending", "-", "pysave", "-c", guest.name, str(images / "a.img"))
    assert said.returncode == 0, said.stderr
    guest.goes_on(before)
    before = guest.state()
    said = with_fault("pending", "-", "pysave", guest.name, str(images / "b.img"))
    assert said.returncode == 0, said.stderr
    must("pyrestore", str(images / "b.img"))
    guest.goes_on(before)


@one_vcpu
@pytest.mark.parametrize("piece", ["SAVE", pytest.param("EVENT", marks=slow)])
def test_a_fault_in_a_stub_leaves_the_guest_running(guest: Guest, images: Path, piece: str):
    before = guest.state()
    said = with_fault("undefined", piece, "pysave", guest.name, str(images / "a.img"))
    assert said.returncode == 3
    assert "met an exception (ESR_EL1 0x2000000" in said.stderr
    guest.goes_on(before)
    assert list(images.iterdir()) == []
    assert journals() == []
    a_saved_guest_goes_on(guest, images)


@slow
@one_vcpu
def test_a_fault_in_the_stub_of_a_restore_leaves_no_domain(guest: Guest, images: Path):
    before = guest.state()
    must("pysave", guest.name, str(images / "a.img"))
    said = with_fault("undefined", "LOAD", "pyrestore", str(images / "a.img"))
    assert said.returncode == 3
    assert "met an exception" in said.stderr
    assert domid_of(guest.name) is None
    must("pyrestore", str(images / "a.img"))
    guest.goes_on(before)


@slow
@one_vcpu
def test_a_disk_that_fills_up_leaves_the_guest_running_and_no_half_image(guest: Guest, images: Path):
    the_disk_fills_up_half_way(guest, images)
    assert journals() == []
    a_saved_guest_goes_on(guest, images)


def platform_of(image: Path):
    """The image's ARM64_PLATFORM record."""
    from saverestore.operations.image import opened
    from saverestore.stream.reader import LibxcReader
    from saverestore.stream.records import Arm64Platform

    with opened(str(image)) as found:
        reader = LibxcReader(found.source)
        while True:
            record = reader.next()
            if isinstance(record, Arm64Platform):
                return record


CHANGES = {
    "another GIC": (lambda p: {"gic": 5 - p.gic}, "has a GICv"),
    "another processor": (lambda p: {"midr": p.midr ^ 0x10}, "another kind of processor"),
    "another counter": (lambda p: {"cntfrq": p.cntfrq * 2}, "counts time at"),
    "more vCPUs": (lambda p: {"nr_vcpus": p.nr_vcpus + 1}, "vCPUs, its configuration would make one with"),
    "more memory": (
        lambda p: {"banks": ((p.banks[0][0], p.banks[0][1] * 2), *p.banks[1:])},
        "KiB of memory, its configuration would make one with",
    ),
}


@slow
@one_vcpu
def test_an_image_for_another_host_is_refused_before_anything_is_made(guest: Guest, images: Path):
    # Without a digest, or that would be what is told.
    image, changed = images / "a.img", images / "changed.img"
    before = guest.state()
    must("pysave", "--plain", guest.name, str(image))
    found = platform_of(image)
    whole = image.read_bytes()
    assert whole.count(found.pack()) == 1
    for name, (change, told) in CHANGES.items():
        changed.write_bytes(whole.replace(found.pack(), dataclasses.replace(found, **change(found)).pack()))
        refused = run("pyrestore", str(changed))
        assert refused.returncode == 4, f"{name}: {refused.stderr}"
        assert told in refused.stderr, name
        assert "creating" not in refused.stderr, name
        assert domid_of(guest.name) is None
    must("pyrestore", str(image))
    guest.goes_on(before)
