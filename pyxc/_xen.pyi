"""Stub of the compiled module: the C signatures are in cdef/xen.h, checked by the compiler."""

from collections.abc import Callable
from typing import Any, TypeAlias

class _Lib:
    def __getattr__(self, name: str) -> Any: ...

class ffi:  # noqa: N801  (cffi's own name)
    # A cffi pointer or structure; its type lives in C.
    CData: TypeAlias = Any
    NULL: Any
    errno: int
    @staticmethod
    def new(cdecl: str, init: object = ...) -> Any: ...
    @staticmethod
    def buffer(cdata: Any, size: int = ...) -> Any: ...
    @staticmethod
    def from_buffer(cdecl_or_buffer: object, buffer: object = ...) -> Any: ...
    @staticmethod
    def string(cdata: Any) -> bytes: ...
    @staticmethod
    def memmove(dest: object, src: object, n: int) -> None: ...
    @staticmethod
    def sizeof(cdecl: object) -> int: ...
    @staticmethod
    def def_extern() -> Callable[[Any], Any]: ...

lib: _Lib
