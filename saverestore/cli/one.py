"""One save, restore or migration of several, in a process of its own; options come from standard input: `many`."""

from __future__ import annotations

import os
import pickle
import sys

from saverestore.cli import pyrestore, pysave
from saverestore.cli.pymigrate import command
from saverestore.process import ending

WORK = {"pysave": pysave.run_one, "pyrestore": pyrestore.run_one, "pymigrate": command.run_one}

if __name__ == "__main__":
    given = pickle.load(sys.stdin.buffer)  # from our parent, in a file without a name
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    ending.end(WORK[sys.argv[1]](given))
