"""The table of versions: images of each Xen, restored on the same and on newer ones.

    write    on 4.14, 4.17, 4.20: a PV and a PVH guest, saved by stock xl and, where the project runs, by pysave
    restore  on 4.17, 4.20, images of the same or an older Xen: by pyrestore, and by stock xl to compare with

A cell holds when the guest goes on where it was saved: its counter follows, its memory's hash is the same, and it
finds nothing corrupt. Images are in CACHE/matrix/ while this runs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xenlab import cache, ssh
from xenlab.errors import LabError, say
from xenlab.machine import Machine
from xenlab.variants import VARIANTS

WRITERS = ("4.14", "4.17", "4.20")
READERS = ("4.17", "4.20")
KINDS = ("pv", "pvh")
MEMORY_MIB = 96
ATTEMPTS = 4
"""Under emulation a PVH guest now and then meets a triple fault of the processor, see docs/testing.md."""


@dataclass(frozen=True)
class Saved:
    """An image and what its guest said last before it was saved."""

    xen: str
    kind: str
    tool: str
    image: Path
    counter: int
    hash: str

    @property
    def guest(self) -> str:
        """Its name."""
        return f"{self.kind}-{self.tool}-{self.xen.replace('.', '-')}"


def fill() -> tuple[str, bool]:
    """Run it all: the table as Markdown, and whether a cell failed."""
    folder = cache.cache_root() / "matrix"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        images = [saved for xen in WRITERS for saved in _write(xen, folder)]
        cells = {
            (saved, xen, tool): result
            for xen in READERS
            for saved, tool, result in _restore(xen, [one for one in images if _not_newer(one.xen, xen)])
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _table(images, cells), any(result != "tested" for result in cells.values())


def _not_newer(a: str, b: str) -> bool:
    return tuple(map(int, a.split("."))) <= tuple(map(int, b.split(".")))


def _write(xen: str, folder: Path) -> Iterator[Saved]:
    """Guests of each kind, saved by each tool that there is."""
    with Machine(xen).up_meanwhile() as machine:
        for kind in KINDS:
            for tool in ("xl",) if VARIANTS[xen].stock else ("xl", "pysave"):
                yield _save(machine, Saved(xen, kind, tool, folder / f"{xen}-{kind}-{tool}.img", 0, ""))


def _save(machine: Machine, wanted: Saved) -> Saved:
    state = _boot_guest(machine, wanted)
    command = "xl save" if wanted.tool == "xl" else "pysave"
    machine.run(f"{command} {wanted.guest} /dev/shm/a.img", timeout=600)
    fetch = ssh.command(
        machine.variant.name, machine.require_up(), ["cat /dev/shm/a.img && rm /dev/shm/a.img"]
    )
    with wanted.image.open("wb") as file:
        _stream(fetch, file.fileno())
    say(f"{wanted.guest}: saved")
    return Saved(wanted.xen, wanted.kind, wanted.tool, wanted.image, state["counter"], state["hash"])


def _stream(argv: list[str], to_fd: int) -> None:
    if subprocess.run(argv, stdout=to_fd, stdin=subprocess.DEVNULL, check=False).returncode != 0:
        raise LabError("an image could not be fetched from dom0")


def _boot_guest(machine: Machine, wanted: Saved) -> dict[str, Any]:
    for _ in range(ATTEMPTS):
        create = f"lab-guest create {wanted.guest} --kind {wanted.kind} --memory {MEMORY_MIB} --pages 512 --rate 200"
        machine.run(create, timeout=120)
        done = machine.run(
            f"lab-guest wait {wanted.guest} --counter-above 3 --json", timeout=200, check=False
        )
        if done.returncode == 0:
            found: dict[str, Any] = json.loads(done.stdout)
            return found
        machine.run(f"xl destroy {wanted.guest}", check=False)
    raise LabError(f"{wanted.guest} does not boot on Xen {wanted.xen}")


def _restore(xen: str, images: list[Saved]) -> Iterator[tuple[Saved, str, str]]:
    """What became of each image with each tool: "tested", or what went wrong."""
    with Machine(xen).up_meanwhile() as machine:
        for saved in images:
            machine.run("cat > /dev/shm/a.img", stdin=saved.image.read_bytes(), timeout=300)
            for tool, command in (("pyrestore", "pyrestore -q"), ("xl", "xl restore")):
                for _ in range(ATTEMPTS):
                    result = _restored(machine, saved, command)
                    faults = machine.run("xl dmesg -c | grep -c 'Triple fault'", check=False).stdout.strip()
                    if result == "tested" or faults in (b"", b"0"):
                        break
                say(f"{saved.guest} on Xen {xen} by {tool}: {result}")
                yield saved, tool, result


def _restored(machine: Machine, saved: Saved, command: str) -> str:
    name = saved.guest
    log = f"/var/log/xen/console/guest-{name}.log"
    machine.run(f"xl destroy {name} 2>/dev/null; rm -f {log}", check=False)
    done = machine.run(f"{command} /dev/shm/a.img", timeout=300, check=False)
    if done.returncode != 0:
        return f"failed: {done.stderr.decode(errors='replace').strip().splitlines()[-1:]}"
    said = machine.run(
        f"lab-guest wait {name} --counter-above {saved.counter + 10} --json", timeout=200, check=False
    )
    machine.run(f"xl destroy {name}", check=False)
    if said.returncode != 0:
        return "does not go on"
    state = json.loads(said.stdout)
    if state["hash"] != saved.hash or state["corrupt"] or state["corrupt_lines"]:
        return "goes on with other memory"
    return "tested"


def _table(images: list[Saved], cells: dict[tuple[Saved, str, str], str]) -> str:
    columns = [(xen, tool) for xen in READERS for tool in ("pyrestore", "xl")]
    lines = [
        "| saved on | " + " | ".join(f"{xen}, by {tool}" for xen, tool in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for saved in images:
        values = [
            cells.get((saved, xen, tool), "an older Xen" if not _not_newer(saved.xen, xen) else "not tried")
            for xen, tool in columns
        ]
        lines.append(f"| {saved.xen}, {saved.kind.upper()}, by {saved.tool} | " + " | ".join(values) + " |")
    return "\n".join(lines)
