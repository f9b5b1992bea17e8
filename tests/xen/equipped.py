"""A guest with a disk and a network card, whose lines must show no gap, no repeat and no second connection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numbered import Listener, is_numbered, log_on_disk
from xen_lab import Guest, must, run

HELPER = "/usr/local/bin/pysave-helper"
MODERATE_RATE = 1000
SMP_MEMORY_MIB = 192
"""In 128 MiB an arm64 guest with two vCPUs and drivers for both devices does not boot."""
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

    def saved_live_twice(self, images: Path) -> None:
        """First it goes on itself, then what was saved of it."""
        before = self.guest.state()
        must("pysave", "--live", "-c", self.guest.name, str(images / "a.img"))
        self.goes_on(before)
        must("pyimage", "verify", str(images / "a.img"))
        (images / "a.img").unlink()
        self.saved_and_restored("pysave", "pyrestore", images / "b.img", "--live")

    def goes_on(self, since: dict[str, Any]) -> None:
        """All of it."""
        self.guest.goes_on(since)
        self.listener.goes_on()


def run_by(tool: str, *argv: str) -> None:
    """A command that must succeed; xl's words tell whether it used our helper."""
    done = run(*argv)
    assert done.returncode == 0, done.stderr
    if tool in ("xl", "helper"):
        assert ("pysave-helper" in done.stderr) == (tool == "helper"), done.stderr


@contextmanager
def equipped_guest(kind: str, vcpus: int, images: Path, rate: int = MODERATE_RATE) -> Iterator[Equipped]:
    """Inside this block there is one; at its end its disk must hold every line, once."""
    listener = Listener()
    guest = Guest(f"{kind}{vcpus}-equipped", kind, vcpus, SMP_MEMORY_MIB if vcpus > 1 else 0)
    guest.destroy()
    try:
        guest.create(rate=rate, more=("--disk", "--net", str(ADDRESS[kind]), str(listener.port)))
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
