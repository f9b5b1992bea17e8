"""Stub of the compiled module with what an arm64 guest's processors run; see guest/arm64/build.py."""

from typing import Any

ffi: Any
lib: Any
