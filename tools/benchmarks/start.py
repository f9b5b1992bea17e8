"""`tools/bench start`: how long commands take before they do anything, next to Python and numpy by themselves.

Each is a process of the command's own entry point, from the moment it is started:

first byte   `pysave DOMAIN -`, until its first byte comes out of the pipe. A domain needs Xen, so this one's is in
             memory: the command's start, options and imports are those of any save, then Xen is asked for as ever (it
             is not there, or has no such domain) and the engine saves the one in memory. Looking up a real domain is
             not in it.
whole        a command that ends where it first needs what is not there: Xen, a host, an image.

Figures are the least of all rounds: whatever disturbs a process only adds. Compiled modules (.pyc) are there, as they
are where the package is installed: a round that is not counted makes them, in a folder of its own.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.errors import BenchError
from benchmarks.results import Comparison, compare, table, within
from benchmarks.running import CHECKOUT

FIRST_BYTE_S = 0.12
NOT_THERE = "no-such-domain"
FIRST_BYTE = "pysave, first byte"
PASS, NUMPY = "python -c pass", "python -c 'import numpy'"


@dataclass(frozen=True)
class Subject:
    """A process. `codes`: what it may exit with."""

    name: str
    argv: tuple[str, ...]
    codes: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Figures:
    """Seconds, the least of all rounds: until the first byte (None: it writes none) and the end, and of processor."""

    first_s: float | None
    whole_s: float
    cpu_s: float


def _entry(name: str, *arguments: str) -> tuple[str, ...]:
    return (
        sys.executable,
        "-c",
        f"import sys; from saverestore.cli.start import {name}; sys.exit({name}())",
        *arguments,
    )


def subjects() -> list[Subject]:
    """All of them, in the order of the table."""
    # As our commands load it and end: without threads for each core, and without Python's own end.
    numpy = "import os; os.environ['OPENBLAS_NUM_THREADS'] = '1'; import numpy; os._exit(0)"
    failures = (3, 4, 5, 6)
    return [
        Subject(PASS, (sys.executable, "-c", "pass")),
        Subject(NUMPY, (sys.executable, "-c", numpy)),
        Subject(FIRST_BYTE, (sys.executable, "-m", "benchmarks.first_byte")),
        Subject("pysave, to Xen", _entry("pysave", NOT_THERE, "no-such-folder/out.img"), failures),
        Subject("pyrestore, to its image", _entry("pyrestore", "no-such.img"), (2, *failures)),
        Subject(
            "pymigrate, to the other host",
            _entry("pymigrate", NOT_THERE, "tcp://127.0.0.1:1", "--trust-network"),
            failures,
        ),
        Subject("pymigrate receive, to Xen", _entry("pymigrate", "receive"), failures),
        Subject("pyimage info, to its image", _entry("pyimage", "info", "no-such.img"), (2, *failures)),
        Subject("pysave --help", _entry("pysave", "--help")),
    ]


def measure(rounds: int, say: Callable[[str], None]) -> dict[str, Figures]:
    """Run all in turns. BenchError when one does not end as it should."""
    found: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            say(f"round {number} of {rounds}" if number else "a round that is not counted")
            for one in subjects():
                figures = _run(one, folder)
                if number:
                    found.setdefault(one.name, []).append(figures)
    return {name: _least(all_of_it) for name, all_of_it in found.items()}


def _least(all_of_it: Sequence[Figures]) -> Figures:
    firsts = [one.first_s for one in all_of_it if one.first_s is not None]
    return Figures(
        min(firsts, default=None), min(one.whole_s for one in all_of_it), min(one.cpu_s for one in all_of_it)
    )


def _run(subject: Subject, cache: str) -> Figures:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = cache
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(CHECKOUT), str(CHECKOUT / "tools"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    ours, theirs = os.pipe()
    with open(ours, "rb", buffering=0) as out, open(os.devnull, "r+b") as null:  # noqa: PTH123 - a descriptor
        started = time.perf_counter()
        try:
            pid = os.posix_spawn(
                subject.argv[0],
                subject.argv,
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, null.fileno(), 0),
                    (os.POSIX_SPAWN_DUP2, theirs, 1),
                    (os.POSIX_SPAWN_DUP2, null.fileno(), 2),
                ],
                setpgroup=0,
            )
        finally:
            os.close(theirs)
        first_s = time.perf_counter() - started if out.read(1) else None
        while out.read(1 << 16):
            pass
        _, status, usage = os.wait4(pid, 0)
        whole_s = time.perf_counter() - started
    code = os.waitstatus_to_exitcode(status)
    if code not in subject.codes:
        raise BenchError(f"{subject.name}: exit {code}: run it by itself: {' '.join(subject.argv)}")
    return Figures(first_s, whole_s, usage.ru_utime + usage.ru_stime)


def report(measured: dict[str, Figures]) -> str:
    """All figures."""
    rows = (
        (
            name,
            "" if one.first_s is None else f"{one.first_s * 1000:.0f}",
            f"{one.whole_s * 1000:.0f}",
            f"{one.cpu_s * 1000:.0f}",
        )
        for name, one in measured.items()
    )
    return table(("milliseconds", "first byte", "whole", "CPU"), rows)


def comparisons(measured: dict[str, Figures]) -> list[Comparison]:
    """The first byte against its bound, and each command's processor time against numpy's alone."""
    first_s = measured[FIRST_BYTE].first_s
    if first_s is None:
        raise BenchError(f"{FIRST_BYTE}: nothing was written")
    numpy_s = measured[NUMPY].cpu_s
    return [
        within("pysave: from its start to the first byte", first_s, FIRST_BYTE_S, "s"),
        *(
            compare(f"{name}: CPU against numpy's import", one.cpu_s, numpy_s, "s", less_is_better=True)
            for name, one in measured.items()
            if name not in (PASS, NUMPY)
        ),
    ]
