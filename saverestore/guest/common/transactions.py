"""Changing several nodes of xenstore at once, or none: tried again when somebody else changes what was read."""

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
