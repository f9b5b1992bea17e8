"""Loops over pages that must not run in Python, compiled.

Where they are missing (no C compiler, no libxxhash-dev when the package was installed), whoever uses one has a
twin of it in Python or numpy, slower and otherwise the same. Tests hold the two against each other.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType


@cache
def compiled() -> ModuleType | None:
    """The module with the kernels in its `lib`, and `ffi`; None where it is missing. Loaded when first asked for."""
    try:
        from saverestore import _kernels
    except ImportError:
        return None
    return _kernels
