"""Xenstore in memory: what `pyxc.XenStore` does, with transactions, watches and the daemon's limits.

    >>> from saverestore.testing.store import MemoryStore
    >>> store = MemoryStore({"/local/domain/7/name": "web1"})
    >>> store.watch("/local/domain/7/control", "a token")
    >>> store.take_watch_event()  # a watch fires once when it is set
    ('/local/domain/7/control', 'a token')
    >>> with store.transaction() as transaction:
    ...     transaction.write("/local/domain/7/control/shutdown", "suspend")
    >>> store.take_watch_event()
    ('/local/domain/7/control/shutdown', 'a token')
    >>> store.contents()
    {'/local/domain/7/name': 'web1', '/local/domain/7/control/shutdown': 'suspend'}

One contract suite runs on this and on the real daemon. Errors are pyxc's, so this module, unlike the rest of the
package, needs the compiled binding.
"""

from __future__ import annotations

import errno
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Self

from pyxc import ClosedHandle, XenError
from saverestore.testing.moments import Moments

PATH = re.compile(r"(/[A-Za-z0-9_@-]+)+|/")
SPECIAL = ("@introduceDomain", "@releaseDomain")
VALUE_MAX_BYTES = 4096 - 256
"""What the daemon takes of a value, with some room for the path that comes with it in one message of 4096 bytes."""

PATH_MAX_BYTES = 3072


class _Tree:
    """Nodes by path, the root among them. A node's version changes with its value and with its children's names."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {"/": ""}
        self.versions: dict[str, int] = {"/": 0}
        self._last_version = 0

    def copy(self) -> _Tree:
        found = _Tree()
        found.values, found.versions = dict(self.values), dict(self.versions)
        found._last_version = self._last_version
        return found

    def _changed(self, path: str) -> None:
        self._last_version += 1
        self.versions[path] = self._last_version

    def children(self, path: str) -> list[str]:
        front = path.rstrip("/") + "/"
        return [name for name in self.values if name.startswith(front) and name != "/"]

    def write(self, path: str, value: str) -> None:
        self.make(path)
        self.values[path] = value
        self._changed(path)

    def make(self, path: str) -> None:
        if path not in self.values:
            self.make(parent := _parent(path))
            self._changed(parent)
            self.values[path] = ""
            self._changed(path)

    def remove(self, path: str) -> list[str]:
        """Paths that are gone, the lowest first."""
        if path not in self.values:
            return []
        gone = [*reversed(self.children(path)), path]
        for name in gone:
            del self.values[name], self.versions[name]
        self._changed(_parent(path))
        return gone


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


class MemoryTransaction:
    """See pyxc.store.Transaction: reads and writes on one store, seen by others when it is committed."""

    def __init__(self, store: MemoryStore, tree: _Tree) -> None:
        self._store = store
        self._tree = tree
        self._at_start = dict(tree.versions)
        self._looked_at: set[str] = set()
        self.changes: list[tuple[str, str, str]] = []

    def _path(self, call: str, path: str) -> str:
        """The whole path, which was looked at from now on. Calls of a transaction are moments of its store."""
        self._store.check_open()
        self._store.moments.reached(call.removeprefix("xs_"))
        whole = path if path.startswith("/") else f"/local/domain/0/{path}"
        if not PATH.fullmatch(whole) or len(whole) > PATH_MAX_BYTES:
            raise XenError(call, errno.EINVAL, detail=path)
        self._looked_at.add(whole)
        return whole

    def read(self, path: str) -> str | None:
        """The node's value, or None when there is no such node."""
        return self._tree.values.get(self._path("xs_read", path))

    def write(self, path: str, value: str) -> None:
        """Write a node, making it and its parents when missing."""
        whole = self._path("xs_write", path)
        if len(value.encode()) > VALUE_MAX_BYTES:
            raise XenError("xs_write", errno.E2BIG, detail=path)
        self._do("write", whole, value)

    def make(self, path: str) -> None:
        """Make an empty node, and its parents; one that exists is left as it is."""
        whole = self._path("xs_mkdir", path)
        if whole not in self._tree.values:
            self._do("make", whole)

    def remove(self, path: str) -> None:
        """Remove a node and all below it; one that is not there is fine."""
        whole = self._path("xs_rm", path)
        if whole == "/":
            raise XenError("xs_rm", errno.EINVAL, detail=path)
        if whole in self._tree.values:
            self._do("remove", whole)

    def list(self, path: str) -> list[str]:
        """Names of the nodes directly below; none for a node that is not there."""
        whole = self._path("xs_directory", path)
        start = len(whole.rstrip("/")) + 1
        return [name[start:] for name in self._tree.children(whole) if "/" not in name[start:]]

    def set_permissions(self, path: str, permissions: Sequence[tuple[int, int]]) -> None:
        """Set whose node it is and who may do what; nobody is held to it here. See `MemoryStore.permissions`."""
        whole = self._path("xs_set_permissions", path)
        if whole not in self._tree.values:
            raise XenError("xs_set_permissions", errno.ENOENT, detail=path)
        self._store.permissions[whole] = [(domid, int(permission)) for domid, permission in permissions]

    def conflicts_with(self, tree: _Tree) -> bool:
        """Whether a node that was looked at is another in `tree` than it was at the start."""
        return any(tree.versions.get(path) != self._at_start.get(path) for path in self._looked_at)

    def _do(self, what: str, path: str, value: str = "") -> None:
        apply(self._tree, what, path, value)
        self.changes.append((what, path, value))


def apply(tree: _Tree, what: str, path: str, value: str) -> list[str]:
    """Change the tree; paths that changed, for watches."""
    if what == "remove":
        return tree.remove(path)
    if what == "make":
        tree.make(path)
    else:
        tree.write(path, value)
    return [path]


class MemoryStore(MemoryTransaction):
    """See pyxc.XenStore. `nodes` are there from the start.

    `moments` are its calls, those in transactions too, named after xenstore's: "read", "write", "rm", "directory",
    "mkdir", "set_permissions", "watch", "transaction_start", "transaction_end", "introduce", "resume", "release". A
    test writes there, as another client would, or lets one fail.
    `introduced`, `resumed` and `released` are the domids that it was called with.
    """

    def __init__(self, nodes: Mapping[str, str] | None = None) -> None:
        super().__init__(self, _Tree())
        self.moments = Moments()
        self.permissions: dict[str, list[tuple[int, int]]] = {}
        self.introduced: list[tuple[int, int, int]] = []
        self.resumed: list[int] = []
        self.released: list[int] = []
        self.closed = False
        self._watches: list[tuple[str, str, str]] = []
        self._events: deque[tuple[str, str]] = deque()
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        for path, value in (nodes or {}).items():
            self._tree.write(path, value)

    def contents(self) -> dict[str, str]:
        """Values by path, of all nodes that have none below them."""
        values = self._tree.values
        parents = {_parent(path) for path in values}
        return {path: value for path, value in values.items() if path not in parents and path != "/"}

    def check_open(self) -> None:
        """Raise ClosedHandle after `close`."""
        if self.closed:
            raise ClosedHandle(f"{type(self).__name__} is closed")

    def _call(self, name: str) -> None:
        self.check_open()
        self.moments.reached(name)

    def _do(self, what: str, path: str, value: str = "") -> None:
        for changed in apply(self._tree, what, path, value):
            self._fire(changed)

    @contextmanager
    def transaction(self) -> Iterator[MemoryTransaction]:
        """A transaction, committed at the end of the block, dropped when the block raises.

        XenError with EAGAIN when a node that it looked at was changed meanwhile.
        """
        self._call("transaction_start")
        transaction = MemoryTransaction(self, self._tree.copy())
        yield transaction
        self.moments.reached("transaction_end")
        if transaction.conflicts_with(self._tree):
            raise XenError("xs_transaction_end", errno.EAGAIN)
        for change in transaction.changes:
            self._do(*change)

    # ---- watches -----------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Readable when a watch has fired."""
        self.check_open()
        return self._eventfd

    def watch(self, path: str, token: str) -> None:
        """Ask for changes at and below `path`; fires once at once. The same watch twice is an error (EEXIST)."""
        whole = path if path in SPECIAL else self._path("xs_watch", path)
        if (whole, path, token) in self._watches:
            raise XenError("xs_watch", errno.EEXIST, detail=path)
        self._watches.append((whole, path, token))
        self._queue(path, token)

    def unwatch(self, path: str, token: str) -> None:
        """Stop a watch; one that is not there is fine. Events of it that were not taken yet are dropped."""
        self.check_open()
        kept = [one for one in self._watches if one[1:] != (path, token)]
        if len(kept) < len(self._watches):
            self._watches = kept
            self._events = deque(one for one in self._events if one[1] != token)

    def take_watch_event(self) -> tuple[str, str] | None:
        """The next (path, token) that fired, or None when there is none yet. Does not wait."""
        self.check_open()
        event = self._events.popleft() if self._events else None
        if not self._events:
            self._drain()
        return event

    def _fire(self, changed: str) -> None:
        for whole, path, token in self._watches:
            if changed == whole or changed.startswith(f"{whole.rstrip('/')}/"):
                self._queue(path + changed[len(whole) :] if path != "/" else changed, token)

    def _queue(self, path: str, token: str) -> None:
        self._events.append((path, token))
        os.eventfd_write(self._eventfd, 1)

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._eventfd)

    # ---- domains -----------------------------------------------------------------------------------

    def introduce_domain(self, domid: int, gfn: int, port: int) -> None:
        """Make a domain known; `@introduceDomain` fires."""
        self._call("introduce")
        self.introduced.append((domid, gfn, port))
        self._fire("@introduceDomain")

    def resume_domain(self, domid: int) -> None:
        """Make known that a domain which had shut down for suspend runs again."""
        self._call("resume")
        self.resumed.append(domid)

    def release_domain(self, domid: int) -> None:
        """Make known that a domain is gone; `@releaseDomain` fires."""
        self._call("release")
        self.released.append(domid)
        self._fire("@releaseDomain")

    def close(self) -> None:
        """Close it: no call works afterwards. Twice is fine."""
        if not self.closed:
            self.closed = True
            os.close(self._eventfd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
