"""Stub of the compiled loops over pages; see kernels/build.py."""

from typing import Any

ffi: Any
lib: Any
