"""Builds `pyxc._libxl`, the compiled view of libxl (libxenlight), with cffi in API mode.

Run by `setup.py` like `_xen_build`, and apart from it: libxl is large, and only those who want it load it.
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent

ffibuilder = FFI()
ffibuilder.cdef((HERE / "cdef" / "libxl.h").read_text())
ffibuilder.set_source(
    "pyxc._libxl",
    '#include "libxl_shim.h"',
    include_dirs=[str(HERE / "shim")],
    depends=[str(HERE / "shim" / name) for name in ("libxl_shim.h", "log.h")],
    libraries=["xenlight", "xentoollog"],
    extra_compile_args=["-O2", "-Wall", "-Wno-unused-function"],
)
