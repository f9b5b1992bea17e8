"""Restoring one image into one fresh domain: what is looked at beforehand, and by which toolstack it is done."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from saverestore.engine.progress import DomainState, Progress, RestoreReport
from saverestore.errors import Advice, DomainError, ErrorName, ImageError, Remedy, XenRefused
from saverestore.guest.kinds import Architecture
from saverestore.operations import restore_here
from saverestore.operations.host import Host, opened_host
from saverestore.operations.image import OpenedImage, incoming, opened, path_of
from saverestore.operations.image_fit import Contents
from saverestore.operations.pending import is_pending, no_longer_pending
from saverestore.operations.preflight import Findings, duration
from saverestore.operations.requests import RestoreRequest
from saverestore.operations.restoring import NO_DOMAIN, Restoring
from saverestore.operations.store import in_use
from saverestore.process import ending
from saverestore.toolstack import host_fit
from saverestore.toolstack.config import GuestConfig
from saverestore.transport.base import ImageSource
from saverestore.words import counted, mib

if TYPE_CHECKING:
    from saverestore.toolstack.libxl import LibxlToolstack
    from saverestore.toolstack.watcher import Watcher

LOG = logging.getLogger(__name__)

MIB = 1 << 20
SAMPLE_BYTES = 64 * MIB


@dataclass(frozen=True)
class Restored:
    """The domain that came of it."""

    domid: int
    name: str
    report: RestoreReport


@dataclass(frozen=True)
class _Prepared:
    """An image that fits this host; `libxl` is None where the bare toolstack does it. `pages`: of its domain, as far
    as that is known."""

    config: GuestConfig
    libxl: LibxlToolstack | None
    pages: int


def restore_domain(
    request: RestoreRequest,
    progress: Progress,
    report: RestoreReport | None = None,
    *,
    helper: Mapping[str, str] | None = None,
    host: Host | None = None,
    process_ends: bool = False,
) -> Restored:
    """Create a domain from an image; it runs, or is paused, when this returns. On any error there is none.

    `helper`: variables by which libxl finds a save helper that waits; where there are none, it starts its own.
    `host`: None, this machine. `process_ends`: see `open_handles`.

    What was done goes into `report` while it is done, so it is known of a restore that fails, too.
    """
    report = RestoreReport() if report is None else report
    path = path_of(request.image)
    began_at = time.monotonic()
    with in_use(path), incoming(request) as image, ExitStack() as stack:
        host = host or stack.enter_context(opened_host(process_ends=process_ends))
        report.domain_uuid = str(image.config.uuid)
        report.xen_version = host.xen_version()
        with restoring(host, image, request, helper or {}, stack) as fresh:
            report.check_s = time.monotonic() - began_at
            if request.only_pending:  # asked now, when the domain is locked
                _check_pending(request.image)
            # Now, as it takes its time to start: meanwhile the domain is filled.
            watcher = stack.enter_context(host.watcher(image.config.name)) if request.watch else None
            domid = fresh.fill(progress, report)
            with no_longer_pending(Path(path)):
                fresh.activate()
                image.confirm()
            report.domid = domid
        report.domain_state = DomainState.PAUSED if request.paused else DomainState.RUNNING
        if report.digest is None:
            LOG.info("%s has no digest: a changed byte in its pages would go unnoticed", image.source.name)
        if watcher is not None:
            _watch(watcher, domid, image.config.name)
        ending.let_memory_follow()
        return Restored(domid, image.config.name, report)


def _check_pending(image: str) -> None:
    if not is_pending(Path(image)):
        raise DomainError(
            f"{image} is not to be restored any more: somebody else has restored it, or has removed its link; no "
            "changes were made",
            name=ErrorName.DOMAIN_BUSY,
        )


def restoring(
    host: Host,
    image: OpenedImage,
    request: RestoreRequest,
    helper: Mapping[str, str],
    stack: ExitStack,
) -> Restoring:
    """An image on its way into a fresh domain, once all has been looked at that can be known before. `helper`: see
    `restore_domain`. What is opened for it is closed with `stack`."""
    return _restoring(host, _prepare(host, image.config, request, Findings(), stack), image, request, helper)


def check_fits(host: Host, config: GuestConfig, request: RestoreRequest, findings: Findings) -> str:
    """Look at all that can be known of a domain before its image is there: the toolstack that would restore it."""
    with ExitStack() as stack:
        prepared = _prepare(host, config, request, findings, stack)
        return "bare" if prepared.libxl is None else "libxl"


def _restoring(
    host: Host, prepared: _Prepared, image: OpenedImage, request: RestoreRequest, helper: Mapping[str, str]
) -> Restoring:
    """By this process, in a domain that somebody makes for it; or by libxl."""
    request = replace(request, pages=prepared.pages)
    if (maker := host.maker(prepared.libxl)) is not None:
        return restore_here.RestoringHere(host, maker, image, request)
    assert prepared.libxl is not None  # or the bare toolstack would have made it
    from saverestore.operations.restore_libxl import RestoringByLibxl

    return RestoringByLibxl(host, prepared.libxl, image, request, helper)


def _watch(watcher: Watcher, domid: int, name: str) -> None:
    """That perhaps nobody watches it is no failure of the restore."""
    try:
        watcher.watch(domid)
    except XenRefused as error:
        LOG.warning(
            "%s may stay as it is when it powers off or reboots: %s",
            name,
            error,
            extra={"remedies": [Advice(Remedy.WATCH, domid)]},
        )


def dry_run(request: RestoreRequest, *, host: Host | None = None) -> Findings:
    """What a restore would do and what stands in its way. Of standard input, the head is read.

    Not of an address: whoever sends there would take this for a restore.
    """
    findings = Findings(dry=True)
    with findings.check(), opened(request.image, request) as image, ExitStack() as stack:
        guest_config, source = image.config, image.source
        state = "paused" if request.paused else "running"
        findings.note(
            f"{guest_config.name}: {guest_config.kind.upper()}, {counted(guest_config.max_vcpus, 'vCPU')}, "
            f"{guest_config.target_kib >> 10} MiB; it would be created from {source.name} and be {state}"
        )
        host = host or stack.enter_context(opened_host())
        prepared = _prepare(host, guest_config, request, findings, stack)
        devices = ", ".join(guest_config.devices) or "none besides the console"
        findings.note(f"toolstack {'bare' if prepared.libxl is None else 'libxl'}; devices: {devices}")
        _estimate_time(source, findings)
    return findings


def _prepare(
    host: Host,
    guest_config: GuestConfig,
    request: RestoreRequest,
    findings: Findings,
    stack: ExitStack,
) -> _Prepared:
    """Look at everything that can be known before a domain is created."""
    libxl, why_bare = host.toolstack_for_restoring(request.toolstack)
    if libxl is not None:
        stack.enter_context(closing(libxl))
    with findings.check():
        if libxl is None:
            _check_unsupported(host.architecture, guest_config, why_bare, force=request.force)
        else:
            _check_host_fits(guest_config, force=request.force)
    with findings.check():
        host.check_hypervisor_for(guest_config, force=request.force)
    with findings.check():
        stack.enter_context(host.restoring(guest_config.uuid, guest_config.name))
    with findings.check():
        host.check_free(guest_config)
    with findings.check():
        # First: a domain that is being restored is not found by its disks before it is complete.
        stack.enter_context(host.disks_kept(guest_config, force=request.force))
    with findings.check():
        host.check_neighbours(guest_config, force=request.force)
    contents = None
    with findings.check():
        contents = _contents_of(host, request.image, findings)
    pages = max(request.pages, contents.pages if contents else 0)
    with findings.check(), ExitStack() as only_looked_at:
        (only_looked_at if findings.dry else stack).enter_context(host.memory_reserved(guest_config, pages))
    if contents is not None:
        with findings.check():
            if request.require_digest and contents.has_digest is False:
                raise ImageError(
                    f"{request.image} has no digest, and one is required; no changes were made",
                    name=ErrorName.DIGEST_MISSING,
                )
        with findings.check():
            host.check_image(guest_config, contents, force=request.force)
        with findings.check():
            host.check_disks(guest_config, contents, force=request.force)
    return _Prepared(guest_config, libxl, pages)


def _contents_of(host: Host, image: str, findings: Findings) -> Contents | None:
    try:
        return host.contents_of(image)
    except ImageError as error:
        if not findings.dry:
            error.add_note(NO_DOMAIN)
        raise


def _check_unsupported(
    architecture: Architecture, guest_config: GuestConfig, why_bare: str, *, force: bool
) -> None:
    """What the bare toolstack cannot restore."""
    by_xl = [Advice(Remedy.RESTORE_BY_XL)] if architecture.libxl_restores else []
    if guest_config.devices and not force:
        raise DomainError(
            f"{guest_config.name} has devices that the bare toolstack cannot restore{why_bare}: "
            f"{', '.join(guest_config.devices)}; no changes were made",
            name=ErrorName.DEVICES_UNSUPPORTED,
            remedies=[Advice(Remedy.RESTORE_WITHOUT_DEVICES), *by_xl],
        )
    if guest_config.left_out:
        LOG.warning(
            "%s: the bare toolstack does not restore: %s",
            guest_config.name,
            ", ".join(guest_config.left_out),
            extra={"remedies": by_xl},
        )


def _check_host_fits(guest_config: GuestConfig, *, force: bool) -> None:
    """What libxl would look for in vain."""
    missing = host_fit.missing(guest_config)
    if not missing:
        return
    fact = f"{guest_config.name} needs what this host lacks: {'; '.join(missing)}"
    if not force:
        raise DomainError(
            f"{fact}; no changes were made",
            name=ErrorName.HOST_LACKS_DEVICE,
            remedies=[Advice(Remedy.RESTORE_ANYWAY)],
        )
    LOG.warning("%s; restored all the same, because of the request", fact)


def _estimate_time(source: ImageSource, findings: Findings) -> None:
    size = source.total_bytes
    if size is None:
        return
    started, begun_at = time.monotonic(), source.offset
    sample = bytearray(SAMPLE_BYTES >> 6)
    for _ in range(min(SAMPLE_BYTES, size - source.offset) // len(sample)):
        source.readinto(sample)
    rate = (source.offset - begun_at) / max(time.monotonic() - started, 1e-6)
    if not rate:  # too small to be measured
        findings.note(f"size: {size} bytes")
        return
    findings.note(
        f"size: {mib(size)}; time: {duration(size / rate)} to read it, at {rate / MIB:.0f} MiB/s as "
        "measured on some of it"
    )
