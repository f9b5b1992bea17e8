"""The guard that every handle shares: open, closed once, dead after a fork."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from pyxc._xen import ffi
from pyxc.errors import ClosedHandle, ForkedHandle, XenError


def last_errno() -> int:
    """The errno of the library call just made (cffi keeps a copy a thread)."""
    return ffi.errno


def check_rc(rc: int, call: str, domid: int | None = None, *, detail: str = "") -> int:
    """`rc` itself when it is not negative; else XenError with errno as the call left it."""
    if rc < 0:
        raise XenError(call, last_errno(), domid=domid, detail=detail)
    return rc


class Handle:
    """Base of everything opened on a Xen library. `close()` twice is fine; use afterwards raises."""

    def __init__(self, pointer: ffi.CData) -> None:
        self._pointer: ffi.CData | None = pointer
        self._pid = os.getpid()

    @property
    def ptr(self) -> ffi.CData:
        """The C handle. Raises ClosedHandle after close(), ForkedHandle in a child process."""
        if self._pointer is None:
            raise ClosedHandle(f"{type(self).__name__} is closed")
        if self._pid != os.getpid():
            raise ForkedHandle(f"{type(self).__name__} was opened by process {self._pid}, not by this one")
        return self._pointer

    @property
    def closed(self) -> bool:
        """True once close() was called."""
        return self._pointer is None

    def close(self) -> None:
        """Give the handle back. In a child process it is only forgotten: the parent owns it."""
        pointer, self._pointer = self._pointer, None
        if pointer is not None and self._pid == os.getpid():
            self._close(pointer)

    def _close(self, pointer: ffi.CData) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
