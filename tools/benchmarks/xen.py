"""`tools/bench xen`: pysave and pyrestore against xl, on real Xen in the lab, in one boot, in turns.

`benchmarks.xen_times` does the timing, in dom0; here it is run there, and what it found is put together.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xenlab import ssh
from xenlab.errors import say
from xenlab.machine import Machine

from benchmarks.results import Comparison, compare, table

PARTS = ("saves", "live")
LIVE_MIB = 256
SCRIPT = Path(__file__).with_name("xen_times.py")

FASTER = 1.3
NO_LONGER = 1.0


@dataclass(frozen=True)
class Timed:
    """What one way of doing it took: medians over the pairs, and how far the pairs lie apart."""

    what: str
    ours_s: float
    xl_s: float
    ratios: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """How many times as fast as xl: the median of the pairs' own ratios, as both of a pair met the same load."""
        return statistics.median(self.ratios)


def measure(
    variant: str, kinds: Sequence[str], sizes_mib: Sequence[int], pairs: int, parts: Sequence[str]
) -> list[dict[str, Any]]:
    """Run it all in the lab: what `xen_times` printed, with kind and size.

    What fails is told and left out, with what it had found by then: under emulation a PVH guest may die of a fault
    of the emulated processor, and the rest has taken half an hour.
    """
    found: list[dict[str, Any]] = []
    with Machine(variant).up_meanwhile() as machine:
        for kind in kinds if "saves" in parts else ():
            for mib in sizes_mib:
                say(f"{kind}, {mib} MiB: saves and restores, {pairs} pairs")
                found += _run(machine, "saves", kind, mib, pairs)
        if "live" in parts:
            if "pv" in kinds:
                say("pv, live: left out: xl cannot, as this Xen has no log-dirty for PV guests")
            if "pvh" in kinds:
                say(f"pvh, {LIVE_MIB} MiB: live, {pairs} pairs at each rate")
                found += _run(machine, "live", "pvh", LIVE_MIB, pairs)
    return found


def _run(machine: Machine, what: str, kind: str, mib: int, pairs: int) -> list[dict[str, Any]]:
    # Through standard input: dom0 has the package and its tests, not the tools of this repository.
    line = f"python3 - {what} --kind {kind} --memory {mib} --pairs {pairs}"
    with SCRIPT.open("rb") as script:
        done = subprocess.run(
            ssh.command(machine.variant.name, machine.require_up(), [line]),
            stdin=script,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        say(f"{what} of {kind}, {mib} MiB: exit {done.returncode} in dom0; what it said is above; left out")
    return [{**json.loads(text), "kind": kind, "mib": mib} for text in done.stdout.splitlines()]


def put_together(found: Iterable[dict[str, Any]]) -> list[Timed]:
    """Pairs of ours and xl's, by what was timed."""
    groups: dict[str, dict[int, dict[str, float]]] = {}
    for one in found:
        for figure in ("stream_s", "whole_s", "downtime_s"):
            if figure in one:
                rate = f", {one['rate']} pages/s" if "rate" in one else ""
                what = f"{one['kind']}, {one['mib']} MiB, {one['what']}{rate}: {FIGURES[figure]}"
                groups.setdefault(what, {}).setdefault(one["pair"], {})[one["tool"]] = one[figure]
    whole = {
        what: [pair for pair in by_pair.values() if len(pair) == 2] for what, by_pair in groups.items()
    }  # one that was cut short has one half of its last pair
    return [
        Timed(
            what,
            statistics.median(pair["ours"] for pair in pairs),
            statistics.median(pair["xl"] for pair in pairs),
            tuple(pair["xl"] / pair["ours"] for pair in pairs),
        )
        for what, pairs in whole.items()
        if pairs
    ]


FIGURES = {"stream_s": "stream", "whole_s": "whole process", "downtime_s": "downtime"}


def comparisons(timed: Iterable[Timed]) -> list[Comparison]:
    """With the targets: streams of 1 GiB 1.3 times as fast as xl, downtime no longer."""
    return [
        compare(one.what, one.ours_s, one.xl_s, "s", _target(one.what), less_is_better=True) for one in timed
    ]


def _target(what: str) -> float | None:
    if what.endswith("downtime"):
        return NO_LONGER
    return FASTER if what.endswith("stream") and "1024 MiB" in what else None


def spread_table(timed: Iterable[Timed]) -> str:
    """How far the pairs lie apart."""
    rows = (
        (one.what, f"{one.ratio:.2f}", f"{min(one.ratios):.2f} to {max(one.ratios):.2f}") for one in timed
    )
    return table(("what", "times as fast as xl, median of pairs", "least and most"), rows)
