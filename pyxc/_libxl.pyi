"""Stub of the compiled module: the C signatures are in cdef/libxl.h, checked by the compiler."""

from pyxc._xen import _Lib
from pyxc._xen import ffi as ffi

lib: _Lib
