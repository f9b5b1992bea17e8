"""Restoring by libxl: it creates the domain with its devices and runs our helper, which fills it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TypeVar

from saverestore import interrupts
from saverestore.engine.progress import Progress, RestoreReport
from saverestore.errors import ErrorName, SaveRestoreError, XenRefused
from saverestore.guest.common.handles import XenError
from saverestore.interrupts import shield
from saverestore.operations.image import OpenedImage
from saverestore.stream.digest import DigestAlgorithm
from saverestore.stream.libxl import CONTEXT_HEAD
from saverestore.toolstack.config import GuestConfig
from saverestore.toolstack.helper_link import NUMBERS, HelperReport, Task
from saverestore.toolstack.libxl import LibxlToolstack
from saverestore.transport.fd import FdSource
from saverestore.transport.relay import Relay

NOT_THERE = "no domain was left behind"

ErrorT = TypeVar("ErrorT", bound=BaseException)


def restore(
    toolstack: LibxlToolstack,
    image: OpenedImage,
    guest_config: GuestConfig,
    progress: Progress,
    report: RestoreReport,
    *,
    paused: bool,
    force: bool,
    require_digest: bool,
    helper: Mapping[str, str],
) -> int:
    """Create a domain from an image that stands at its libxc stream: its domid. On any error there is none.

    `helper`: variables by which libxl finds a save helper that waits.
    """
    started = time.monotonic()
    progress.phase(f"creating {guest_config.name}")
    source = image.source
    task = Task(source.name, source.offset, image.before, require_digest, check_cpu=not force)
    domid: int | None = None
    with _readable(image) as way:
        told_at = way.position()

        def tick() -> None:
            nonlocal told_at
            interrupts.raise_pending()
            if (now := way.position()) != told_at:  # else libxl is at work on devices
                told_at = now
                progress.pages(0, now)

        def told(helper: HelperReport) -> None:
            _take_over(helper, report, time.monotonic() - started)

        try:
            # A signal is heeded in `tick`, and nowhere else until it is noted that there is a domain.
            with shield():
                try:
                    domid = toolstack.restore(guest_config, way.fileno(), task, tick, told, helper)
                except SaveRestoreError:
                    # A terminal sends Ctrl-C to the helper, too: it may have ended of it before `tick` came.
                    interrupts.raise_pending()
                    raise
            way.finish()
            filled_at = time.monotonic()
            with shield():
                if not paused:
                    toolstack.unpause(domid)
                interrupts.too_late()
            report.start_s = time.monotonic() - filled_at
        except BaseException as error:
            _destroy(toolstack, domid, error)
            if (reason := way.error) is not None and reason is not error:
                raise _noted(reason) from error
            if isinstance(error, XenError):
                raise XenRefused(
                    f"{guest_config.name} was restored, but could not be started: {error}; no domain was left behind",
                    name=ErrorName.LIBXL_FAILED,
                ) from error
            raise
        finally:
            report.total_s = time.monotonic() - started
    return domid


def _take_over(told: HelperReport, report: RestoreReport, seconds: float) -> None:
    """What the helper measured, and what of `seconds` libxl took for the rest: creating the domain, its devices."""
    for name in NUMBERS:
        setattr(report, name, getattr(told, name))
    report.digest = None if told.digest is None else DigestAlgorithm(told.digest)
    report.create_s = max(0.0, seconds - told.memory_s - told.complete_s)


def _destroy(toolstack: LibxlToolstack, domid: int | None, error: BaseException) -> None:
    """Of a restore that failed: the domain, if there is one yet; libxl has destroyed what it could not complete."""
    if domid is not None:
        with shield(), suppress(XenError):
            toolstack.destroy_restored(domid)
    _noted(error)


def _noted(error: ErrorT) -> ErrorT:
    if NOT_THERE not in getattr(error, "__notes__", []) and NOT_THERE not in str(error):
        error.add_note(NOT_THERE)
    return error


@contextmanager
def _readable(image: OpenedImage) -> Iterator[_File | Relay]:
    """A descriptor that stands at libxl's header, for libxl: of the file itself, or a pipe that brings the rest."""
    source = image.source
    if isinstance(source, FdSource) and source.total_bytes is not None:
        yield _File(image, source)
        return
    with Relay(source, image.follow, head=CONTEXT_HEAD) as relay:
        yield relay


class _File:
    """A regular file that is not compressed: libxl and its helper read it themselves. As Relay.

    What comes behind the libxc stream the helper looks at beforehand, as libxl takes it for what it is.
    """

    error = None

    def __init__(self, image: OpenedImage, source: FdSource) -> None:
        self._image = image
        self._source = source
        os.lseek(source.fileno(), -len(CONTEXT_HEAD), os.SEEK_CUR)

    def fileno(self) -> int:
        """Its descriptor."""
        return self._source.fileno()

    def position(self) -> int:
        """How far it has been read."""
        return self._source.position()

    def finish(self) -> None:
        """Nothing follows the image."""
        self._image.check_end()
