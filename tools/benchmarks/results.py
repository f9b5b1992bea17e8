"""What a benchmark has to say: medians, comparisons with their targets, tables, JSON. All of it pure."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.errors import BenchError
from benchmarks.running import Run


@dataclass(frozen=True)
class Comparison:
    """One line of a benchmark's JSON, the same in all of them.

    `ours` and `peer` are in `unit`; `ratio` is how many times better ours is, be more or less of the unit the
    better; `target` is what it should be at least (None: none is set) and `holds` whether it is (None without).
    """

    what: str
    ours: float
    peer: float
    unit: str
    ratio: float
    target: float | None
    holds: bool | None


def compare(
    what: str,
    ours: float,
    peer: float,
    unit: str,
    target: float | None = None,
    *,
    less_is_better: bool = False,
) -> Comparison:
    """See Comparison. BenchError for figures that cannot be compared."""
    if ours <= 0 or peer <= 0:
        raise BenchError(f"{what}: {ours} and {peer} {unit} cannot be compared: run it again")
    ratio = peer / ours if less_is_better else ours / peer
    return Comparison(
        what,
        _rounded(ours),
        _rounded(peer),
        unit,
        round(ratio, 3),
        target,
        None if target is None else round(ratio, 3) >= target,
    )


def _rounded(value: float) -> float:
    return round(value, 1 if value >= 10 else 3)


def median_run(runs: Sequence[Run]) -> Run:
    """The median of each figure by itself."""
    if not runs:
        raise BenchError("nothing was run: --rounds must be at least 1")
    columns = zip(*((run.wall_s, run.work_s, run.cpu_s, run.peak_mib) for run in runs), strict=True)
    return Run(*(statistics.median(column) for column in columns))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as Markdown has it, that a terminal shows straight, too: the first column left, others right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]

    def line_of(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([line_of(lines[0]), rule, *map(line_of, lines[1:])])


def comparison_table(comparisons: Iterable[Comparison]) -> str:
    """All comparisons, with whether their targets hold."""

    def number(value: float) -> str:
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    rows = (
        (
            one.what,
            f"{number(one.ours)} {one.unit}",
            f"{number(one.peer)} {one.unit}",
            f"{one.ratio:.2f}",
            "" if one.target is None else f"{one.target:.2f}",
            "" if one.holds is None else "yes" if one.holds else "NO",
        )
        for one in comparisons
    )
    return table(("what", "ours", "peer", "times", "target", "holds"), rows)


def write_json(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Write the list, whole or not at all. BenchError when that fails."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps([asdict(one) for one in comparisons], indent=1) + "\n")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise BenchError(f"cannot write {path}: {error.strerror}") from error
