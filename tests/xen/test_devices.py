"""Guests with a disk and a network card, HVM ones with a device model as well, through every pair of tools.

The guest appends numbered lines to a file on its disk, each with fsync, and sends numbered lines over one TCP
connection. Neither may show a gap, a repeat or a second connection after any number of saves and restores.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from equipped import RESTORERS, SAVERS, WITH_HELPER, Equipped, equipped_guest, run_by


@pytest.fixture
def equipped(request: pytest.FixtureRequest, images: Path) -> Iterator[Equipped]:
    with equipped_guest(request.param, 1, images) as found:
        yield found


kinds = pytest.mark.parametrize("equipped", ["pv", "pvh", "hvm"], indirect=True)


@pytest.mark.parametrize(
    ("equipped", "saver", "restorer"),
    [("pv", "pysave", "xl"), pytest.param("pvh", "xl", "pyrestore", marks=pytest.mark.slow)],
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


@pytest.mark.slow
@kinds
def test_saved_live_it_goes_on_with_all_its_devices(equipped: Equipped, images: Path):
    equipped.saved_live_twice(images)


@pytest.mark.slow
@pytest.mark.parametrize("equipped", ["pv", "pvh"], indirect=True)
def test_it_migrates_live(equipped: Equipped):
    before, domid = equipped.guest.state(), equipped.guest.domid
    run_by("helper", *WITH_HELPER, "xl", "migrate", "-s", "", equipped.guest.name, "xl migrate-receive")
    assert equipped.guest.domid != domid
    equipped.guest.has_arrived()
    equipped.goes_on(before)
