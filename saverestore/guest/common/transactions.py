"""Changing several nodes of xenstore at once, or none: tried again when somebody else changes what was read.

A write makes what is missing above the node. So one that comes just after a domain was destroyed would leave nodes
of it for ever: seen on Xen 4.17, with a request to suspend. Hence `is_known` and `write_below`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

from pyxc import XenError, XenStore
from pyxc.store import Transaction

ATTEMPTS = 100
"""A guest that writes without end could have each attempt fail; whoever is in a shield must come out of it."""

ResultT = TypeVar("ResultT")


def in_transaction(store: XenStore, work: Callable[[Transaction], ResultT]) -> ResultT:
    """What `work` returns, whose reads and writes took effect together. It may be called several times.

    XenError (EAGAIN) when none of many attempts was left undisturbed; nothing was written then.
    """
    failure: XenError | None = None
    for _ in range(ATTEMPTS):
        try:
            with store.transaction() as transaction:
                result = work(transaction)
        except XenError as error:
            if error.errno != errno.EAGAIN:
                raise
            failure = error
        else:
            return result
    assert failure is not None
    raise failure


def is_known(store: Transaction, domid: int) -> bool:
    """Whether xenstore still has the domain: the toolstack removes it there before its number is free."""
    return store.read(f"/local/domain/{domid}") is not None


def write_below(store: XenStore, domid: int, path: str, value: str) -> bool:
    """Write /local/domain/DOMID/`path`, unless the domain is gone: whether it was written."""

    def write(transaction: Transaction) -> bool:
        known = is_known(transaction, domid)
        if known:
            transaction.write(f"/local/domain/{domid}/{path}", value)
        return known

    return in_transaction(store, write)
