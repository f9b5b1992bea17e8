"""The command itself: its subcommands, and what becomes of every failure.

Each subcommand is a module beside this one: `add_to` declares its arguments, `run` does the work and returns the
exit code. What they need of the rest of the package they import when they run: `pyimage --help` is quick.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from saverestore import interrupts
from saverestore.cli import arguments
from saverestore.cli.pyimage import convert, core, diff, info, map, memory, store
from saverestore.cli.pyimage.common import CODES, DIFFERENT, DIFFERENT_MEANING, say
from saverestore.cli.remedies import in_full
from saverestore.errors import ExitCode, SaveRestoreError

SUBCOMMANDS = (info, diff, memory, core, map, convert, store)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (`sys.argv` by default) and return its exit code."""
    given = command_parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A domain's name may have letters that this terminal has not.
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stdout is None:
        say("standard output is closed")
        return ExitCode.USAGE
    try:
        with interrupts.handled():
            code: int = given.run(given)
            sys.stdout.flush()
        return code
    except SaveRestoreError as error:
        say(in_full(error, "pyimage"))
        return error.exit_code
    except BrokenPipeError:
        # Whoever read the output has seen enough (`pyimage info … | head`). Python would complain
        # again while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.IO
    except OSError as error:
        say(f"{error.filename or 'standard output'}: {error.strerror}")
        if error.filename is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.IO


DESCRIPTION = "Look into images of Xen domains, as 'xl save' and 'pysave' write them. Xen is not needed."

EPILOG = """\
examples:
  pyimage info web1.img                            what it holds
  pyimage verify /srv/images                       which images in a folder are whole
  pyimage list                                     images that 'pysave --store' made
  pyimage prune --keep-last 3 --keep-daily 7       which of them are kept; the others are removed
  pyimage diff old.img new.img                     what differs
  pyimage convert web1.img -o web1.zst --compress zstd
  pyimage core web1.img -o web1.core               for gdb, drgn and crash

Each COMMAND has its own --help.
"""


def command_parser() -> arguments.Parser:
    """What reads the command line."""
    codes = arguments.exit_codes(CODES, [(DIFFERENT, f"diff: {DIFFERENT_MEANING}")])
    parser = arguments.parser("pyimage", DESCRIPTION, EPILOG, codes)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for subcommand in SUBCOMMANDS:
        subcommand.add_to(commands)
    for command in commands.choices.values():
        arguments.finish(command, verbosity=False)
    arguments.finish(parser, verbosity=False)
    return parser
