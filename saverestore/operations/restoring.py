"""A restore in two steps, so that something can come between them: another host's word, for one.

fill() ─► the domain is complete and paused ─► activate() ─► it is there for good
◄────── any failure, or the block's end: no domain ──┘
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from saverestore import interrupts
from saverestore.engine.progress import Progress, RestoreReport
from saverestore.errors import Advice, Remedy, advise
from saverestore.guest.common.handles import XenError
from saverestore.interrupts import shield
from saverestore.operations.host import Host
from saverestore.operations.image import OpenedImage
from saverestore.operations.requests import RestoreRequest

NO_DOMAIN = "no domain was left"


class Restoring(ABC):
    """One image on its way into one fresh domain. At the end of the block there is none unless it was activated.

    An error that ends the block says whether a domain was left all the same.
    """

    def __init__(self, host: Host, image: OpenedImage, request: RestoreRequest) -> None:
        self._host = host
        self._image = image
        self._request = request
        self._report = RestoreReport()
        self._domid: int | None = None
        self._kept = False
        self._began_at = host.clock()

    @abstractmethod
    def fill(self, progress: Progress, report: RestoreReport) -> int:
        """Create the domain and fill it from the image, of which nothing is left unread: its domid.

        It is complete, with all its devices, and paused. The image stands at its libxc stream.
        """

    def activate(self) -> None:
        """Unpause it, unless it is to be paused. From now on it is kept, and signals change nothing."""
        assert self._domid is not None
        filled_at = self._host.clock()
        with shield():
            if not self._request.paused:
                self._unpause(self._domid)
            self._kept = True
            interrupts.too_late()
        self._report.start_s = self._host.clock() - filled_at

    @abstractmethod
    def _unpause(self, domid: int) -> None:
        """Start it."""

    @abstractmethod
    def _destroy(self, domid: int) -> None:
        """Destroy it and what belongs to it. XenError when that fails."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._report.total_s = self._host.clock() - self._began_at
        if self._kept:
            return
        failure: XenError | None = None
        with shield():
            if self._domid is not None:
                try:
                    self._destroy(self._domid)
                except XenError as refused:
                    failure = refused
        if error is None:
            if failure is not None:
                raise failure
            return
        self._say_what_is_left(error, failure)

    def _say_what_is_left(self, error: BaseException, failure: XenError | None) -> None:
        """Looked up: libxl, too, may have been unable to destroy what it could not complete."""
        try:
            left = self._host.domid_of(self._image.config.uuid)
        except XenError as unknown:
            error.add_note(f"whether a domain was left cannot be looked up ({unknown})")
            advise(error, Advice(Remedy.LIST_DOMAINS))
            return
        if left is None:
            if NO_DOMAIN not in getattr(error, "__notes__", []):
                error.add_note(NO_DOMAIN)
            return
        if left != self._domid:  # one that libxl has not named; or somebody else's, made meanwhile
            error.add_note(f"domain {left} has the image's UUID, and may be an incomplete one that was left")
            advise(error, Advice(Remedy.LIST_DOMAINS))
            return
        why = "" if failure is None else f" ({failure})"
        error.add_note(f"domain {left} is incomplete, and could not be destroyed{why}")
        advise(error, Advice(Remedy.DESTROY_LEFT, left))
