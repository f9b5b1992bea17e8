"""pysave or pyrestore in which one thing goes wrong at a given point: a program that test_arm_faults.py runs.

    arm_driver.py kill POINT  pysave ARGUMENT...      SIGKILL, as soon as it gets there
    arm_driver.py undefined PIECE  COMMAND...         that stub meets an undefined instruction
    arm_driver.py pending -  COMMAND...               every vCPU gets another event before its vcpu_info is looked for

Nothing of this is in the product: it is put over it from outside.
"""

from __future__ import annotations

import importlib
import itertools
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from saverestore.cli import pyrestore, pysave

ARM64 = "saverestore.guest.arm64"


@dataclass(frozen=True)
class Point:
    """A call of a function, by where it is looked up; `when`: before or after its `number`th call."""

    module: str
    name: str
    when: str = "after"
    number: int = 1


POINTS = {
    "Xen's clock moved": Point(f"{ARM64}.shared", "arm64.set_host_time", number=2),
    "shared_info found": Point(f"{ARM64}.save", "find_shared_info"),
    "suspended": Point("saverestore.guest.common.suspend", "Suspender.suspend"),
    "journal on the disk": Point(f"{ARM64}.save", "journals.write"),
    "pages lent": Point(f"{ARM64}.stubs", "xen_memory.populate"),
    "a context set": Point(f"{ARM64}.stubs", "set_context"),
    "stub started": Point(f"{ARM64}.stubs", "wait_for_stub", "before"),
    "stub ended": Point(f"{ARM64}.stubs", "wait_for_stub"),
    "registers read": Point(f"{ARM64}.stubs", "Scratch.run"),
    "memory being written": Point(f"{ARM64}.save", "Arm64Save.read_pages", number=5),
    "event sent": Point(f"{ARM64}.stubs", "Scratch.run", number=2),
    "about to clear places": Point(f"{ARM64}.save", "journals.write", number=2),
    "places cleared": Point(f"{ARM64}.vcpu_info", "write_cleared"),
    "places put back": Point(f"{ARM64}.vcpu_info", "put_back_cleared"),
    "lent pages taken back": Point(f"{ARM64}.stubs", "release_scratch"),
    "image on the disk": Point("saverestore.transport.newfile", "NewFile.sync"),
    "image has its name": Point("saverestore.transport.newfile", "NewFile.publish"),
    "own contexts set": Point(f"{ARM64}.resuming", "set_context"),
    "journal settled": Point(f"{ARM64}.resuming", "journals.settle"),
    "running again": Point(f"{ARM64}.resuming", "journals.remove", "before"),
}

NEEDS_PENDING = ("about to clear places", "places cleared", "places put back")
"""What happens only when a vCPU had an event pending."""

ONLY_WHEN_IT_GOES_ON = ("own contexts set", "journal settled", "running again")
"""What happens only with -c."""


def over(module: str, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put what `make` makes of a function in its place."""
    *path, last = name.split(".")
    owner = importlib.import_module(module)
    for part in path:
        owner = getattr(owner, part)
    setattr(owner, last, make(getattr(owner, last)))


def kill_at(point: Point) -> None:
    calls = itertools.count(1)  # on any thread

    def make(function: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any, **kwargs: Any) -> Any:
            is_it = next(calls) == point.number
            if is_it and point.when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if is_it:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return instead

    over(point.module, point.name, make)


UNDEFINED_AT = 0x60
"""Behind the first instructions of each stub: by then it has its own vectors."""


def undefined_in(piece: str) -> None:
    def make(function: Callable[..., bytes]) -> Callable[..., bytes]:
        def instead(wanted: Any, gic: int) -> bytes:
            code = bytearray(function(wanted, gic))
            if wanted.name == piece:
                code[UNDEFINED_AT : UNDEFINED_AT + 4] = bytes(4)  # UDF #0
            return bytes(code)

        return instead

    over(f"{ARM64}.stubs", "code_of", make)


def events_are_pending() -> None:
    """As if a back end had something to tell: the event that we send first is left as it is."""

    def make(_function: Callable[..., Any]) -> Callable[..., Any]:
        def instead(self: Any, journal: Any, _digests: Any, number: int, _known: set[int]) -> None:
            self._send(journal, number, 7)

        return instead

    over(f"{ARM64}.vcpu_info", "VcpuInfoSearch._by_change", make)


def main() -> int:
    kind, what, command, *arguments = sys.argv[1:]
    if kind == "kill":
        if what in NEEDS_PENDING:
            events_are_pending()
        kill_at(POINTS[what])
    elif kind == "undefined":
        undefined_in(what)
    else:
        events_are_pending()
    return {"pysave": pysave, "pyrestore": pyrestore}[command].main(arguments)


if __name__ == "__main__":
    sys.exit(main())
