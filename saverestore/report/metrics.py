"""The figures of a report in Prometheus' text form, as node_exporter's textfile collector reads it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from saverestore.errors import ErrorName, UsageError
from saverestore.report.facts import Facts
from saverestore.report.files import printable

EVERYBODY_READS = 0o644


def check(path: Path) -> None:
    """UsageError, before anything is done, when no metrics could be written there, or without `prometheus_client`."""
    _library()
    if path.suffix != ".prom":
        raise UsageError(
            f"{path}: the name of a file of metrics must end in .prom", name=ErrorName.FILE_UNSUITABLE
        )
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no directory {path.parent}", name=ErrorName.FILE_NOT_FOUND)
    if path.is_dir():
        raise UsageError(f"{path} is a directory; give a file name in it", name=ErrorName.FILE_UNSUITABLE)


def _library() -> Any:
    try:
        import prometheus_client
    except ImportError as error:
        raise UsageError(
            "metrics need the Python package prometheus_client (Debian: python3-prometheus-client)",
            name=ErrorName.PACKAGE_MISSING,
        ) from error
    return prometheus_client


def figures_of(facts: Facts) -> dict[str, tuple[str, float]]:
    """By the name of a metric without its prefix: what it means, and the value. What is not known is left out."""
    downtime = facts.get("downtime") or {}
    downtime_s = downtime.get("total_s")
    if downtime_s is not None:
        downtime_s += facts.get("handover_s") or 0.0
    rounds = facts.get("rounds") or []
    known: dict[str, tuple[str, float | None]] = {
        "success": ("1 when the last run did what it should, else 0", float(facts["result"] == "done")),
        "exit_code": ("Exit code of the last run", facts["exit_code"]),
        "duration_seconds": ("Duration of the last run", facts["seconds"]["total"]),
        "stream_bytes": ("Length of the libxc stream", facts["bytes"]["stream"]),
        "pages": ("Pages sent or restored", facts["pages"].get("sent", facts["pages"].get("restored"))),
        "rounds": ("Live rounds and the last one", len(rounds) if rounds else None),
        "downtime_seconds": ("Downtime, from the request to suspend on", downtime_s),
    }
    return {name: (text, float(value)) for name, (text, value) in known.items() if value is not None}


def write(path: Path, facts: Facts) -> None:
    """Replace the file, which others may read, as a whole. TransportError when it cannot be written."""
    library = _library()
    registry = library.CollectorRegistry()
    tool = facts["tool"]
    labels = {"domain": printable(facts["domain"] or "")}
    for name, (text, value) in figures_of(facts).items():
        gauge = library.Gauge(f"{tool}_last_{name}", f"{text}.", list(labels), registry=registry)
        gauge.labels(**labels).set(value)
    ended = library.Gauge(
        f"{tool}_last_end_timestamp_seconds", "When it ended.", list(labels), registry=registry
    )
    ended.labels(**labels).set_to_current_time()
    from saverestore.transport.newfile import NewFile

    with NewFile(path, overwrite=True) as file:
        os.fchmod(file.sink.fileno(), EVERYBODY_READS)  # the library's own file has what the umask leaves
        file.sink.write(library.generate_latest(registry))
        file.sync()
        file.publish()
