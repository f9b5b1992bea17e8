"""--report: files that describe what a save or restore did, also one that failed."""

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


@contextmanager
def reporting(
    prog: str, given: argparse.Namespace, domain: str | None, facts: Callable[[Outcome], Facts]
) -> Iterator[Reporting]:
    """Inside this block the work is done. At its end, however it ends, reports are written and -v's lines printed.

    `given`: the options in force. `facts`: makes the plain data of what is known by then.
    """
    from saverestore.report.facts import Outcome

    began, started = datetime.datetime.now(datetime.UTC), time.monotonic()
    run = Reporting(Outcome(prog, domain, given.image, began, 0.0, _options(given)), facts)
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
    if not given.report and not given.verbose and not prints_json:
        return
    from saverestore.report.files import write
    from saverestore.report.text import lines_of

    try:
        with shield():
            facts = run.facts(run.outcome)
            if given.verbose and not given.quiet:
                for line in lines_of(facts):
                    common.say(f"{prog}: {line}")
            for path in given.report:
                write(path, facts)
            if prints_json:
                common.answer(json.dumps(facts))
    except Exception as error:  # whatever it is: the save or restore has its own result
        common.say(f"{prog}: warning: the report was not written: {in_full(error, prog)}")


OF_ALL = ("all", "is_one_of_all", "parallel", "within", "on_failure", "if_unsaveable")
"""Options of `--all`, of which a report describes one save or restore."""


def _options(given: argparse.Namespace) -> dict[str, Any]:
    """The options in force, for people and programs."""
    left_out = {"domain", "image", "report", "quiet", "verbose", "recover", "dry_run", "json", *OF_ALL}
    return {name: value for name, value in vars(given).items() if name not in left_out}
