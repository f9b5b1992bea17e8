"""Which architecture this is, and the error for what Xen has on another one only."""

from __future__ import annotations

import errno

from pyxc._xen import ffi, lib
from pyxc.errors import WrongArchitecture

X86, ARM64 = "x86", "arm64"

ARCHITECTURE: str = ffi.string(lib.pyxc_architecture()).decode()
"""Of the hypervisor that the binding was built for: `X86` or `ARM64`."""


def require(architecture: str, call: str, domid: int | None = None) -> None:
    """WrongArchitecture unless this is that architecture: before a call that Xen would only answer with ENOSYS."""
    if architecture != ARCHITECTURE:
        raise WrongArchitecture(
            call,
            errno.ENOSYS,
            domid=domid,
            detail=f"Xen has this on {architecture} only, this is {ARCHITECTURE}",
        )
