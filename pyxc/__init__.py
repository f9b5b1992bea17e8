"""Xen as Python objects: the only place in this project that knows C.

Handles are context managers (`Xen`, `ForeignMemory`, `EventChannels`, `XenStore`), closed once and dead
after a fork. Calls release the GIL. A failed call raises `XenError`, which names the call, the domain and
the errno. What libxc has to say goes to the logger "pyxc.libxc", never to stderr.

Importing needs the compiled module, built at install time against libxen-dev. Where that is missing the
import says what to install.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

try:
    importlib.import_module("pyxc._xen")
except ModuleNotFoundError as error:
    if error.name == "pyxc._xen":
        raise ImportError(
            "pyxc has no compiled Xen binding: install libxen-dev, gcc and the Python headers "
            "(Debian: apt install libxen-dev gcc python3-dev python3-cffi), then install this package again. "
            "Reading images (pyimage) works without it"
        ) from None
    raise ImportError(f"pyxc needs the Python module {error.name}: install cffi") from error
except ImportError as error:
    if "libxen" in str(error):
        raise ImportError(
            f"pyxc was built against another Xen than the libraries of this host ({error}); "
            "install it again on this host: pip install --force-reinstall --no-cache-dir pysave"
        ) from error
    raise ImportError(
        f"pyxc's compiled Xen binding does not load: {error}; install this package again"
    ) from error

from pyxc._arch import ARCHITECTURE, ARM64, X86

if TYPE_CHECKING:
    from pyxc.control import DomainInfo, HostInfo, Xen, XenVersion, built_for
    from pyxc.errors import ClosedHandle, ForkedHandle, WrongArchitecture, XenError, XenVersionMismatch
    from pyxc.evtchn import EventChannels
    from pyxc.foreign import ForeignMemory, Mapping
    from pyxc.store import Transaction, XenStore

__all__ = [
    "ARCHITECTURE",
    "ARM64",
    "X86",
    "ClosedHandle",
    "DomainInfo",
    "EventChannels",
    "ForeignMemory",
    "ForkedHandle",
    "HostInfo",
    "Mapping",
    "Transaction",
    "WrongArchitecture",
    "Xen",
    "XenError",
    "XenStore",
    "XenVersion",
    "XenVersionMismatch",
    "built_for",
]

_HOME = {
    "ClosedHandle": "errors",
    "DomainInfo": "control",
    "EventChannels": "evtchn",
    "ForeignMemory": "foreign",
    "ForkedHandle": "errors",
    "HostInfo": "control",
    "Mapping": "foreign",
    "Transaction": "store",
    "WrongArchitecture": "errors",
    "Xen": "control",
    "XenError": "errors",
    "XenStore": "store",
    "XenVersion": "control",
    "XenVersionMismatch": "errors",
    "built_for": "control",
}


def __getattr__(name: str) -> Any:
    """Bring names in when they are used: a process that only watches a domain needs neither numpy nor libxc."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"pyxc.{_HOME[name]}"), name)
