"""XenStore (xenstore.h): the small tree in which domains and toolstacks tell each other things."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntFlag

from pyxc._handle import Handle, last_errno
from pyxc._xen import ffi, lib
from pyxc.errors import XenError


class Permission(IntFlag):
    """What a domain may do with a node; the first entry of a list names the owner and everyone's right."""

    NONE = lib.XS_PERM_NONE
    READ = lib.XS_PERM_READ
    WRITE = lib.XS_PERM_WRITE


class Transaction:
    """Reads and writes on one store; outside a transaction `XenStore` itself is one (id 0)."""

    def __init__(self, store: XenStore, transaction_id: int) -> None:
        self._store = store
        self._t = transaction_id

    def read(self, path: str) -> str | None:
        """The node's value, or None when there is no such node."""
        length = ffi.new("unsigned int *")
        data = lib.xs_read(self._store.ptr, self._t, path.encode(), length)
        if data == ffi.NULL:
            if last_errno() == errno.ENOENT:
                return None
            raise XenError("xs_read", last_errno(), detail=path)
        try:
            return bytes(ffi.buffer(data, length[0])).decode(errors="replace")
        finally:
            lib.free(data)

    def write(self, path: str, value: str) -> None:
        """Write a node, making it and its parents when missing."""
        data = value.encode()
        if not lib.xs_write(self._store.ptr, self._t, path.encode(), data, len(data)):
            raise XenError("xs_write", last_errno(), detail=path)

    def make(self, path: str) -> None:
        """Make an empty node, and its parents; one that exists is left as it is."""
        if not lib.xs_mkdir(self._store.ptr, self._t, path.encode()):
            raise XenError("xs_mkdir", last_errno(), detail=path)

    def remove(self, path: str) -> None:
        """Remove a node and all below it; one that is not there is fine."""
        if not lib.xs_rm(self._store.ptr, self._t, path.encode()) and last_errno() != errno.ENOENT:
            raise XenError("xs_rm", last_errno(), detail=path)

    def list(self, path: str) -> list[str]:
        """Names of the nodes directly below; none for a node that is not there."""
        number = ffi.new("unsigned int *")
        names = lib.xs_directory(self._store.ptr, self._t, path.encode(), number)
        if names == ffi.NULL:
            if last_errno() == errno.ENOENT:
                return []
            raise XenError("xs_directory", last_errno(), detail=path)
        try:
            return [ffi.string(names[i]).decode(errors="replace") for i in range(number[0])]
        finally:
            lib.free(names)

    def set_permissions(self, path: str, permissions: Sequence[tuple[int, Permission]]) -> None:
        """Set owner (first entry: its domid, and everyone else's right) and further domains' rights."""
        entries = ffi.new("struct xs_permissions[]", len(permissions))
        for entry, (domid, permission) in zip(entries, permissions, strict=True):
            entry.id = domid
            entry.perms = int(permission)
        if not lib.xs_set_permissions(self._store.ptr, self._t, path.encode(), entries, len(permissions)):
            raise XenError("xs_set_permissions", last_errno(), detail=path)


class XenStore(Handle, Transaction):
    """A connection to the store daemon."""

    def __init__(self) -> None:
        pointer = lib.xs_open(0)
        if pointer == ffi.NULL:
            raise XenError("xs_open", last_errno(), detail="is xenstored running?")
        Handle.__init__(self, pointer)
        Transaction.__init__(self, self, 0)

    def _close(self, pointer: ffi.CData) -> None:
        lib.xs_close(pointer)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A transaction, committed at the end of the block, dropped when the block raises.

        Raises XenError with EAGAIN when somebody else changed what it read; `retry` in callers' hands.
        """
        transaction_id = lib.xs_transaction_start(self.ptr)
        if not transaction_id:
            raise XenError("xs_transaction_start", last_errno())
        try:
            yield Transaction(self, transaction_id)
        except BaseException:
            lib.xs_transaction_end(self.ptr, transaction_id, True)
            raise
        if not lib.xs_transaction_end(self.ptr, transaction_id, False):
            raise XenError("xs_transaction_end", last_errno())

    def fileno(self) -> int:
        """Readable when a watch may have fired."""
        return int(lib.xs_fileno(self.ptr))

    def watch(self, path: str, token: str) -> None:
        """Ask to be told about changes at and below `path`; fires once at once."""
        if not lib.xs_watch(self.ptr, path.encode(), token.encode()):
            raise XenError("xs_watch", last_errno(), detail=path)

    def unwatch(self, path: str, token: str) -> None:
        """Stop a watch; one that is not there is fine."""
        lib.xs_unwatch(self.ptr, path.encode(), token.encode())

    def take_watch_event(self) -> tuple[str, str] | None:
        """The next (path, token) that fired, or None when there is none yet. Does not wait."""
        event = lib.xs_check_watch(self.ptr)
        if event == ffi.NULL:
            if last_errno() in (errno.EAGAIN, 0):
                return None
            raise XenError("xs_check_watch", last_errno())
        try:
            return ffi.string(event[0]).decode(), ffi.string(event[1]).decode()
        finally:
            lib.free(event)

    def introduce_domain(self, domid: int, gfn: int, port: int) -> None:
        """Tell the daemon of a domain's ring page and event channel; `@introduceDomain` fires."""
        if not lib.xs_introduce_domain(self.ptr, domid, gfn, port):
            raise XenError("xs_introduce_domain", last_errno(), domid=domid)

    def resume_domain(self, domid: int) -> None:
        """Tell the daemon that a domain which had shut down for suspend goes on."""
        if not lib.xs_resume_domain(self.ptr, domid):
            raise XenError("xs_resume_domain", last_errno(), domid=domid)

    def release_domain(self, domid: int) -> None:
        """Tell the daemon that a domain is gone; one it does not know is fine."""
        if not lib.xs_release_domain(self.ptr, domid) and last_errno() != errno.ENOENT:
            raise XenError("xs_release_domain", last_errno(), domid=domid)
