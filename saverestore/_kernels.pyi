"""Stub of the compiled loops over pages; see engine/_kernels_build.py."""

from typing import Any

ffi: Any
lib: Any
