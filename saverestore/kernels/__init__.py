"""Loops over pages that must not run in Python: `compiled`, the module's `ffi` and `lib`, or None without it.

Where it is missing (no C compiler, no libxxhash-dev when the package was installed), whoever uses a kernel has
a twin of it in Python or numpy, slower and otherwise the same. Tests hold the two against each other.
"""

from __future__ import annotations

from types import ModuleType

compiled: ModuleType | None
try:
    from saverestore import _kernels as _compiled

    compiled = _compiled
except ImportError:
    compiled = None
