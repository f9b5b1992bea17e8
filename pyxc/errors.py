"""What goes wrong between Python and Xen, named by whose fault it is."""

from __future__ import annotations

import errno as errno_module
import os


class XenError(OSError):
    """A call into Xen's libraries failed; `call`, `domid` (or None) and `errno` say which and why."""

    def __init__(self, call: str, errno: int, *, domid: int | None = None, detail: str = "") -> None:
        self.call = call
        self.domid = domid
        self.detail = detail
        super().__init__(errno, os.strerror(errno))

    def __str__(self) -> str:
        where = "" if self.domid is None else f"domid={self.domid}"
        name = errno_module.errorcode.get(self.errno or 0, str(self.errno))
        text = f"{self.call}({where}): [{name}] {os.strerror(self.errno or 0)}"
        return f"{text}: {self.detail}" if self.detail else text


class XenVersionMismatch(XenError):
    """The binding and the running hypervisor are of different Xen releases."""


class WrongArchitecture(XenError):
    """Xen has this call on another architecture only."""


class ClosedHandle(ValueError):
    """A handle or mapping was used after it was closed: the caller's mistake."""


class ForkedHandle(ClosedHandle):
    """A handle was used in a child process; Xen's handles belong to the process that opened them."""
