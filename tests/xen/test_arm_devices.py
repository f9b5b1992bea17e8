"""arm64 guests with a disk and a network card: libxl makes the domain, we fill it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from equipped import Equipped, equipped_guest
from xen_lab import COMMAND_TIMEOUT_S, Command, domid_of, must, run

pytestmark = pytest.mark.usefixtures("on_arm64")

BLOCK_SCRIPT = Path("/etc/xen/scripts/block")
LIBXL_WAITS_S = 40
"""So long for a hotplug script, and then it fails."""


@pytest.fixture
def equipped(request: pytest.FixtureRequest, images: Path) -> Iterator[Equipped]:
    with equipped_guest("pvh", request.param, images) as found:
        yield found


slow = pytest.mark.slow
vcpus = pytest.mark.parametrize("equipped", [1, 2], indirect=True, ids=["1vcpu", "2vcpus"])
one_vcpu = pytest.mark.parametrize("equipped", [1], indirect=True, ids=["1vcpu"])


@one_vcpu
def test_saved_and_restored_nothing_is_lost_or_doubled(equipped: Equipped, images: Path):
    equipped.saved_and_restored("pysave", "pyrestore", images / "a.img")


@slow
@vcpus
def test_saved_and_restored_twice_nothing_is_lost_or_doubled(equipped: Equipped, images: Path):
    for _ in range(2):
        equipped.saved_and_restored("pysave", "pyrestore", images / "a.img")
        (images / "a.img").unlink()


@slow
@one_vcpu
def test_saved_live_it_goes_on_with_all_its_devices_and_so_does_what_is_saved_next(
    equipped: Equipped, images: Path
):
    equipped.saved_live_twice(images)


@slow
@one_vcpu
def test_what_libxl_keeps_of_a_restored_domain_is_what_it_was(equipped: Equipped, images: Path):
    def kept() -> dict:
        (domain,) = json.loads(must("xl", "list", "-l", equipped.guest.name))
        return domain["config"]

    before = kept()
    equipped.saved_and_restored("pysave", "pyrestore", images / "a.img")
    assert kept() == before


@slow
@one_vcpu
def test_without_its_disk_or_by_the_bare_toolstack_it_is_refused_and_no_domain_is_made(
    equipped: Equipped, images: Path
):
    guest = equipped.guest
    before = guest.state()
    refused = run("pysave", "--toolstack", "bare", guest.name, str(images / "a.img"))
    assert refused.returncode == 3
    assert "vbd" in refused.stderr and "vif" in refused.stderr
    must("pysave", guest.name, str(images / "a.img"))
    disk = Path(f"/lab/{guest.name}.disk")
    moved = disk.rename(disk.with_suffix(".moved"))
    refused = run("pyrestore", str(images / "a.img"))
    assert refused.returncode == 3
    assert f"disk xvda: {disk} is not there" in refused.stderr
    refused = run("pyrestore", "--force", str(images / "a.img"))
    assert refused.returncode == 6, refused.stderr
    assert domid_of(guest.name) is None
    moved.rename(disk)
    must("pyrestore", str(images / "a.img"))
    equipped.goes_on(before)


@slow
@one_vcpu
def test_ctrl_c_while_a_hotplug_script_is_waited_for_leaves_no_domain(equipped: Equipped, images: Path):
    guest = equipped.guest
    before = guest.state()
    must("pysave", guest.name, str(images / "a.img"))
    script, begun = BLOCK_SCRIPT.read_bytes(), images / "begun"
    BLOCK_SCRIPT.write_text(
        f'#!/bin/sh\n[ "$1" = add ] || exit 0\ntouch {begun}\nexec sleep {LIBXL_WAITS_S}\n'
    )
    try:
        restore = Command("pyrestore", str(images / "a.img"))
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        while not begun.exists():
            assert time.monotonic() < deadline, "the hotplug script was not begun"
            time.sleep(0.1)
        since = time.monotonic()
        restore.send(signal.SIGINT)
        assert restore.finish() == 130, restore.said
        assert time.monotonic() - since < LIBXL_WAITS_S
        assert domid_of(guest.name) is None
    finally:
        BLOCK_SCRIPT.write_bytes(script)
    must("pyrestore", str(images / "a.img"))
    equipped.goes_on(before)
