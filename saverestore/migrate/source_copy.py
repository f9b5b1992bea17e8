"""The source's copy of a domain that moves, while the save that moves it is at work on it."""

from __future__ import annotations

import contextlib

from saverestore.engine.progress import DomainState, SaveReport
from saverestore.errors import Advice, DomainError, ErrorName, Remedy, XenRefused
from saverestore.guest.common.handles import XenError
from saverestore.operations.host import Host
from saverestore.toolstack import moving

NOT_RESUMED = (DomainState.SUSPENDED, DomainState.STUCK, DomainState.HALF_RESUMED, DomainState.UNKNOWN)
"""After a migration that failed: states in which a domain may still have to be resumed. In any other it is resumed,
or somebody else has paused, stopped or destroyed it."""


class SourceCopy:
    """A `Copy` of which the save takes care: it has resumed or destroyed the domain by the time it is asked to.

    `report`: the save's, which says what has become of the domain.
    """

    def __init__(self, report: SaveReport, host: Host, domid: int) -> None:
        self._report = report
        self._host = host
        self._domid = domid

    def is_here(self) -> bool:
        """See Copy."""
        return self._report.domain_state not in (DomainState.DESTROYED, DomainState.GONE)

    def resume(self) -> None:
        """See Copy. The note that it moves is removed."""
        state = self._report.domain_state
        if state in NOT_RESUMED:
            raise DomainError(f"the domain is {state.value}", name=ErrorName.DOMAIN_NEEDS_RECOVERY)
        with contextlib.suppress(XenError):
            moving.forget(self._host.handles.store, self._domid)

    def destroy(self) -> None:
        """See Copy."""
        if self.is_here():
            raise DomainError("the domain is still here", name=ErrorName.FINAL_STATE_FAILED)

    def start(self) -> None:
        """No step of a source's."""


def copy_not_destroyed(domain: str, peer: str, error: XenRefused) -> XenRefused:
    """The domain is at the other host, and destroying this host's copy failed with `error`."""
    return XenRefused(
        f"{domain} is at {peer}, but this host's copy could not be destroyed: {error.__cause__}",
        name=ErrorName.FINAL_STATE_FAILED,
        remedies=[Advice(Remedy.RECOVER_MIGRATION, domain)],
    )
