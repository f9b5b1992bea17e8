"""Builds `pyxc._xen`, the only compiled view of Xen, with cffi in API mode.

Run by `setup.py` (through cffi's setuptools hook), never imported by the package itself.
The compiler checks `cdef/xen.h` against the installed headers, so a release that changed a
prototype fails here, at build time, and not on a live domain.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent


def target() -> str:
    """The architecture that the compiler makes code for, as `cdef/` has files for it."""
    command = [*os.environ.get("CC", "cc").split(), "-dumpmachine"]
    machine = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return "arm64" if machine.startswith("aarch64") else "x86"


TARGET = target()
LIBRARIES = ["xenctrl", "xenguest", "xenforeignmemory", "xenevtchn", "xenstore", "xentoollog"]

ffibuilder = FFI()
ffibuilder.cdef((HERE / "cdef" / "xen.h").read_text())
ffibuilder.cdef((HERE / "cdef" / f"{TARGET}.h").read_text())
ffibuilder.set_source(
    "pyxc._xen",
    '#include "shim.h"',
    include_dirs=[str(HERE / "shim")],
    # Or a change of these alone would not be compiled.
    depends=[str(header) for header in sorted((HERE / "shim").glob("*.h"))],
    libraries=[*LIBRARIES, "xencall"] if TARGET == "arm64" else LIBRARIES,
    define_macros=[("PYXC_BUILT_FOR", f'"{os.environ.get("PYXC_BUILT_FOR", "unknown")}"')],
    extra_compile_args=["-O2", "-Wall", "-Wno-unused-function"],
)
