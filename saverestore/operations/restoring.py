"""A restore in two steps, so that something can come between them: another host's word, for one.

fill() ─► the domain is complete and paused ─► activate() ─► it is there for good
◄────── any failure, or the block's end: no domain ──┘
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from saverestore.engine.progress import Progress, RestoreReport


class Restoring(AbstractContextManager["Restoring"], Protocol):
    """One image on its way into one fresh domain. At the end of the block there is none unless it was activated."""

    def fill(self, progress: Progress, report: RestoreReport) -> int:
        """Create the domain and fill it from the image, of which nothing is left unread: its domid.

        It is complete, with all its devices, and paused.
        """

    def activate(self) -> None:
        """Let it run, unless it is to be paused. From now on it is kept, and signals change nothing."""
