"""--report: the file that tells what a save or restore did, also one that failed."""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saverestore.cli import common
from saverestore.cli.remedies import in_full
from saverestore.errors import UsageError, exit_code_of, name_of
from saverestore.interrupts import shield

if TYPE_CHECKING:
    from saverestore.report.facts import Facts, Outcome


def add_report(parser: argparse.ArgumentParser, what: str) -> None:
    """--report, of the commands that work on domains."""
    parser.add_argument(
        "--report",
        metavar="FILE",
        type=_path,
        help=f"write what the {what} did, how fast and how long, also when it failed: FILE.json for programs, "
        "FILE.html to look at (docs/report.md). It replaces an older FILE. A report that cannot be written is a "
        f"warning and changes no exit code: the {what} is what counts",
    )


def _path(text: str) -> Path:
    from saverestore.report.files import checked

    try:
        return checked(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def check_report(parser: common.Parser, arguments: argparse.Namespace) -> None:
    """What a report cannot go together with."""
    if arguments.report is None:
        return
    if arguments.dry_run:
        parser.error("--report tells of what was done, and --dry-run does nothing")
    if arguments.image is not None and arguments.report.absolute() == Path(arguments.image).absolute():
        parser.error(f"--report: {arguments.report} is the image")


@dataclass
class Reporting:
    """One run that may be reported. `facts`: the plain data, once `outcome` is known; set by the command."""

    outcome: Outcome
    facts: Callable[[Outcome], Facts]


@contextmanager
def reporting(
    prog: str, arguments: argparse.Namespace, domain: str | None, facts: Callable[[Outcome], Facts]
) -> Iterator[Reporting]:
    """Inside this block the work is done. At its end, however it ends, the report is written and told, as asked for.

    `facts`: makes the plain data of what is known by then.
    """
    from saverestore.report.facts import Outcome

    began, started = datetime.datetime.now(datetime.UTC), time.monotonic()
    run = Reporting(Outcome(prog, domain, arguments.image, began, 0.0, _options(arguments)), facts)
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
        _finish(prog, arguments, run)
        raise
    run.outcome = replace(run.outcome, seconds=time.monotonic() - started)
    _finish(prog, arguments, run)


def _finish(prog: str, arguments: argparse.Namespace, run: Reporting) -> None:
    """Nothing that goes wrong here is a failure of the work, which is done."""
    path = arguments.report
    if path is None and not arguments.verbose:
        return
    from saverestore.report.files import write
    from saverestore.report.text import lines_of

    try:
        with shield():
            facts = run.facts(run.outcome)
            if arguments.verbose and not arguments.quiet:
                for line in lines_of(facts):
                    common.say(f"{prog}: {line}")
            if path is not None:
                write(path, facts)
    except (
        Exception
    ) as error:  # whatever it is: the domain is saved or restored, or why it is not will be told
        common.say(f"{prog}: warning: the report was not written: {in_full(error, prog)}")


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as they were in force, for people and programs."""
    left_out = ("domain", "image", "report", "quiet", "verbose", "recover", "dry_run")
    return {name: value for name, value in vars(arguments).items() if name not in left_out}
