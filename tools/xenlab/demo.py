"""`tools/demo`: the whole path on real Xen, told step by step, from nothing."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from xenlab.errors import Interrupted, LabError, raise_on_signals
from xenlab.machine import Machine
from xenlab.variants import DEFAULT, VARIANTS

NAME = "web1"
IMAGE = "/dev/shm/web1.img"

DESCRIPTION = """\
Boots real Xen in the lab (emulated: no Xen hardware needed), starts a guest that checks itself, saves it with
pysave, brings it back with pyrestore, and shows that it resumes where it stopped. Then live, while it runs.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Show it; 0 when everything went as it should."""
    parser = argparse.ArgumentParser(prog="demo", description=DESCRIPTION)
    parser.add_argument(
        "--xen", choices=VARIANTS, default=DEFAULT, help=f"variant of the lab (default {DEFAULT})"
    )
    parser.add_argument("--kind", choices=("pv", "pvh"), default="pv", help="kind of guest (default pv)")
    parser.add_argument("--keep", action="store_true", help="leave the lab up afterwards")
    options = parser.parse_args(argv)
    raise_on_signals()
    started = time.monotonic()
    machine = Machine(options.xen)
    was_up = machine.state is not None
    try:
        _title(f"Xen {options.xen} in emulation, with a Debian dom0 and this checkout in it")
        machine.up()
        machine.push()
        _Story(machine, options.kind).tell()
        _title(f"done in {time.monotonic() - started:.0f} s")
        print("tools/lab up && tools/lab ssh    to try things yourself")
        return 0
    except LabError as error:
        print(f"{error.tail}\ndemo: {error}", file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt):
        print("demo: interrupted", file=sys.stderr)
        return 130
    finally:
        if not was_up and not options.keep:
            machine.down()


class _Story:
    """The demonstration itself; any command that fails ends it."""

    def __init__(self, machine: Machine, kind: str) -> None:
        self._machine = machine
        self._kind = kind

    def tell(self) -> None:
        """Boot, save, restore, save live, restore the copy."""
        _title(
            f"a {self._kind.upper()} guest: five lines a second, and a program that rewrites and checks pages"
        )
        self._show(
            f"lab-guest create {NAME} --kind {self._kind} --vcpus 1 --memory 256 --pages 4096 --rate 2000"
        )
        self._quietly(f"lab-guest wait {NAME} --counter-above 3")
        self._show("xl list")
        self._last_lines()

        _title("saved: the guest is gone, its image is on the disk")
        self._show(f"pysave {NAME} {IMAGE}")
        self._show("xl list")
        self._show(f"pyimage info {IMAGE}")

        _title("restored: counter, uptime and the hash of its memory go on where they stopped")
        self._show(f"pyrestore {IMAGE}")
        self._quietly(f"lab-guest wait {NAME}; lab-guest wait {NAME}")
        self._show("xl list")
        self._last_lines()

        _title("saved live: it keeps running, and pages it writes meanwhile are sent again")
        self._show(f"pysave --live -c --overwrite {NAME} {IMAGE}")
        self._quietly(f"lab-guest wait {NAME}")
        self._last_lines()

        _title("a copy from that image, after the original is destroyed")
        self._show(f"xl destroy {NAME}")
        self._show(f"pyrestore {IMAGE}")
        self._quietly(f"lab-guest wait {NAME}; lab-guest wait {NAME}")
        self._last_lines()
        self._judge()

    def _show(self, command: str) -> None:
        print(f"\n# {command}", flush=True)
        started = time.monotonic()
        done = self._machine.run(f"{command} 2>&1")  # in the order in which it was said
        print(done.stdout.decode(errors="replace").rstrip())
        if command.startswith("py"):
            print(f"  ({time.monotonic() - started:.1f} s, under emulation)", flush=True)

    def _quietly(self, command: str) -> None:
        self._machine.run(command)

    def _last_lines(self) -> None:
        self._show(f"lab-guest console {NAME} -n 4")

    def _judge(self) -> None:
        """The guest's own verdict over its whole life."""
        log = f"/var/log/xen/console/guest-{NAME}.log"
        done = self._machine.run(f"grep -c CORRUPT {log}", check=False)
        found = done.stdout.decode().strip()
        if found != "0":
            raise LabError(f"the guest found {found} corrupt pages or registers: see {log}")
        print("\nIn all that time the guest found no page and no register that was not what it must be.")


def _title(text: str) -> None:
    print(f"\n=== {text}", flush=True)
