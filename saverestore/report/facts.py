"""Reports as plain data: what goes into the JSON file, and what the page is drawn of. "
"docs/reference/report.md has the keys."""

from __future__ import annotations

import datetime
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import saverestore
from saverestore.engine.policy import Limits, RoundStats, dirty_rate, predict
from saverestore.engine.progress import DomainState, RestoreReport, SaveReport
from saverestore.errors import ErrorName, ExitCode
from saverestore.stream.coding_choice import Coded
from saverestore.stream.layout import PAGE_SIZE
from saverestore.transport.image_sockets import ADDRESSES

REPORT_VERSION = 1
"""Counts up when a key goes or changes its meaning; new keys may come without."""

STDIN_OR_STDOUT = "-"

Facts = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """One run of a command, seen from outside.

    `domain`: as it was named, or None where that was not known when it failed. `image`: as it was named; None of a
    migration, which makes none. `error`: what was printed of its
    failure, and `error_name` the cause by its stable name; None when it did what it should.
    """

    tool: str
    domain: str | None
    image: str | None
    began: datetime.datetime
    seconds: float
    options: dict[str, Any] = field(default_factory=dict)
    exit_code: int = ExitCode.DONE
    error: str | None = None
    error_name: ErrorName | None = None

    @property
    def result(self) -> str:
        """ "done", "failed" or "interrupted"."""
        if self.error is None:
            return "done"
        return "interrupted" if self.exit_code == ExitCode.INTERRUPTED else "failed"


def facts_of_save(outcome: Outcome, report: SaveReport) -> Facts:
    """Of a save, be it done or failed."""
    live = report.dirty_source != "none"
    outcome = replace(outcome, image=outcome.image or report.image)  # in a store it gets its name late
    rounds = report.rounds
    return _head(outcome, report) | {
        "bytes": {"stream": report.stream_bytes, "stored": report.stored_bytes},
        "cache": report.cache,
        "pages": {
            "sent": report.pages_sent,
            "resent": report.resent_pages,
            "zero": report.zero_pages,
        },
        "seconds": _seconds(
            outcome.seconds, {"check": report.check_s, "stream": report.total_s, "sync": report.sync_s}
        ),
        "rates": {"stream_bytes_per_s": _per(report.stream_bytes, report.total_s)},
        "codecs": _coded(report.coded),
        "dirty_source": report.dirty_source,
        "rounds": [_round(rounds[: i + 1], report.limits, live=live) for i in range(len(rounds))],
        "decision": None if report.verdict is None else _decision(report),
        "downtime": None if report.downtime is None else asdict(report.downtime),
        "peak_memory_bytes": report.peak_memory_bytes,
    }


def facts_of_restore(outcome: Outcome, report: RestoreReport) -> Facts:
    """Of a restore, be it done or failed."""
    return _head(outcome, report) | {
        "domid": report.domid,
        "bytes": {"stream": report.stream_bytes},
        "pages": {"restored": report.pages},
        "records": report.records,
        "digest": None if report.digest is None else report.digest.option,
        "seconds": _seconds(
            outcome.seconds,
            {
                "check": report.check_s,
                "create": report.create_s,
                "memory": report.memory_s,
                "complete": report.complete_s,
                "start": report.start_s,
            },
        ),
        "rates": {
            "stream_bytes_per_s": _per(report.stream_bytes, report.memory_s),
            "pages_per_s": _per(report.pages, report.memory_s),
        },
        "peak_memory_bytes": report.peak_memory_bytes,
    }


ABSENT = (ErrorName.DOMAIN_NOT_FOUND, ErrorName.DOMAIN_AMBIGUOUS)
"""Failures after which there is no domain to speak of."""


def _head(outcome: Outcome, report: SaveReport | RestoreReport) -> Facts:
    state = DomainState.NONE if outcome.error_name in ABSENT else report.domain_state
    image = outcome.image
    return {
        "report_version": REPORT_VERSION,
        "tool": outcome.tool,
        "version": saverestore.__version__,
        "host": socket.gethostname(),
        "began": outcome.began.isoformat(timespec="seconds"),
        "xen_version": report.xen_version,
        "domain": outcome.domain,
        "domain_uuid": report.domain_uuid,
        "image": image,
        "image_path": None if image is None or _is_no_path(image) else str(Path(image).absolute()),
        "options": outcome.options,
        "result": outcome.result,
        "exit_code": int(outcome.exit_code),
        "error": outcome.error,
        "error_name": outcome.error_name,
        "domain_state": state.value,
        "page_bytes": PAGE_SIZE,
    }


def _is_no_path(image: str) -> bool:
    return image == STDIN_OR_STDOUT or image.startswith(ADDRESSES)


def _round(so_far: Sequence[RoundStats], limits: Limits, *, live: bool) -> Facts:
    """The last of these rounds, with what was known after it."""
    one = so_far[-1]
    while_running = live and not one.final
    return {
        "number": one.number,
        "final": one.final,
        "sent_pages": one.sent_pages,
        "dirty_pages": one.dirty_pages if while_running else None,
        "sent_bytes": one.sent_bytes,
        "seconds": one.seconds,
        "broken_s": one.broken_s,
        "codecs": _coded(one.coded),
        "sent_pages_per_s": one.send_rate,
        "dirty_pages_per_s": dirty_rate(so_far) if while_running else None,
        "cpu_percent": None if one.final else one.cpu_percent,
        "expected_downtime_s": predict(so_far, limits).downtime_s if while_running else None,
    }


def _coded(coded: Mapping[str, Coded]) -> Facts:
    return {name: asdict(one) for name, one in coded.items()}


def _decision(report: SaveReport) -> Facts:
    """What ended the rounds."""
    verdict, limits = report.verdict, report.limits
    assert verdict is not None
    return {
        "decision": verdict.decision.name.lower(),
        "why": verdict.why,
        "wanted": verdict.wanted,
        "on_stall": limits.on_stall.value,
        "downtime_limit_s": limits.downtime_s,
        "expected_downtime_s": verdict.prediction.downtime_s,
        "expected_suspend_s": verdict.prediction.suspend_s,
        "expected_last_round_s": verdict.prediction.rest_s,
        "expected_state_s": verdict.prediction.state_s,
    }


def _seconds(total: float, parts: dict[str, float]) -> dict[str, float]:
    """All, its parts, and the rest."""
    return {"total": total, **parts, "other": max(0.0, total - sum(parts.values()))}


def _per(amount: int, seconds: float) -> float | None:
    return amount / seconds if seconds > 0 else None
