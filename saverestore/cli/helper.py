"""`pyxc-save-helper`: what libxl runs instead of its own helper, so that `xl` works on this engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from saverestore import __version__
from saverestore.cli.remedies import in_full
from saverestore.errors import ExitCode, SaveRestoreError
from saverestore.toolstack.programs import HELPER as PROG

HELP = """\
usage: LIBXL_SAVE_HELPER=/path/to/{prog} xl save|restore|migrate ...

libxl runs this program instead of its own libxl-save-helper and talks to it through pipes. pysave's engine reads and
writes memory and processors; devices stay libxl's. Nobody starts it by hand.

  --help      print this text
  --version   print the version
  --check     read the settings and open Xen's interfaces: is this host set up for it?

settings, in {config} (or the file that ${config_variable} names), or as variables:
{settings}
The environment does not cross ssh: for 'xl migrate', set up the other host, too.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the helper with these arguments (`sys.argv` by default) and return its exit code.

    0 once libxl has the outcome, be it a failure; anything else when libxl could not be given one.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words in (["--help"], ["-h"]):
        return _help()
    if words == ["--version"]:
        print(f"{PROG} {__version__}")
        return ExitCode.DONE
    if words == ["--check"]:
        return _check()

    from saverestore.cli.common import say
    from saverestore.helper import session

    try:
        return session.run(words, describe=lambda error: in_full(error, PROG))
    except SaveRestoreError as error:
        say(f"{PROG}: {in_full(error, PROG)}")
        return error.exit_code


def _help() -> int:
    from saverestore.helper.settings import CONFIG, CONFIG_VARIABLE, table

    text = HELP.format(prog=PROG, config=CONFIG, config_variable=CONFIG_VARIABLE, settings=table())
    print(text, end="")
    return ExitCode.DONE


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
