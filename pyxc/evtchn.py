"""Event channels of this domain (xenevtchn.h)."""

from __future__ import annotations

from pyxc import _log
from pyxc._handle import Handle, check_rc, last_errno
from pyxc._xen import ffi, lib
from pyxc.errors import XenError


class EventChannels(Handle):
    """Ports of this domain, bound to those of others; closing the handle closes them."""

    def __init__(self) -> None:
        pointer = lib.xenevtchn_open(_log.logger(), 0)
        if pointer == ffi.NULL:
            raise XenError("xenevtchn_open", last_errno(), detail="is this a Xen domain?")
        super().__init__(pointer)

    def _close(self, pointer: ffi.CData) -> None:
        lib.xenevtchn_close(pointer)

    def bind_interdomain(self, domid: int, remote_port: int) -> int:
        """Bind to a port that the other domain left unbound for us; the local port."""
        port = lib.xenevtchn_bind_interdomain(self.ptr, domid, remote_port)
        return check_rc(port, "xenevtchn_bind_interdomain", domid, detail=f"remote port {remote_port}")

    def notify(self, port: int) -> None:
        """Raise the event at the other end of a local port."""
        check_rc(lib.xenevtchn_notify(self.ptr, port), "xenevtchn_notify")
