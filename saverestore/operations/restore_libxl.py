"""Restoring by libxl: it creates the domain with its devices and runs our helper, which fills it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from saverestore import interrupts
from saverestore.engine.progress import Progress, RestoreReport
from saverestore.errors import ErrorName, SaveRestoreError, XenRefused
from saverestore.guest.common.handles import XenError
from saverestore.interrupts import shield
from saverestore.operations.host import Host
from saverestore.operations.image import OpenedImage
from saverestore.operations.requests import RestoreRequest
from saverestore.operations.restoring import Restoring
from saverestore.stream.digest_algorithms import DigestAlgorithm
from saverestore.stream.libxl import CONTEXT_HEAD
from saverestore.toolstack import disks, memory
from saverestore.toolstack.helper_link import NUMBERS, HelperReport, Task
from saverestore.toolstack.libxl import LibxlToolstack
from saverestore.transport.base import RegularFile
from saverestore.transport.relay import Relay


class RestoringByLibxl(Restoring):
    """See Restoring. `helper`: variables by which libxl finds a save helper that waits."""

    def __init__(
        self,
        host: Host,
        toolstack: LibxlToolstack,
        image: OpenedImage,
        request: RestoreRequest,
        helper: Mapping[str, str],
    ) -> None:
        super().__init__(host, image, request)
        self._toolstack = toolstack
        self._helper = helper

    def fill(self, progress: Progress, report: RestoreReport) -> int:
        """See Restoring."""
        self._report = report
        self._began_at = self._host.clock()
        progress.phase(f"creating {self._image.config.name}")
        with _readable(self._image) as way:
            try:
                domid = self._fill_from(way, progress)
                way.finish()
            except BaseException as error:
                if (reason := way.error) is not None and reason is not error:
                    raise reason from error
                raise
        return domid

    def _fill_from(self, way: _File | Relay, progress: Progress) -> int:
        source, request = self._image.source, self._request
        task = Task(
            source.name,
            source.offset,
            self._image.header_digest,
            request.require_digest,
            check_cpu=not request.force,
            check_disks=not request.force,
            disk_paths=[path for _, path, _ in disks.served(self._image.config)],
            saved_uuid=str(self._image.saved_uuid),
            max_kib=max(self._image.config.max_kib, self._image.config.target_kib),
            pages=memory.pages_of(self._image.config, request.pages),
            name=self._image.config.name,
        )
        reported_at = way.position()

        def tick() -> None:
            nonlocal reported_at
            interrupts.raise_pending()
            if (now := way.position()) != reported_at:  # else libxl is at work on devices
                reported_at = now
                progress.pages(0, now)

        def measured(helper: HelperReport) -> None:
            _take_over(helper, self._report, self._host.clock() - self._began_at)

        # A signal is heeded in `tick`, and nowhere else until it is noted that there is a domain.
        with shield():
            try:
                self._domid = self._toolstack.restore(
                    self._image.config, way.fileno(), task, tick, measured, self._helper
                )
            except SaveRestoreError:
                # A terminal sends Ctrl-C to the helper, too: it may have ended of it before `tick` came.
                interrupts.raise_pending()
                raise
        return self._domid

    def _unpause(self, domid: int) -> None:
        """See Restoring."""
        try:
            self._toolstack.unpause(domid)
        except XenError as error:
            raise XenRefused(
                f"{self._image.config.name} was restored, but could not be started: {error}",
                name=ErrorName.LIBXL_FAILED,
            ) from error

    def _destroy(self, domid: int) -> None:
        """See Restoring."""
        self._toolstack.destroy_restored(domid)


def _take_over(measured: HelperReport, report: RestoreReport, seconds: float) -> None:
    """What the helper measured, and what of `seconds` libxl took for the rest: creating the domain, its devices."""
    for name in NUMBERS:
        setattr(report, name, getattr(measured, name))
    report.digest = None if measured.digest is None else DigestAlgorithm(measured.digest)
    report.create_s = max(0.0, seconds - measured.memory_s - measured.complete_s)


@contextmanager
def _readable(image: OpenedImage) -> Iterator[_File | Relay]:
    """A descriptor that stands at libxl's header, for libxl: of the file itself, or a pipe that brings the rest."""
    source = image.source
    if (file := source.regular_file) is not None:
        yield _File(image, file)
        return
    with Relay(source, image.follow, head=CONTEXT_HEAD) as relay:
        yield relay


class _File:
    """A regular file that is not compressed: libxl and its helper read it themselves. As Relay.

    What comes behind the libxc stream the helper looks at beforehand, as libxl takes it for what it is.
    """

    error = None

    def __init__(self, image: OpenedImage, file: RegularFile) -> None:
        self._image = image
        self._file = file
        os.lseek(file.fileno(), -len(CONTEXT_HEAD), os.SEEK_CUR)

    def fileno(self) -> int:
        """Its descriptor."""
        return self._file.fileno()

    def position(self) -> int:
        """How far it has been read."""
        return self._file.position()

    def finish(self) -> None:
        """Nothing follows the image."""
        self._image.check_end()
