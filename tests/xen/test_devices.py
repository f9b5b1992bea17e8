"""Guests with a disk and a network card, HVM ones with a device model as well, through every pair of tools.

The guest appends numbered lines to a file on its disk, each with fsync, and sends numbered lines over one TCP
connection. Neither may show a gap, a repeat or a second connection after any number of saves and restores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from numbered import Listener, is_numbered, log_on_disk
from xen_lab import Guest, must, run

HELPER = "/usr/local/bin/pyxc-save-helper"
MODERATE_RATE = 1000
ADDRESS = {"pv": 11, "pvh": 12, "hvm": 13}

WITH_HELPER = ("env", f"LIBXL_SAVE_HELPER={HELPER}")
SAVERS = {"pysave": ("pysave",), "xl": ("xl", "save"), "helper": (*WITH_HELPER, "xl", "save")}
RESTORERS = {"pyrestore": ("pyrestore",), "xl": ("xl", "restore"), "helper": (*WITH_HELPER, "xl", "restore")}


@dataclass
class Equipped:
    """A guest with a disk and a network card, and what listens to it."""

    guest: Guest
    listener: Listener

    def saved_and_restored(self, saver: str, restorer: str, image: Path, *options: str) -> None:
        """By these two, named as above."""
        before = self.guest.state()
        run_by(saver, *SAVERS[saver], *options, self.guest.name, str(image))
        must("pyimage", "verify", str(image))
        run_by(restorer, *RESTORERS[restorer], str(image))
        self.goes_on(before)

    def goes_on(self, since: dict) -> None:
        """All of it."""
        self.guest.goes_on(since)
        self.listener.goes_on()


def run_by(tool: str, *argv: str) -> None:
    """A command that must succeed; xl's words tell whether it used our helper."""
    done = run(*argv)
    assert done.returncode == 0, done.stderr
    if tool in ("xl", "helper"):
        assert ("pyxc" in done.stderr) == (tool == "helper"), done.stderr


@pytest.fixture
def equipped(request: pytest.FixtureRequest, images: Path) -> Iterator[Equipped]:
    kind: str = request.param
    listener = Listener()
    guest = Guest(f"{kind}-equipped", kind, 1)
    guest.destroy()
    try:
        guest.create(rate=MODERATE_RATE, more=("--disk", "--net", str(ADDRESS[kind]), str(listener.port)))
        listener.goes_on()
        yield Equipped(guest, listener)
        guest.assert_clean()
        guest.destroy()
        numbers = log_on_disk(Path(f"/lab/{guest.name}.disk"), images / "disk")
        assert len(numbers) > 10
        is_numbered(numbers)
    finally:
        guest.destroy()
        listener.close()


kinds = pytest.mark.parametrize("equipped", ["pv", "pvh", "hvm"], indirect=True)


@pytest.mark.parametrize(
    ("equipped", "saver", "restorer"),
    [("pv", "pysave", "xl"), ("pvh", "xl", "pyrestore")],
    indirect=["equipped"],
)
def test_saved_and_restored_nothing_is_lost_or_doubled(
    equipped: Equipped, saver: str, restorer: str, images: Path
):
    equipped.saved_and_restored(saver, restorer, images / "a.img")


@pytest.mark.slow
@pytest.mark.parametrize("saver", SAVERS)
@kinds
def test_saved_and_restored_by_every_pair_of_tools_nothing_is_lost_or_doubled(
    equipped: Equipped, saver: str, images: Path
):
    for restorer in RESTORERS:
        equipped.saved_and_restored(saver, restorer, images / "a.img")
        (images / "a.img").unlink()


@pytest.mark.parametrize(
    "equipped",
    ["hvm", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("pv", "pvh"))],
    indirect=True,
)
def test_saved_live_it_goes_on_with_all_its_devices(equipped: Equipped, images: Path):
    before = equipped.guest.state()
    must("pysave", "--live", "-c", equipped.guest.name, str(images / "a.img"))
    equipped.goes_on(before)
    must("pyimage", "verify", str(images / "a.img"))
    (images / "a.img").unlink()
    equipped.saved_and_restored("pysave", "pyrestore", images / "b.img", "--live")


@pytest.mark.slow
@pytest.mark.parametrize("equipped", ["pv", "pvh"], indirect=True)
def test_it_migrates_live(equipped: Equipped):
    before, domid = equipped.guest.state(), equipped.guest.domid
    run_by("helper", *WITH_HELPER, "xl", "migrate", "-s", "", equipped.guest.name, "xl migrate-receive")
    assert equipped.guest.domid != domid
    equipped.guest.has_arrived()
    equipped.goes_on(before)
