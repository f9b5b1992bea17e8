"""What is done to a guest in more than one test file; the guest itself is the judge."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

from xen_lab import Command, Guest, must, run, state_of


def a_saved_guest_goes_on(guest: Guest, images: Path, toolstack: str = "auto") -> None:
    before, domid = guest.state(), guest.domid
    must("pysave", "--toolstack", toolstack, guest.name, str(images / "a.img"))
    assert state_of(guest.name) == "gone"
    assert (images / "a.img").stat().st_mode & 0o777 == 0o600
    new_domid = int(must("pyrestore", "--toolstack", toolstack, str(images / "a.img")))
    assert new_domid == guest.domid != domid
    guest.goes_on(before)


def stock_xl_restores_ours(guest: Guest, images: Path) -> None:
    before = guest.state()
    must("pysave", guest.name, str(images / "a.img"))
    must("xl", "restore", str(images / "a.img"))
    guest.goes_on(before)


def we_restore_stock_xls(guest: Guest, images: Path) -> None:
    before = guest.state()
    must("xl", "save", guest.name, str(images / "a.img"))
    found = json.loads(must("pyimage", "verify", "--json", str(images / "a.img")))
    assert found["error"] is None
    must("pyrestore", str(images / "a.img"))
    guest.goes_on(before)


def live_by_digests(guest: Guest, images: Path) -> None:
    """Without an option where Xen has no log-dirty for this guest: digests are what is taken then."""
    how = () if guest.kind == "pv" else ("--dirty", "digest")
    _live(guest, images, how, "content digests")


def live_by_log_dirty(guest: Guest, images: Path) -> None:
    _live(guest, images, ("--dirty", "log"), "log-dirty")


def _live(guest: Guest, images: Path, how: tuple[str, ...], told: str) -> None:
    """Saved live while the dirtier writes as fast as it can: the original goes on, and then a copy of it."""
    before = guest.state()
    said = run("pysave", "--live", "-c", *how, guest.name, str(images / "a.img"))
    assert said.returncode == 0, said.stderr
    assert told in said.stderr
    guest.goes_on(before)
    guest.destroy()
    must("pyrestore", str(images / "a.img"))
    copy_goes_on(guest, before)


def copy_goes_on(guest: Guest, before: dict) -> None:
    """The copy runs on from the moment of the save, and the dirtier finds nothing wrong in it.

    The log has later lines of the original, so the copy's counter goes back: the log is begun anew.
    """
    if guest.log.exists():
        guest.log.write_text("")
    must("lab-guest", "wait", guest.name, "--counter-above", str(before["counter"]), "--timeout", "90")
    now = guest.state()
    assert now["hash"] == before["hash"]
    assert now["uptime_s"] > before["uptime_s"]
    assert now["vcpus"] == before["vcpus"]
    assert now["corrupt"] == now["corrupt_lines"] == 0, now


def the_disk_fills_up_half_way(guest: Guest, images: Path) -> None:
    """A save is given up, no half image is left, and the guest goes on."""
    before = guest.state()
    small = images / "small"
    small.mkdir()
    must("mount", "-t", "tmpfs", "-o", f"size={guest.memory_mib + 20}m", "none", str(small))
    try:
        save = Command("pysave", guest.name, str(small / "a.img"))
        save.wait_for("last round")
        # After the check for free space: somebody else takes it. Zero pages need none, so little is left.
        with (small / "other").open("wb") as other:
            os.posix_fallocate(other.fileno(), 0, guest.memory_mib << 20)
        assert save.finish() == 5
        assert "No space left" in save.said
        assert {path.name for path in small.iterdir()} == {"other"}
    finally:
        must("umount", str(small))
    guest.goes_on(before)


# By digests a round takes so long that the dirtier writes all its pages in each: a stall, on any machine.
THROTTLED = ("pysave", "--live", "-c", "--dirty", "digest", "--on-stall", "throttle")


def cap_of(guest: Guest) -> int:
    """As `xl sched-credit2` tells it: Name, ID, Weight, Cap."""
    said = must("xl", "sched-credit2", "-d", guest.name)
    found = re.search(rf"^{re.escape(guest.name)}\s+\d+\s+\d+\s+(\d+)", said, flags=re.MULTILINE)
    assert found is not None, said
    return int(found[1])


def note_of(guest: Guest) -> str:
    """What stands in xenstore for as long as the cap is lowered."""
    return run("xenstore-read", f"/local/domain/{guest.domid}/pysave/cap").stdout.strip()


def a_save_that_ends_gives_time_back(guest: Guest, images: Path, number: signal.Signals) -> None:
    """A signal ends a save that has lowered a busy guest's cap; after SIGKILL `--recover` puts it back."""
    before = guest.state()
    must("xl", "sched-credit2", "-d", guest.name, "-c", "90")
    try:
        save = Command(*THROTTLED, guest.name, str(images / "a.img"))
        save.wait_for(r"is left \d+% of its processor time")
        while cap_of(guest) == 90:  # it says so first, and does it then
            assert save.process.poll() is None, save.said
        save.send(number)
        save.finish()
        if number == signal.SIGKILL:
            assert cap_of(guest) < 90
            assert note_of(guest) == "90"
            said = run("pysave", "--recover", guest.name).stderr
            assert "its processor cap was put back (90% instead of" in said
        assert cap_of(guest) == 90
        assert note_of(guest) == ""
    finally:
        must("xl", "sched-credit2", "-d", guest.name, "-c", "0")
    guest.goes_on(before)
