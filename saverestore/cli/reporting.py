"""--report, --events, --metrics: what a save, restore or migration did or does, also when it fails, for programs."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import stat
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
    """What a report, events and metrics exclude."""
    wanted = {
        "--report describes": given.report,
        "--events describes": given.events,
        "--metrics describes": given.metrics,
    }
    for text, is_given in wanted.items():
        if is_given and given.dry_run:
            parser.error(f"{text} what was done, and --dry-run makes no changes")
    json_is_given = vars(given).get("json")
    if json_is_given and given.dry_run:
        parser.error("--json prints a result, and --dry-run has none")
    if json_is_given and given.events is not None and _descriptor(given.events) == STDOUT:
        parser.error(f"--json and --events {given.events} cannot both go to standard output")
    files = [("--report", str(path)) for path in given.report]
    files += [("--metrics", str(given.metrics))] if given.metrics is not None else []
    if given.events is not None:
        for option, path in files:
            if _descriptor(given.events) is None and _is_same(_Place(path), _Place(given.events)):
                parser.error(f"{option}: {path} is the file of --events")
        files.append(("--events", given.events))
    if given.image is None:
        return
    for option, where in files:
        place = _Place(where, _descriptor(where) if option == "--events" else None)
        image = _place_of_image(given.image, parser.prog)
        if place.descriptor == image.descriptor == STDOUT:
            parser.error(f"--events {where} and the image cannot both go to standard output")
        if _is_same(place, image):
            parser.error(f"{option}: {where} is the image")


STDIN, STDOUT = 0, 1


def _descriptor(events: str) -> int | None:
    """The number in `--events FD`."""
    return int(events) if events.isdecimal() else None


@dataclass(frozen=True)
class _Place:
    """A file by its name, or the descriptor of this number."""

    path: str
    descriptor: int | None = None

    def status(self) -> os.stat_result | None:
        """Of the file; None where there is none."""
        try:
            return Path(self.path).stat() if self.descriptor is None else os.fstat(self.descriptor)
        except (OSError, ValueError, OverflowError):
            return None


def _place_of_image(image: str, prog: str) -> _Place:
    if image == "-":
        return _Place(image, STDIN if prog == "pyrestore" else STDOUT)
    number = image.removeprefix("fd:")
    return _Place(image, int(number) if number != image and number.isdecimal() else None)


def _is_same(one: _Place, other: _Place) -> bool:
    """Whether what is written to the one is found in the other. Of devices, such as /dev/null, that is not known."""
    if one.descriptor is None and other.descriptor is None:
        if os.path.realpath(one.path) == os.path.realpath(other.path):
            return True
    elif one.descriptor == other.descriptor:
        return True
    first, second = one.status(), other.status()
    if first is None or second is None or stat.S_ISCHR(first.st_mode):
        return False
    return os.path.samestat(first, second)


@dataclass
class Reporting:
    """One run that may be reported. `facts`: the plain data, once `outcome` is known; set by the command."""

    outcome: Outcome
    facts: Callable[[Outcome], Facts]
    events: Events | None = None

    def know(self, given: argparse.Namespace) -> None:
        """From here on these options are in force, and this is the image: some are known when work has begun."""
        self.outcome = replace(self.outcome, image=given.image, options=_options(given))

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

    with shield():
        facts: Facts = {}
        with _warning(prog, "the report"):
            facts = run.facts(run.outcome)
        if not facts:
            return
        if given.verbose and not given.quiet:
            with _warning(prog, "the summary"):
                for line in lines_of(facts):
                    common.say(f"{prog}: {line}")
        if run.events is not None:
            with _warning(prog, "the last event"):
                run.events.end(facts)
                run.events.close_file()
        for path in given.report:
            with _warning(prog, str(path)):
                write(path, facts)
        if given.metrics is not None:
            from saverestore.report import metrics

            with _warning(prog, str(given.metrics)):
                metrics.write(given.metrics, facts)
        if prints_json:
            with _warning(prog, "the result"):
                common.answer(json.dumps(facts))


@contextmanager
def _warning(prog: str, what: str) -> Iterator[None]:
    """A failure in this block is a warning that `what` was not written: the save or restore has its own result."""
    try:
        yield
    except Exception as error:  # whatever it is
        common.say(f"{prog}: warning: {what} was not written: {in_full(error, prog)}")


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
