"""The first row of the support table, short enough for every Xen: booted, saved, restored, live, with xl."""

from __future__ import annotations

from pathlib import Path

import pytest
import scenarios
from xen_lab import Guest

KINDS = [("pv", 1), ("pv", 2), ("pvh", 1), ("pvh", 2)]
every_kind = pytest.mark.parametrize("guest", KINDS, indirect=True, ids=[f"{k}-{n}vcpu" for k, n in KINDS])
each_kind = pytest.mark.parametrize("guest", [("pv", 1), ("pvh", 1)], indirect=True, ids=["pv", "pvh"])
each_busy_kind = pytest.mark.parametrize(
    "busy_guest", [("pv", 1), ("pvh", 1)], indirect=True, ids=["pv", "pvh"]
)


@every_kind
def test_a_saved_guest_goes_on_after_its_restore(guest: Guest, images: Path):
    scenarios.a_saved_guest_goes_on(guest, images)


@each_kind
def test_the_bare_toolstack_does_it_too(guest: Guest, images: Path):
    scenarios.a_saved_guest_goes_on(guest, images, "bare")


@each_kind
def test_stock_xl_restores_our_image(guest: Guest, images: Path):
    scenarios.stock_xl_restores_ours(guest, images)


@pytest.mark.parametrize(
    "guest", [("pv", 1), pytest.param(("pvh", 1), marks=pytest.mark.cold)], indirect=True, ids=["pv", "pvh"]
)
def test_we_restore_the_image_of_stock_xl(guest: Guest, images: Path):
    scenarios.we_restore_stock_xls(guest, images)


@each_busy_kind
def test_live_by_digests_the_original_goes_on_and_a_copy_restores(busy_guest: Guest, images: Path):
    scenarios.live_by_digests(busy_guest, images)


@pytest.mark.parametrize("busy_guest", [("pvh", 1)], indirect=True, ids=["pvh"])
def test_live_by_log_dirty_the_original_goes_on_and_a_copy_restores(busy_guest: Guest, images: Path):
    scenarios.live_by_log_dirty(busy_guest, images)
