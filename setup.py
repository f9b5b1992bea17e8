"""Builds the compiled modules where their headers are, and installs without them where they are not.

`pyxc._xen` and `pyxc._libxl` need libxen-dev: only a Xen host can use them. `saverestore._kernels` needs
libxxhash-dev: it only makes digests and deltas of pages faster. Everything else is plain Python, so `pyimage` works
on any machine. Man pages and completion are made where argparse-manpage and shtab are.
`PYSAVE_REQUIRE=xen,libxl,kernels,pages` turns what is missing into an error, for packagers and tests.

What a build makes on the way is in a temporary folder, so that `pip install .` leaves the checkout as it was.
`PYSAVE_BUILD=FOLDER` keeps it there, so that the next build compiles only what has changed.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from setuptools import setup

MODULES = {
    "xen": ("xenctrl.h", "pyxc/_xen_build.py:ffibuilder", "libxen-dev"),
    "libxl": ("libxl.h", "pyxc/_libxl_build.py:ffibuilder", "libxen-dev"),
    "kernels": ("xxhash.h", "saverestore/kernels/build.py:ffibuilder", "libxxhash-dev"),
}

WITHOUT = {
    "xen": "the binding for Xen: only pyimage will work",
    "libxl": "libxl: domains with devices cannot be saved or restored",
    "kernels": "compiled kernels: digests will be slower",
}


def compiler() -> list[str]:
    return os.environ.get("CC", "cc").split()


def has_header(header: str) -> bool:
    """True when the compiler finds the header. A compiler that is missing counts as no header."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "probe.c")
        source.write_text(f"#include <{header}>\nint main(void) {{ return 0; }}\n")
        command = [*compiler(), "-fsyntax-only", str(source)]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


def xen_release() -> str:
    """The release in libxenctrl's soname, as "4.17": what the binding is built for."""
    command = [*compiler(), "-print-file-name=libxenctrl.so"]
    path = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    found = re.search(r"\.so\.(\d+\.\d+)", Path(path).resolve().name)
    return found.group(1) if found else "unknown"


def build_folder() -> Path:
    """Where a build has what it makes on the way; gone when setup ends unless PYSAVE_BUILD names it."""
    if kept := os.environ.get("PYSAVE_BUILD"):
        folder = Path(kept)
        folder.mkdir(parents=True, exist_ok=True)
    else:
        folder = Path(tempfile.mkdtemp(prefix="pysave-build-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def note(text: str) -> None:
    """Say what is left out. pip swallows a build's output, so a person at a terminal gets it there, once."""
    print(f"setup: {text}", file=sys.stderr)
    if BUILDS_NOW:
        try:
            with Path("/dev/tty").open("w") as terminal:
                print(f"\npysave: {text}", file=terminal)
        except OSError:  # no terminal
            return


def pages() -> list[tuple[str, list[str]]]:
    """Man pages and completion, made now, as setuptools' data_files has them; none without what makes them."""
    # argparse-manpage is the module build_manpages before its version 4, as in Debian 12.
    for package, modules in (
        ("argparse-manpage", ("argparse_manpage", "build_manpages")),
        ("shtab", ("shtab",)),
    ):
        if not any(map(find_spec, modules)):
            if "pages" in required:
                sys.exit(f"setup: {package} is missing: install python3-{package}")
            note(f"no {package}: installing without man pages and completion")
            return []
    sys.path.insert(0, str(Path(__file__).parent))
    from saverestore.cli.pages import write_pages

    return write_pages(BUILD / "pages")


sys.dont_write_bytecode = True  # nor is there a __pycache__ of what is imported here
BUILD = build_folder()
BUILDS_NOW = bool({"bdist_wheel", "editable_wheel", "install", "develop"} & set(sys.argv))
"""pip runs this file several times; this time is the one that compiles."""

required = {name for name in os.environ.get("PYSAVE_REQUIRE", "").split(",") if name}
cffi_modules = []
for name, (header, builder, package) in MODULES.items():
    if has_header(header):
        cffi_modules.append(builder)
    elif name in required:
        sys.exit(f"setup: {header} is missing: install a C compiler and {package}")
    elif name != "libxl" or cffi_modules:  # without the binding nobody asks for libxl
        note(f"no {header}: installing without {WITHOUT[name]}. It needs a C compiler and {package}")


def compiles_for_arm64() -> bool:
    """Whether what the compiler makes runs on 64-bit ARM. A compiler that is missing makes nothing."""
    try:
        done = subprocess.run([*compiler(), "-dumpmachine"], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return done.stdout.startswith("aarch64")


if MODULES["xen"][1] in cffi_modules and compiles_for_arm64():
    cffi_modules.append("saverestore/guest/arm64/build.py:ffibuilder")
if MODULES["xen"][1] in cffi_modules:
    os.environ.setdefault("PYXC_BUILT_FOR", xen_release())
UNITS = (
    "lib/systemd/system",
    [str(path) for path in sorted(Path("saverestore/systemd").iterdir()) if path.suffix != ".py"],
)
setup(
    cffi_modules=cffi_modules,
    data_files=[*pages(), UNITS],
    options={"build": {"build_base": str(BUILD)}, "egg_info": {"egg_base": str(BUILD)}},
)
