"""The command itself: its subcommands, and what becomes of every failure.

Each subcommand is a module beside this one: `add_to` declares its arguments, `run` does the work and returns the
exit code. What they need of the rest of the package they import when they run: `pyimage --help` is quick.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from saverestore import __version__, interrupts
from saverestore.cli.pyimage import convert, core, diff, info, map, memory
from saverestore.cli.pyimage.common import EXIT_CODES
from saverestore.cli.remedies import in_full
from saverestore.errors import ExitCode, SaveRestoreError

SUBCOMMANDS = (info, diff, memory, core, map, convert)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (`sys.argv` by default) and return its exit code."""
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A domain's name may have letters that this terminal has not.
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stdout is None:
        print("pyimage: standard output is closed", file=sys.stderr)
        return ExitCode.USAGE
    try:
        with interrupts.handled():
            code: int = arguments.run(arguments)
            sys.stdout.flush()
        return code
    except SaveRestoreError as error:
        print(f"pyimage: {in_full(error, 'pyimage')}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read the output has seen enough (`pyimage info … | head`). Python would complain
        # again while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.IO
    except OSError as error:
        print(f"pyimage: standard output: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.IO


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyimage",
        description="Look into images of Xen domains, as `xl save` and `pysave` write them.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for subcommand in SUBCOMMANDS:
        subcommand.add_to(commands)
    return parser
