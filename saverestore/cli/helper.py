"""`pysave-helper`: what libxl runs instead of its own helper, so that `xl` works on this engine."""

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

  LIBXL_SAVE_HELPER=/path/to/pysave-helper xl save|restore|migrate ...

pysave's engine then reads and writes memory and processors; libxl still handles devices. Nobody starts it this
way by hand.

--enable makes it the helper of every xl on this host, and of migrations that arrive here: a diversion of dpkg's keeps
Xen's own helper aside, also when Xen is upgraded. Domains that run are not touched.
"""

EPILOG = """\
examples:
  pysave-helper --check      is this host ready?
  pysave-helper --enable     xl save, restore and migrate run on this engine
  pysave-helper --status
  pysave-helper --disable    before this package is uninstalled

settings, in {config} (or the file that ${config_variable} names), or as variables:
{settings}
The environment does not cross ssh: for 'xl migrate', set up the other host, too.
"""

FOR_PEOPLE = ("--check", "--enable", "--disable", "--status", "--version", "--help", "-h")
"""What a person starts it with; everything else is from libxl."""


def command_parser() -> arguments.Parser:
    """What reads the command line of a person."""
    from saverestore.cli import arguments
    from saverestore.helper.settings import CONFIG, CONFIG_VARIABLE, table

    epilog = EPILOG.format(config=CONFIG, config_variable=CONFIG_VARIABLE, settings=table())
    parser = arguments.parser(PROG, DESCRIPTION, epilog)
    what = parser.add_mutually_exclusive_group(required=True)
    for name, text in (
        ("check", "read the settings and open Xen's interfaces, and report whether this host is ready"),
        ("enable", "have every xl of this host start this helper instead of Xen's own; needs root"),
        ("disable", "have xl start Xen's own helper again; needs root"),
        ("status", "print whose helper xl starts, for each release of Xen that is installed"),
    ):
        what.add_argument(f"--{name}", dest="what", action="store_const", const=name, help=text)
    arguments.finish(parser, verbosity=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the helper with these arguments (`sys.argv` by default) and return its exit code.

    0 once libxl has the outcome, be it a failure; anything else when libxl could not be given one.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in FOR_PEOPLE:
        from saverestore.cli.helper_diversion import WHAT

        return {"check": _check, **WHAT}[command_parser().parse_args(words).what]()

    from saverestore.cli.common import say
    from saverestore.helper import session

    try:
        return session.run(words, describe=lambda error: in_full(error, PROG))
    except SaveRestoreError as error:
        say(f"{PROG}: {in_full(error, PROG)}")
        return error.exit_code


def _check() -> int:
    import dataclasses
    import json

    from saverestore.cli.common import say

    try:
        from saverestore.guest.common.handles import open_handles
        from saverestore.helper.settings import read_settings

        settings = read_settings(os.environ)
        with open_handles() as handles:
            print(f"{PROG}: it can work here, on Xen {handles.xen.version()}, with these settings:")
        for name, value in dataclasses.asdict(settings).items():
            print(f"{name} = {json.dumps(value)}")
    except (SaveRestoreError, OSError, ImportError) as error:
        say(f"{PROG}: {in_full(error, PROG)}")
        return error.exit_code if isinstance(error, SaveRestoreError) else ExitCode.XEN
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
