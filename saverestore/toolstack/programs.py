"""Programs of this package that others run: the save helper, which libxl starts, and the watcher."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from saverestore.errors import ErrorName, XenRefused

HELPER = "pysave-helper"
WATCHER = "pysave-watch"


def path_of(program: str) -> Path:
    """Where it is: beside the command that runs, where this Python has its scripts, or on the PATH."""
    for folder in _folders():
        if os.access(folder / program, os.X_OK):
            return folder / program
    import shutil

    found = shutil.which(program)
    if found is None:
        raise XenRefused(
            f"{program} is not on the PATH: is this package installed as a whole?",
            name=ErrorName.INSTALLATION_INCOMPLETE,
        )
    return Path(found)


def _folders() -> Iterator[Path]:
    if sys.argv and sys.argv[0]:
        yield Path(sys.argv[0]).resolve().parent
    import sysconfig  # takes its time to load, and the first folder nearly always has it

    yield Path(sysconfig.get_path("scripts"))
