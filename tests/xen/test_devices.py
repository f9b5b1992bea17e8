"""Guests with a disk and a network card: libxl brings these, our helper the rest.

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

ENGINES = {"stock": [], "ours": [f"LIBXL_SAVE_HELPER={HELPER}"]}


@dataclass
class Equipped:
    """A guest with a disk and a network card, and what listens to it."""

    guest: Guest
    listener: Listener

    def xl(self, engine: str, *words: str) -> None:
        """`xl` on stock libxl's engine, or on ours."""
        done = run("env", *ENGINES[engine], "xl", *words)
        assert done.returncode == 0, done.stderr
        assert ("pyxc" in done.stderr) == (engine == "ours"), done.stderr

    def goes_on(self, since: dict) -> None:
        """All of it."""
        self.guest.goes_on(since)
        self.listener.goes_on()


@pytest.fixture
def equipped(request: pytest.FixtureRequest, images: Path) -> Iterator[Equipped]:
    kind: str = request.param
    listener = Listener()
    number = {"pv": 11, "pvh": 12}[kind]
    guest = Guest(f"{kind}-equipped", kind, 1)
    guest.destroy()
    try:
        guest.create(rate=MODERATE_RATE, more=("--disk", "--net", str(number), str(listener.port)))
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


pytestmark = pytest.mark.slow
kinds = pytest.mark.parametrize("equipped", ["pv", "pvh"], indirect=True)


@kinds
def test_saves_and_restores_by_either_engine_lose_and_double_nothing(equipped: Equipped, images: Path):
    before = equipped.guest.state()
    for saver, restorer in (("ours", "ours"), ("ours", "stock"), ("stock", "ours")):
        equipped.xl(saver, "save", equipped.guest.name, str(images / "a.img"))
        equipped.xl(restorer, "restore", str(images / "a.img"))
        equipped.goes_on(before)
        must("pyimage", "verify", str(images / "a.img"))


@kinds
def test_it_migrates_live(equipped: Equipped):
    before, domid = equipped.guest.state(), equipped.guest.domid
    equipped.xl("ours", "migrate", "-s", "", equipped.guest.name, "xl migrate-receive")
    assert equipped.guest.domid != domid
    equipped.guest.has_arrived()
    equipped.goes_on(before)
