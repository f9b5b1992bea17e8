"""Saving one domain into one image: preflight, engine, and what becomes of the domain."""

from __future__ import annotations

import contextlib
import datetime
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import saverestore
from saverestore import interrupts
from saverestore.engine import save as engine
from saverestore.engine.progress import Progress, SaveReport
from saverestore.errors import DomainError, TransportError, UsageError, XenRefused
from saverestore.guest.ports import SaveGuest
from saverestore.guest.x86.common import Handles, XenError, open_handles
from saverestore.guest.x86.hvm import HvmSave
from saverestore.guest.x86.pv import PvSave
from saverestore.guest.x86.suspend import Suspender
from saverestore.interrupts import shield
from saverestore.stream.codecs import Coding
from saverestore.stream.digest import NO_DIGEST, BeforeSink, DigestAlgorithm, algorithm_for_writing
from saverestore.stream.libxl import LibxlWriter
from saverestore.stream.xl import XlHeader
from saverestore.toolstack import bare, domains
from saverestore.toolstack.config import GuestConfig
from saverestore.toolstack.domains import Domain
from saverestore.toolstack.lock import locked
from saverestore.transport.base import ByteSink
from saverestore.transport.fd import FdSink
from saverestore.transport.newfile import NewFile
from saverestore.transport.stdout import StandardOutput

if TYPE_CHECKING:
    from saverestore.transport.zstd_sink import ZstdSink

LOG = logging.getLogger(__name__)

STDOUT = "-"


class Afterwards(Enum):
    """What becomes of the domain once its image is safe."""

    DESTROY = "destroyed"
    RUN = "running"
    PAUSE = "paused"


@dataclass(frozen=True)
class SaveRequest:
    """What `pysave` was asked for.

    `digest`: "xxh3", "sha256", "blake3" or "none"; `plain` leaves it out, too. `compress`: the level of zstd or None.
    `coding`: of an image in the dialect `draft-b`; None for Xen's own format.
    """

    domain: str
    image: str
    afterwards: Afterwards = Afterwards.DESTROY
    live: bool = False
    dirty: str = "auto"
    plain: bool = False
    digest: str = "xxh3"
    compress: int | None = None
    suspend_timeout_s: float | None = None
    overwrite: bool = False
    force: bool = False
    coding: Coding | None = None


def save_domain(request: SaveRequest, progress: Progress) -> SaveReport:
    """Save a domain. The image is complete and on the disk before the domain is destroyed.

    On any error the image does not exist, and the domain runs as before.
    """
    digest = algorithm_for_writing(NO_DIGEST if request.plain else request.digest)
    with open_handles() as handles, ExitStack() as locks:
        domain = domains.find(handles, request.domain)
        domains.check_can_be_saved(domain)
        locks.enter_context(locked(domain))
        _check_devices(handles, domain, request)
        config = domains.config_of(handles, domain)
        guest = _guest_of(handles, domain, request.suspend_timeout_s)
        try:
            with _destination(request) as file:
                _check_room(file, guest, domain)
                with _resumed_on_error(guest, domain, file), _sink_for(request, file) as sink:
                    report = _write_image(guest, sink, config, request, digest, domain, progress)
                    if request.afterwards is Afterwards.RUN:
                        # It need not wait for the disk. When this fails, the image is kept, and it is tried again.
                        with shield(), contextlib.suppress(XenError):
                            guest.resume()
                        report.downtime_s = time.monotonic() - report.suspended_at
                    sink.finish()
                    report.stored_bytes = file.sink.stored_bytes
                    file.sync()
                    with shield():
                        file.publish()
                        # The image is safe: from here on the request is carried out, not given up.
                        interrupts.too_late()
                _do_afterwards(handles, domain, guest, request)
        finally:
            with shield():
                guest.close()
        return report


@contextmanager
def _resumed_on_error(guest: SaveGuest, domain: Domain, file: NewFile | StandardOutput) -> Iterator[None]:
    """Whatever ends the block with an exception: the guest runs again, and the error says so."""
    try:
        yield
    except BaseException as error:
        with shield():
            try:
                guest.resume()
                error.add_note(f"{file.left_behind}; {domain} goes on")
            except XenError as second:
                error.add_note(f"{domain} could not be resumed ({second}): 'pysave --recover {domain.domid}'")
        raise


def _check_devices(handles: Handles, domain: Domain, request: SaveRequest) -> None:
    devices = domains.devices_of(handles.store, domain.domid)
    if not devices:
        return
    told = f"{domain} has devices that this version cannot bring back: {', '.join(devices)}"
    if not request.force:
        raise DomainError(
            f"{told}; nothing was done (--force -p or -c saves it all the same, for 'xl restore')"
        )
    if request.afterwards is Afterwards.DESTROY:
        raise DomainError(
            f"{told}, nor take away; nothing was done (use --force with -p, then 'xl destroy {domain.domid}')"
        )
    LOG.warning("%s; saved all the same, as --force says", told)


def _guest_of(handles: Handles, domain: Domain, suspend_timeout_s: float | None) -> SaveGuest:
    kind = domains.kind_of(handles, domain.info)
    suspender = Suspender(handles.xen, handles.store, domain.domid, timeout_s=suspend_timeout_s)
    if kind == "pv":
        return PvSave(handles, domain.info, suspender)
    if kind == "pvh":
        return HvmSave(handles, domain.info, suspender)
    raise DomainError(
        f"{domain} is an HVM domain with a device model, which cannot be saved yet; use 'xl save'"
    )


@contextmanager
def _destination(request: SaveRequest) -> Iterator[NewFile | StandardOutput]:
    """Where the image goes."""
    if request.image == STDOUT:
        yield StandardOutput()
        return
    path = Path(request.image)
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}; nothing was done")
    with NewFile(path, overwrite=request.overwrite) as file:
        yield file


@contextmanager
def _sink_for(request: SaveRequest, file: NewFile | StandardOutput) -> Iterator[FdSink | ZstdSink]:
    """What the image is written to: the file, or what compresses into it."""
    if request.compress is None:
        yield file.sink
        return
    from saverestore.transport.zstd_sink import ZstdSink

    with ZstdSink(file.sink, level=request.compress) as sink:
        yield sink


def _check_room(file: NewFile | StandardOutput, guest: SaveGuest, domain: Domain) -> None:
    """Before the guest is touched: is there room for it?"""
    free = file.free_bytes()
    if free is None:
        return
    # Pages that are all zero, or that compress well, take less. Which ones do is not known before they are read.
    needed = guest.populated_pages * (4096 + 8) + (1 << 20)
    if needed > free:
        raise TransportError(
            f"{domain} needs about {needed >> 20} MiB, {file.sink.name} has room for {free >> 20} MiB; "
            "nothing was done"
        )


def _write_image(
    guest: SaveGuest,
    sink: ByteSink,
    config: GuestConfig,
    request: SaveRequest,
    digest: DigestAlgorithm | None,
    domain: Domain,
    progress: Progress,
) -> SaveReport:
    """xl's header, libxl's stream around libxc's. The guest is suspended afterwards."""
    outside = BeforeSink(sink)
    XlHeader.write(outside, config.to_json())
    stream = LibxlWriter(outside)
    stream.libxc_context()
    settings = engine.SaveSettings(
        live=request.live,
        dirty=request.dirty,
        provenance=None if request.plain else _provenance(request, domain),
        digest=digest,
        before=outside.before(),
        coding=request.coding,
    )
    report = engine.save(guest, sink, settings, progress)
    stream.end()
    return report


def _provenance(request: SaveRequest, domain: Domain) -> dict[str, object]:
    return {
        "tool": "pysave",
        "version": saverestore.__version__,
        "host": socket.gethostname(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "domain": {"name": domain.name, "uuid": str(domain.info.uuid), "domid": domain.domid},
        "options": {
            "live": request.live,
            "dirty": request.dirty,
            "afterwards": request.afterwards.value,
            "compress": None if request.compress is None else f"zstd:{request.compress}",
            "format": "xen" if request.coding is None else f"draft-b, {request.coding}",
        },
    }


def _do_afterwards(handles: Handles, domain: Domain, guest: SaveGuest, request: SaveRequest) -> None:
    """The image is safe: make of the domain what was asked for."""
    try:
        if request.afterwards is Afterwards.DESTROY:
            guest.close()
            bare.destroy(handles, domain.domid, domain.info.uuid)
            return
        if request.afterwards is Afterwards.PAUSE:
            handles.xen.pause(domain.domid)
        guest.resume()
    except XenError as error:
        raise XenRefused(
            f"{request.image} is complete, but {domain} could not be made {request.afterwards.value}: {error}; "
            f"it is still there, see 'xl list'"
        ) from error
