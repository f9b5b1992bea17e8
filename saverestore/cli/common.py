"""What the commands that work on domains share: running, errors, exit codes, logging."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from saverestore import __version__, interrupts
from saverestore.cli.remedies import in_full, words
from saverestore.errors import ExitCode, SaveRestoreError, exit_code_of

if TYPE_CHECKING:
    from saverestore.operations.preflight import Findings

EXIT_CODES = """\
exit codes:
  0    done
  2    wrong usage; nothing was done
  3    the domain: not there, not in a state for it, does not answer, or has what cannot be carried
  4    the image: not one, damaged, incomplete, or not for this host
  5    reading or writing failed: disk full, reader gone
  6    Xen, or one of its libraries, refused
  7    a migration: the domain was granted to the other host, which has not answered
  130  interrupted by Ctrl-C or another signal
"""


class Parser(argparse.ArgumentParser):
    """argparse, with the program's own name before errors and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and one line, and exit."""
        self.print_usage(sys.stderr)
        self.exit(ExitCode.USAGE, f"{self.prog}: {message}\n")


def parser(prog: str, description: str, epilog: str) -> Parser:
    """A parser with what all commands have: --version, --quiet, -v, and the exit codes in --help."""
    made = Parser(
        prog=prog,
        description=description,
        epilog=f"{epilog}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    made.add_argument("-q", "--quiet", action="store_true", help="tell nothing but errors and warnings")
    made.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="tell more: once our steps and figures, twice libxc's messages",
    )
    return made


def add_toolstack(parser: argparse.ArgumentParser) -> None:
    """--toolstack, of the commands that work on domains."""
    parser.add_argument(
        "--toolstack",
        choices=("auto", "bare", "libxl"),
        default="auto",
        help="who looks after devices: 'libxl', for whatever 'xl create' made; 'bare', this program alone, for "
        "domains with nothing but a console; default 'auto': libxl where it is installed and knows the domain",
    )


def add_dry_run(parser: argparse.ArgumentParser, what: str) -> None:
    """--dry-run, of the commands that work on domains."""
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help=f"do nothing: tell what would be done, and all that stands in its way; exits as the real {what} would",
    )


def print_findings(prog: str, findings: Findings) -> int:
    """What a dry run found, on standard output: its exit code."""
    for text in findings.facts:
        print(text)
    for error in findings.errors:
        print(f"in the way: {in_full(error, prog)}")
    print("nothing was done" + ("" if findings.errors else ", and nothing stands in the way"))
    return findings.exit_code


def run(prog: str, arguments: argparse.Namespace, work: Callable[[], int | None]) -> int:
    """Do the work; any failure becomes one line on stderr and an exit code. So does a code that `work` returns."""
    _set_up_logging(prog, arguments)
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
        print(text, file=sys.stderr, flush=True)


def answer(text: str) -> None:
    """One line on standard output, after the work is done: what cannot be written is reported, and no failure."""
    try:
        print(text, flush=True)
    except (OSError, ValueError, AttributeError) as error:
        say(f"standard output: {error}")
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit


class WithRemedies(logging.Formatter):
    """Warnings as errors are: the fact, then the words for `remedies`, which a record may have as an extra."""

    def __init__(self, prog: str, form: str) -> None:
        super().__init__(form)
        self._prog = prog

    def format(self, record: logging.LogRecord) -> str:
        """The record's line."""
        advices = getattr(record, "remedies", ())
        return "; ".join([super().format(record), *(words(advice, self._prog) for advice in advices)])


def _set_up_logging(prog: str, arguments: argparse.Namespace) -> None:
    level = {0: logging.WARNING, 1: logging.INFO}.get(arguments.verbose, logging.DEBUG)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(WithRemedies(prog, f"{prog}: %(message)s"))
    logging.basicConfig(handlers=[handler], level=level)
    if arguments.verbose == 1:
        # libxc also logs what is no error for us, such as pages that cannot be mapped just now.
        logging.getLogger("pyxc.libxc").setLevel(logging.WARNING)
