"""Restoring one image into one fresh domain: what can be told beforehand, and by which toolstack it is done."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass

from saverestore.engine.progress import Progress, RestoreReport
from saverestore.errors import DomainError, ImageError
from saverestore.guest.x86.common import open_handles
from saverestore.operations import restore_bare
from saverestore.stream.xl import XlHeader
from saverestore.toolstack import bare, choice, config, domains
from saverestore.toolstack.config import GuestConfig
from saverestore.transport.base import ByteSource
from saverestore.transport.fd import FdSource

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RestoreRequest:
    """What `pyrestore` was asked for."""

    image: str
    paused: bool = False
    name: str | None = None
    force: bool = False
    toolstack: str = choice.AUTO


@dataclass(frozen=True)
class Restored:
    """The domain that came of it."""

    domid: int
    name: str
    report: RestoreReport


def restore_domain(request: RestoreRequest, progress: Progress) -> Restored:
    """Create a domain from an image; it runs, or is paused, when this returns. On any error there is none."""
    with _open_image(request.image) as source:
        guest_config = _read_config(source, request)
        with open_handles() as handles:
            libxl, why_not = choice.for_restoring(handles, request.toolstack)
            with closing(libxl) if libxl else nullcontext():
                if libxl is None:
                    _check_devices(guest_config, why_not, force=request.force)
                domains.check_free(handles, guest_config.name, guest_config.uuid)
                bare.check_memory(handles, guest_config)
                if libxl is None:
                    domid, report = restore_bare.restore(
                        handles, source, guest_config, progress, paused=request.paused, force=request.force
                    )
                else:
                    from saverestore.operations import restore_libxl

                    domid, report = restore_libxl.restore(
                        libxl, source, guest_config, progress, paused=request.paused, force=request.force
                    )
    return Restored(domid, guest_config.name, report)


@contextmanager
def _open_image(image: str) -> Iterator[FdSource]:
    with FdSource.open(image) as source:
        try:
            yield source
        except ImageError as error:
            if source.name not in str(error):
                error.add_note(f"the image is {source.name}")
            raise


def _read_config(source: ByteSource, request: RestoreRequest) -> GuestConfig:
    header = XlHeader.read(source)
    if header.config is None:
        raise ImageError(f"{source.name} has no domain configuration: it cannot be restored without one")
    guest_config = config.parse(header.config)
    return guest_config if request.name is None else guest_config.replaced(name=request.name)


def _check_devices(guest_config: GuestConfig, why_bare: str, *, force: bool) -> None:
    """What the bare toolstack cannot bring back is told before anything is done."""
    if guest_config.devices and not force:
        raise DomainError(
            f"{guest_config.name} has devices that the bare toolstack cannot bring back{why_bare}: "
            f"{', '.join(guest_config.devices)}; nothing was done (--force restores it without them; "
            "'xl restore' brings them back)"
        )
    if guest_config.left_out:
        LOG.warning(
            "%s: the bare toolstack does not bring back: %s; 'xl restore' does",
            guest_config.name,
            ", ".join(guest_config.left_out),
        )
