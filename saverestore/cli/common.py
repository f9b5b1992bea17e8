"""What the commands that work on domains share: running, errors, exit codes, logging."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from saverestore import interrupts
from saverestore.cli import arguments
from saverestore.cli.remedies import in_full, words
from saverestore.errors import ExitCode, SaveRestoreError, exit_code_of
from saverestore.words import plain

if TYPE_CHECKING:
    from saverestore.operations.preflight import Findings
    from saverestore.toolstack.given_config import GivenConfig


STORE = "/var/lib/xen/pysave"
"""`operations.store.DEFAULT`, which is not loaded for --help."""


def add_round_limits(group: argparse._ArgumentGroup) -> None:
    """--max-rounds and --max-time, of the commands that work live."""
    group.add_argument(
        "--max-rounds",
        metavar="N",
        type=arguments.rounds,
        help="the largest number of rounds; default 5, or 30 with --downtime-ms or --on-stall throttle",
    )
    group.add_argument(
        "--max-time",
        metavar="SECONDS",
        type=arguments.seconds,
        help="start no round after this time; then suspend the domain",
    )


def add_toolstack(group: argparse._ArgumentGroup) -> None:
    """--toolstack, of the commands that work on domains."""
    group.add_argument(
        "--toolstack",
        choices=("auto", "bare", "libxl"),
        default="auto",
        help="libxl: for whatever 'xl create' made, with its devices; bare: this program alone, for domains "
        "whose only "
        "device is the console; auto (the default): libxl where it is installed and knows the domain",
    )


def add_config(group: argparse._ArgumentGroup, does: str, as_xl: str, whose: str) -> None:
    """--config, of the commands that make a domain from another one."""
    config = group.add_argument(
        "--config",
        metavar="FILE",
        help=f"{does}, a file of xl's or libxl's JSON, as '{as_xl}' does: name, disks, NICs and other surroundings "
        f"are the file's; processors, memory and the rest of the machine must be those of the {whose}",
    )
    arguments.complete(config, arguments.FILE)


def config_of(given: argparse.Namespace) -> GivenConfig | None:
    """What --config asks for. UsageError when it cannot be read."""
    if given.config is None:
        return None
    from saverestore.toolstack.given_config import read

    return read(given.config)


def add_dry_run(group: argparse._ArgumentGroup, what: str) -> None:
    """--dry-run, of the commands that work on domains."""
    group.add_argument(
        "--dry-run",
        action="store_true",
        help=f"make no changes: print what would be done and all problems; exits as the real {what} would",
    )


def print_findings(prog: str, look: Callable[[], Findings]) -> int:
    """What a dry run finds, on standard output: its exit code. What `look` raises stands in the way, too."""
    from saverestore.operations.preflight import Findings

    findings = Findings(dry=True)
    with findings.check():
        findings = look()
    for text in findings.facts:
        print(plain(text))
    for error in findings.errors:
        print(plain(f"problem: {in_full(error, prog)}"))
    print("no changes were made" + ("" if findings.errors else "; no problems found"))
    return findings.exit_code


def run(prog: str, arguments: argparse.Namespace, work: Callable[[], int | None]) -> int:
    """Do the work; any failure becomes one line on stderr and an exit code. So does a code that `work` returns."""
    _set_up_logging(prog, arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A domain's name may have letters that this terminal has not.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with interrupts.handled():
            return work() or ExitCode.DONE
    except SaveRestoreError as error:
        say(f"{prog}: {in_full(error, prog)}")
        return error.exit_code
    except ImportError as error:
        if error.name is not None and not error.name.startswith("pyxc") and "pyxc" not in str(error):
            raise
        say(f"{prog}: {in_full(error, prog)}")
        return ExitCode.XEN
    except MemoryError as error:
        say(f"{prog}: {in_full(error, prog)}")
        return exit_code_of(error)
    except OSError as error:
        # XenError is one; what else comes here was not foreseen, but is still no reason for a traceback.
        if arguments.verbose > 1:
            logging.getLogger(__name__).exception("failed")
        say(f"{prog}: {in_full(error, prog)}")
        return exit_code_of(error)


def say(text: str) -> None:
    """One line on standard error. If nobody reads there, that is no failure of the work."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(plain(text), file=sys.stderr, flush=True)


def answer(text: str) -> None:
    """One line on standard output, after the work is done: what cannot be written is reported, and no failure."""
    try:
        print(text, flush=True)
    except (OSError, ValueError, AttributeError) as error:
        say(f"standard output: {error}")
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit


class WithRemedies(logging.Formatter):
    """Warnings as errors are: the fact, then the words for `remedies`, which a record may have as an extra.

    `form` has `%(mark)s` where "warning: " is put before one.
    """

    def __init__(self, prog: str, form: str) -> None:
        super().__init__(form)
        self._prog = prog

    def format(self, record: logging.LogRecord) -> str:
        """The record's line."""
        advices = getattr(record, "remedies", ())
        record.mark = "warning: " if record.levelno == logging.WARNING else ""
        text = "; ".join([super().format(record), *(words(advice, self._prog) for advice in advices)])
        return "\n".join(map(plain, text.split("\n")))  # a traceback has lines


def _set_up_logging(prog: str, arguments: argparse.Namespace) -> None:
    level = {0: logging.WARNING, 1: logging.INFO}.get(arguments.verbose, logging.DEBUG)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(WithRemedies(prog, f"{prog}: %(mark)s%(message)s"))
    logging.basicConfig(handlers=[handler], level=level)
    if arguments.verbose == 1:
        # libxc also logs what is no error for us, such as pages that cannot be mapped just now.
        logging.getLogger("pyxc.libxc").setLevel(logging.WARNING)
