"""`pyxc-save-helper`: what libxl runs instead of its own helper, so that `xl` works on this engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from saverestore.cli.remedies import in_full
from saverestore.errors import ExitCode, SaveRestoreError
from saverestore.toolstack.programs import HELPER as PROG

if TYPE_CHECKING:
    from saverestore.cli import arguments

DESCRIPTION = """\
libxl runs this program instead of its own libxl-save-helper, and talks to it through pipes:

  LIBXL_SAVE_HELPER=/path/to/pyxc-save-helper xl save|restore|migrate ...

pysave's engine then reads and writes memory and processors; libxl still handles devices. Nobody starts it by hand.
"""

EPILOG = """\
settings, in {config} (or the file that ${config_variable} names), or as variables:
{settings}
The environment does not cross ssh: for 'xl migrate', set up the other host, too.
"""

FOR_PEOPLE = ("--check", "--version", "--help", "-h")
"""What a person starts it with; everything else is from libxl."""


def command_parser() -> arguments.Parser:
    """What reads the command line of a person."""
    from saverestore.cli import arguments
    from saverestore.helper.settings import CONFIG, CONFIG_VARIABLE, table

    epilog = EPILOG.format(config=CONFIG, config_variable=CONFIG_VARIABLE, settings=table())
    parser = arguments.parser(PROG, DESCRIPTION, epilog)
    parser.add_argument(
        "--check",
        action="store_true",
        help="read the settings and open Xen's interfaces, and report whether this host is ready",
    )
    arguments.finish(parser, verbosity=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the helper with these arguments (`sys.argv` by default) and return its exit code.

    0 once libxl has the outcome, be it a failure; anything else when libxl could not be given one.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in FOR_PEOPLE:
        command_parser().parse_args(words)
        return _check()

    from saverestore.cli.common import say
    from saverestore.helper import session

    try:
        return session.run(words, describe=lambda error: in_full(error, PROG))
    except SaveRestoreError as error:
        say(f"{PROG}: {in_full(error, PROG)}")
        return error.exit_code


def _check() -> int:
    from saverestore.cli.common import say

    try:
        from saverestore.guest.common.handles import open_handles
        from saverestore.helper.settings import read_settings

        settings = read_settings(os.environ)
        with open_handles() as handles:
            print(f"{PROG}: ready, on Xen {handles.xen.version()}; {settings}")
    except (SaveRestoreError, OSError, ImportError) as error:
        say(f"{PROG}: {in_full(error, PROG)}")
        return error.exit_code if isinstance(error, SaveRestoreError) else ExitCode.XEN
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
