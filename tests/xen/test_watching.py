"""A restored domain is looked after as one of xl is: it reboots when its guest does, and goes when that ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenarios import copy_goes_on
from xen_lab import AWHILE_S, Guest, comes_true, domid_of, must, run


def watchers_of(guest: Guest) -> list[str]:
    """Processes that watch domains with its name; one whose domain was saved ends in moments."""
    return run("pgrep", "-f", f"pysave-watch.* {guest.name}$").stdout.split()


@pytest.mark.cold
@pytest.mark.parametrize("kind", ["pv", pytest.param("pvh", marks=pytest.mark.slow)])
def test_a_restored_domain_reboots_and_powers_off(kind: str, images: Path):
    guest = Guest(f"{kind}-watched", kind, 1)
    guest.destroy()
    try:
        guest.create(rate=100, pages=256, more=("--on-reboot", "restart"))
        must("pysave", guest.name, str(images / "a.img"))
        must("pyrestore", str(images / "a.img"))
        restored = guest.domid
        assert len(watchers_of(guest)) == 1
        assert "watched already" in run("pysave-watch", guest.name).stderr

        must("xl", "reboot", guest.name)
        comes_true("rebooted", lambda: domid_of(guest.name) not in (None, restored))
        must("lab-guest", "wait", guest.name, "--timeout", str(AWHILE_S))
        assert len(watchers_of(guest)) == 1

        must("xl", "shutdown", guest.name)
        comes_true("powered off and gone", lambda: domid_of(guest.name) is None)
        comes_true("nothing left that watches", lambda: not watchers_of(guest))
        log = Path(f"/var/log/xen/pysave-watch-{guest.name}.log").read_text()
        assert "reboot; to be done: restart" in log
        assert "poweroff; to be done: destroy" in log
    finally:
        guest.destroy()


@pytest.mark.slow
@pytest.mark.parametrize("guest", [("pvh", 1)], indirect=True, ids=["pvh"])
def test_nothing_watches_a_domain_where_that_is_not_wanted(guest: Guest, images: Path):
    before = guest.state()
    must("pysave", guest.name, str(images / "a.img"))
    must("pyrestore", "--no-watch", str(images / "a.img"))
    guest.goes_on(before)
    comes_true("nothing that watches", lambda: not watchers_of(guest))


@pytest.mark.slow
@pytest.mark.parametrize("guest", [("pv", 1)], indirect=True, ids=["pv"])
def test_a_domain_that_is_saved_and_goes_on_is_watched_on_until_it_is_destroyed(guest: Guest, images: Path):
    before = guest.state()
    must("pysave", guest.name, str(images / "a.img"))
    must("pyrestore", str(images / "a.img"))
    must("pysave", "-c", "--overwrite", guest.name, str(images / "a.img"))
    guest.goes_on(before)
    assert len(watchers_of(guest)) == 1
    guest.destroy()
    comes_true("nothing left that watches", lambda: not watchers_of(guest))
    must("pyrestore", str(images / "a.img"))
    copy_goes_on(guest, before)
