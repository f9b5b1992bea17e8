"""--report, --events, --metrics: what a save, restore or migration did or does, also when it fails, for programs."""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saverestore.cli import arguments, common
from saverestore.cli.remedies import in_full
from saverestore.errors import UsageError, exit_code_of, name_of
from saverestore.interrupts import shield

if TYPE_CHECKING:
    from saverestore.engine.progress import Progress
    from saverestore.report.events import Events
    from saverestore.report.facts import Facts, Outcome


def add_report(group: argparse._ArgumentGroup, what: str) -> None:
    """--report, of the commands that work on domains."""
    file = group.add_argument(
        "--report",
        metavar="FILE",
        type=_path,
        action="append",
        default=[],
        help=f"write what the {what} did, how fast and how long, also when it failed: FILE.json for programs, "
        "FILE.html "
        "to look at; may be given for both. It replaces an older FILE. A report that cannot be written is a "
        "warning and changes no exit code",
    )
    arguments.complete(file, arguments.FILE)


def add_following(group: argparse._ArgumentGroup, what: str) -> None:
    """--events and --metrics, of the commands that work on domains."""
    events = group.add_argument(
        "--events",
        metavar="FILE|FD",
        help=f"add a line of JSON for each phase and round of the {what}, each second of a round, and the end, to "
        "FILE, or write it to the descriptor of this number. A reader that is slow or gone does not delay the "
        f"{what}",
    )
    arguments.complete(events, arguments.FILE)
    metrics = group.add_argument(
        "--metrics",
        metavar="FILE.prom",
        type=_metrics,
        help=f"at the end, write the figures of the {what} for Prometheus, as node_exporter's textfile collector "
        "reads them: everybody may read FILE.prom",
    )
    arguments.complete(metrics, arguments.FILE)


def _metrics(text: str) -> Path:
    from saverestore.report.metrics import check

    try:
        check(Path(text))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


def add_json(group: argparse._ArgumentGroup, what: str) -> None:
    """--json, of the commands whose result is one save or restore."""
    group.add_argument(
        "--json",
        action="store_true",
        help=f"print the result of the {what} on standard output, also when it failed: one JSON object with the keys "
        "of --report FILE.json",
    )


def _path(text: str) -> Path:
    from saverestore.report.files import checked

    try:
        return checked(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def check_report(parser: arguments.Parser, given: argparse.Namespace) -> None:
    """What a report excludes."""
    if given.report and given.dry_run:
        parser.error("--report describes what was done, and --dry-run makes no changes")
    if given.metrics is not None and given.dry_run:
        parser.error("--metrics describes what was done, and --dry-run makes no changes")
    if vars(given).get("json") and given.dry_run:
        parser.error("--json prints a result, and --dry-run has none")
    for path in given.report:
        if given.image is not None and path.absolute() == Path(given.image).absolute():
            parser.error(f"--report: {path} is the image")


@dataclass
class Reporting:
    """One run that may be reported. `facts`: the plain data, once `outcome` is known; set by the command."""

    outcome: Outcome
    facts: Callable[[Outcome], Facts]
    events: Events | None = None

    def followed(self, progress: Progress) -> Progress:
        """What is to be called while the work is done: `progress`, and --events, where it was given."""
        return progress if self.events is None else self.events.over(progress)


@contextmanager
def reporting(
    prog: str, given: argparse.Namespace, domain: str | None, facts: Callable[[Outcome], Facts]
) -> Iterator[Reporting]:
    """Inside this block the work is done. At its end, however it ends, reports are written and -v's lines printed.

    `given`: the options in force. `facts`: makes the plain data of what is known by then.
    """
    from saverestore.report.facts import Outcome

    events = _opened_events(given)
    began, started = datetime.datetime.now(datetime.UTC), time.monotonic()
    run = Reporting(Outcome(prog, domain, given.image, began, 0.0, _options(given)), facts, events)
    if events is not None:
        events.say("begin", tool=prog, domain=domain)
    try:
        yield run
    except BaseException as error:
        run.outcome = replace(
            run.outcome,
            seconds=time.monotonic() - started,
            exit_code=exit_code_of(error),
            error=in_full(error, prog),
            error_name=name_of(error),
        )
        _finish(prog, given, run)
        raise
    run.outcome = replace(run.outcome, seconds=time.monotonic() - started)
    _finish(prog, given, run)


def _finish(prog: str, given: argparse.Namespace, run: Reporting) -> None:
    """Nothing that goes wrong here is a failure of the work, which is done."""
    prints_json = vars(given).get("json", False)
    wanted = (
        given.report or given.verbose or prints_json or run.events is not None or given.metrics is not None
    )
    if not wanted:
        return
    from saverestore.report.files import write
    from saverestore.report.text import lines_of

    try:
        with shield():
            facts = run.facts(run.outcome)
            if given.verbose and not given.quiet:
                for line in lines_of(facts):
                    common.say(f"{prog}: {line}")
            if run.events is not None:
                run.events.end(facts)
                run.events.close_file()
            for path in given.report:
                write(path, facts)
            if given.metrics is not None:
                from saverestore.report import metrics

                metrics.write(given.metrics, facts)
            if prints_json:
                common.answer(json.dumps(facts))
    except Exception as error:  # whatever it is: the save or restore has its own result
        common.say(f"{prog}: warning: the report was not written: {in_full(error, prog)}")


def _opened_events(given: argparse.Namespace) -> Events | None:
    if given.events is None:
        return None
    from saverestore.report.events import Events

    return Events.open(given.events)


OF_ALL = ("all", "is_one_of_all", "parallel", "within", "on_failure", "if_unsaveable")
"""Options of `--all`, of which a report describes one save or restore."""


def _options(given: argparse.Namespace) -> dict[str, Any]:
    """The options in force, for people and programs."""
    left_out = {
        *("domain", "image", "report", "events", "metrics", "quiet", "verbose", "recover", "dry_run", "json"),
        "from_settings",
        *OF_ALL,
    }
    return {name: value for name, value in vars(given).items() if name not in left_out}
