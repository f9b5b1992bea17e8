"""A live snapshot that is a backup: memory in an image, the disk in a snapshot of LVM, both of one moment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from numbered import is_numbered, log_on_disk
from scenarios import copy_goes_on
from xen_lab import Guest, must, run, state_of

pytestmark = pytest.mark.slow

GROUP = "snapshots"
DISK = f"/dev/{GROUP}/web1"
NO_UDEV = "activation { udev_sync=0 udev_rules=0 } devices { use_devicesfile=0 }"
"""The lab's dom0 has no udevd; LVM then makes its device nodes itself."""


@pytest.fixture
def volume(images: Path) -> Iterator[str]:
    """A logical volume of 32 MiB, in a group that has room for snapshots; afterwards gone."""
    backing = images / "physical"
    with backing.open("wb") as file:
        file.truncate(160 << 20)
    device = must("losetup", "--find", "--show", str(backing)).strip()
    settings = ("--config", NO_UDEV)
    try:
        must("modprobe", "-a", "dm-mod", "dm-snapshot")
        must("pvcreate", *settings, "-q", device)
        must("vgcreate", *settings, "-q", GROUP, device)
        must("lvcreate", *settings, "-q", "-y", "-n", "web1", "-L", "32M", GROUP)
        yield DISK
    finally:
        run("vgremove", *settings, "-q", "-f", "-y", GROUP)
        run("losetup", "-d", device)


@pytest.mark.parametrize("kind", ["pvh", "pv"])
def test_memory_and_a_snapshot_of_lvm_are_restored_together(kind: str, volume: str, images: Path):
    image = str(images / "a.img")
    guest = Guest(f"{kind}-lvm", kind, 1)
    guest.destroy()
    try:
        guest.create(pages=512, rate=200, more=("--disk-on", volume))
        before = guest.next_lines(3)
        snapshot = f"lvcreate --config '{NO_UDEV}' -q -s -n web1-snap -L 32M {GROUP}/web1"
        must("pysave", "--live", "-c", "--while-suspended", snapshot, guest.name, image)
        guest.goes_on(before)
        guest.next_lines(5)  # its disk is another one now
        must("xl", "destroy", guest.name)
        assert run("pyrestore", image).returncode == 3, "the disk was written to after the save"

        must("lvconvert", "--config", NO_UDEV, "-q", "--merge", f"{GROUP}/web1-snap")
        assert "web1-snap" not in must("lvs", "--config", NO_UDEV, "--noheadings", GROUP)
        must("pyrestore", "--force", image)
        copy_goes_on(guest, before)
        guest.destroy()
        assert state_of(guest.name) == "gone"
        numbers = log_on_disk(Path(volume), images / "disk")
        assert len(numbers) > 5
        is_numbered(numbers)
    finally:
        guest.destroy()
