"""What commands load: nothing that takes long and that only another command or option needs.

Under emulation, and on a host that is busy, loading is most of what a command takes before it begins. `tools/bench
start` measures it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

ROOT = Path(__file__).parents[3]

NEVER = {
    "email",
    "http",
    "importlib.metadata",
    "multiprocessing",
    "sysconfig",
    "unittest",
    "urllib.request",
    "xml",
}
"""Modules of the standard library, or packages, that no command needs before it works."""

EXTRAS = {"PIL", "blake3", "cffi", "cryptography", "lz4", "prometheus_client", "tqdm"}
"""Packages for single options, or for a terminal."""

FOR_SAVES = NEVER | EXTRAS | {"secrets", "ssl", "tempfile", "tomllib", "zstandard"}
WHERE = ("no-such-domain", "tcp://127.0.0.1:1", "--trust-network")

COMMANDS = {
    "pysave to a file": (
        "pysave",
        ["no-such-domain", "/no/such/folder/out.img"],
        FOR_SAVES | {"saverestore.migrate", "saverestore.image", "saverestore.operations.image"},
    ),
    "pysave to a pipe": ("pysave", ["no-such-domain", "-"], FOR_SAVES),
    "pyrestore": (
        "pyrestore",
        ["/no/such/image.img"],
        NEVER | EXTRAS | {"saverestore.migrate", "saverestore.image", "ssl", "tempfile", "tomllib"},
    ),
    "pymigrate": ("pymigrate", [*WHERE], NEVER | EXTRAS | {"tomllib", "zstandard"}),
    "pymigrate receive": ("pymigrate", ["receive"], NEVER | EXTRAS | {"tomllib", "zstandard"}),
    "pyimage": (
        "pyimage",
        ["info", "/no/such/image.img"],
        NEVER | EXTRAS | {"pyxc", "ssl", "saverestore.engine", "saverestore.guest", "saverestore.migrate"},
    ),
    "pysave-helper": (
        "helper",
        [],
        NEVER | EXTRAS | {"numpy", "pyxc", "ssl", "tomllib", "saverestore.migrate"},
    ),
}

WATCH = """
import os, sys
from saverestore.cli import start
from saverestore.process import ending

def end(code):
    print(*sys.modules, file=sys.__stdout__, flush=True)
    os._exit(0)

ending.end = end
name = sys.argv.pop(1)
end(getattr(start, name)())
"""


@pytest.mark.parametrize("what", COMMANDS)
def test_a_command_loads_nothing_that_it_does_not_need(what):
    command, arguments, unneeded = COMMANDS[what]
    # Without `site`: what an installed package hooks in there is not ours.
    path = [str(ROOT), *(entry for entry in sys.path if entry.endswith("site-packages"))]
    argv = [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {path!r}\n{WATCH}", command, *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "saverestore.errors" in loaded
    assert sorted(loaded & unneeded) == [], done.stderr
