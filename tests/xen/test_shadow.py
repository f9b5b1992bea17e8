"""What only a Xen with shadow paging can: log-dirty of PV guests."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenarios import a_saved_guest_goes_on, live_by_log_dirty
from xen_lab import Guest, run


@pytest.fixture(autouse=True)
def only_with_shadow_paging(variant: str) -> None:
    if not variant.endswith("shadow"):
        pytest.skip("this Xen has no shadow paging: tools/test --variant 4.17-shadow")


@pytest.mark.parametrize("busy_guest", [("pv", 1), ("pv", 2)], indirect=True, ids=["pv-1vcpu", "pv-2vcpu"])
def test_a_pv_guest_is_saved_live_by_log_dirty(busy_guest: Guest, images: Path):
    live_by_log_dirty(busy_guest, images)


@pytest.mark.parametrize("guest", [("pv", 2)], indirect=True, ids=["pv"])
def test_a_pv_guest_saved_at_rest_goes_on(guest: Guest, images: Path):
    a_saved_guest_goes_on(guest, images)


@pytest.mark.parametrize("guest", [("pv", 1)], indirect=True, ids=["pv"])
def test_without_an_option_live_takes_log_dirty(guest: Guest):
    said = run("pysave", "--live", "-c", guest.name, "/dev/null")
    assert said.returncode == 0, said.stderr
    assert "log-dirty" in said.stderr
