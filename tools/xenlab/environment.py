"""The Python that tests and benchmarks run with: a virtual environment in the lab's cache, with this checkout in it.

It is keyed by what pyproject.toml asks for; the host's packages that it takes are installed as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
from importlib.util import find_spec
from pathlib import Path

from xenlab import apt, cache
from xenlab.errors import LabError, step
from xenlab.machine import CHECKOUT

NEEDED = ("numpy", "xxhash", "zstandard", "lz4", "pyroute2", "saverestore")
"""What a benchmark imports, besides the compiled kernels."""

HOST_PACKAGES = {
    # what must be there -> the package that brings it
    f"{sysconfig.get_path('include')}/Python.h": "python3-dev",
    f"{sysconfig.get_path('stdlib')}/ensurepip/__init__.py": "python3-venv",
    "/usr/include/stdio.h": "libc6-dev",
    "/usr/include/xenctrl.h": "libxen-dev",
    "/usr/include/xxhash.h": "libxxhash-dev",
    "/usr/bin/gcc": "gcc",
    "/usr/bin/git": "git",
    "/usr/bin/man": "man-db",
    "/usr/bin/groff": "groff-base",
    "/usr/bin/zsh": "zsh",
}


def ensure() -> Path:
    """The virtual environment's python, made and filled when missing; this checkout is installed in it."""
    missing = [package for path, package in HOST_PACKAGES.items() if not Path(path).exists()]
    log = cache.cache_root() / "test-setup.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if missing:
        apt.install_packages(missing, log)
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    wanted = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["test"],
        *project["project"]["optional-dependencies"]["docs"],
        *project["project"]["optional-dependencies"]["bench"],
        "setuptools>=61",
        "wheel",
    ]
    key = cache.key_of("venv 2", sys.version, *wanted)

    def build(folder: Path) -> None:
        with step("Python packages for the tests"):
            _must([sys.executable, "-m", "venv", str(folder)], log)
            _must([str(folder / "bin/python"), "-m", "pip", "install", "--quiet", *wanted], log)

    python = cache.ensure("venv", key, build) / "bin/python"
    with step("this checkout, compiled"):
        install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", "."]
        _must([str(python), *install], log, PYSAVE_REQUIRE="xen,libxl,kernels,pages")
    return python


def _must(command: list[str], log: Path, **environment: str) -> None:
    with log.open("ab") as sink:
        done = subprocess.run(
            command, stdout=sink, stderr=subprocess.STDOUT, check=False, env={**os.environ, **environment}
        )
    if done.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise LabError(f"{' '.join(command[:6])} …: exit {done.returncode}", tail)


def enter(command: list[str]) -> None:
    """Become `command`, a Python program, run by that Python; nothing when the present one has all that it takes.

    So a benchmark can be asked for on a fresh machine, and in a virtual environment of somebody's own as well.
    """
    if all(find_spec(name) for name in NEEDED) and find_spec("saverestore._kernels"):
        return
    python = ensure()
    if Path(sys.prefix) == python.parent.parent:
        raise LabError(f"{python}: what was installed there cannot be imported")
    os.execv(python, [str(python), *command])
