"""Restoring one image into one fresh domain: what is looked at beforehand, and by which toolstack it is done."""

from __future__ import annotations

import logging
import stat
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saverestore.engine.progress import Progress, RestoreReport
from saverestore.errors import Advice, DomainError, ErrorName, Remedy, XenRefused
from saverestore.guest.arm64.host import gic_version, is_arm64_host
from saverestore.guest.common import process_end
from saverestore.guest.common.handles import Handles, open_handles
from saverestore.guest.x86.common import check_cpu_policy
from saverestore.operations import restore_here
from saverestore.operations.image import opened
from saverestore.operations.preflight import Findings, duration, vcpus
from saverestore.stream.layout import DomainType, RecordType
from saverestore.stream.reader import LibxcReader, PageData
from saverestore.stream.records import Arm64Platform, X86CpuidPolicy, X86MsrPolicy
from saverestore.toolstack import bare, choice, domains, host_fit, watcher
from saverestore.toolstack.config import GuestConfig
from saverestore.toolstack.ports import Maker
from saverestore.transport.opening import ImageSource

if TYPE_CHECKING:
    from saverestore.toolstack.libxl import LibxlToolstack

LOG = logging.getLogger(__name__)

STDIN = "-"
SAMPLE_BYTES = 64 << 20


@dataclass(frozen=True)
class RestoreRequest:
    """What `pyrestore` was asked for.

    `require_digest`: an image without a digest is refused. `watch`: a process is left behind that looks after the
    domain when it powers off, reboots or crashes.
    """

    image: str
    paused: bool = False
    name: str | None = None
    force: bool = False
    toolstack: str = choice.AUTO
    require_digest: bool = False
    watch: bool = True


@dataclass(frozen=True)
class Restored:
    """The domain that came of it."""

    domid: int
    name: str
    report: RestoreReport


@dataclass(frozen=True)
class _Prepared:
    """An image that fits this host; `libxl` is None where the bare toolstack does it."""

    config: GuestConfig
    libxl: LibxlToolstack | None


def restore_domain(
    request: RestoreRequest,
    progress: Progress,
    report: RestoreReport | None = None,
    *,
    helper: Mapping[str, str] | None = None,
    process_ends: bool = False,
) -> Restored:
    """Create a domain from an image; it runs, or is paused, when this returns. On any error there is none.

    `helper`: variables by which libxl finds a save helper that waits; where there are none, it starts its own.
    `process_ends`: see `open_handles`.

    What was done goes into `report` while it is done, so it is known of a restore that fails, too.
    """
    report = RestoreReport() if report is None else report
    with opened(request.image, request.name) as image, ExitStack() as stack:
        handles = stack.enter_context(open_handles(process_ends=process_ends))
        ready = _prepare(handles, image.config, request, Findings(), stack)
        options = {
            "paused": request.paused,
            "force": request.force,
            "require_digest": request.require_digest,
        }
        if (maker := _maker(handles, ready)) is not None:
            domid = restore_here.restore(handles, maker, image, image.config, progress, report, **options)
        else:
            assert ready.libxl is not None  # or the bare toolstack would have made it
            from saverestore.operations import restore_libxl

            domid = restore_libxl.restore(
                ready.libxl, image, image.config, progress, report, **options, helper=helper or {}
            )
        report.domain_state = "paused" if request.paused else "running"
        if report.digest is None:
            LOG.info("%s has no digest: a changed byte in its pages would go unnoticed", image.source.name)
        if request.watch:
            _watch(domid, image.config.name)
        process_end.let_memory_follow()
        return Restored(domid, image.config.name, report)


def _maker(handles: Handles, ready: _Prepared) -> Maker | None:
    """Who makes a domain for this process to fill; None where libxl has that done."""
    if ready.libxl is None:
        return bare.BareMaker(handles)
    if not is_arm64_host():
        return None
    from saverestore.toolstack.libxl_maker import LibxlMaker

    return LibxlMaker(handles, ready.libxl)


def _watch(domid: int, name: str) -> None:
    """That nobody watches it is no failure of the restore."""
    try:
        watcher.start(domid, name)
    except XenRefused as error:
        LOG.warning(
            "nothing watches %s: when it powers off or reboots, it stays as it is then: %s",
            name,
            error,
            extra={"remedies": [Advice(Remedy.WATCH, domid)]},
        )


def dry_run(request: RestoreRequest) -> Findings:
    """What a restore would do and what stands in its way. Of standard input, the head is read."""
    findings = Findings(dry=True)
    with findings.check(), opened(request.image, request.name) as image, ExitStack() as stack:
        guest_config, source = image.config, image.source
        state = "paused" if request.paused else "running"
        findings.tell(
            f"{guest_config.name}: {guest_config.kind.upper()}, {vcpus(guest_config.max_vcpus)}, "
            f"{guest_config.target_kib >> 10} MiB; it would be created from {source.name} and be {state}"
        )
        handles = stack.enter_context(open_handles())
        ready = _prepare(handles, guest_config, request, findings, stack)
        devices = ", ".join(guest_config.devices) or "none besides the console"
        findings.tell(f"toolstack {'bare' if ready.libxl is None else 'libxl'}; devices: {devices}")
        _tell_time(source, findings)
    return findings


def _prepare(
    handles: Handles,
    guest_config: GuestConfig,
    request: RestoreRequest,
    findings: Findings,
    stack: ExitStack,
) -> _Prepared:
    """Look at everything that can be told before a domain is created."""
    libxl, why_bare = choice.for_restoring(handles, request.toolstack)
    if libxl is not None:
        stack.enter_context(closing(libxl))
    with findings.check():
        if libxl is None:
            _check_left_out(guest_config, why_bare, force=request.force)
        else:
            _check_there(guest_config, force=request.force)
    with findings.check():
        domains.check_free(handles, guest_config.name, guest_config.uuid)
    with findings.check():
        bare.check_memory(handles, guest_config)
    with findings.check():
        _check_cpu(handles, request)
    return _Prepared(guest_config, libxl)


def _check_left_out(guest_config: GuestConfig, why_bare: str, *, force: bool) -> None:
    """What the bare toolstack cannot bring back."""
    if guest_config.devices and not force:
        raise DomainError(
            f"{guest_config.name} has devices that the bare toolstack cannot bring back{why_bare}: "
            f"{', '.join(guest_config.devices)}; nothing was done",
            name=ErrorName.DEVICES_UNSUPPORTED,
            remedies=[Advice(Remedy.RESTORE_WITHOUT_DEVICES), *_by_xl()],
        )
    if guest_config.left_out:
        LOG.warning(
            "%s: the bare toolstack does not bring back: %s",
            guest_config.name,
            ", ".join(guest_config.left_out),
            extra={"remedies": _by_xl()},
        )


def _by_xl() -> list[Advice]:
    return [] if is_arm64_host() else [Advice(Remedy.RESTORE_BY_XL)]


def _check_there(guest_config: GuestConfig, *, force: bool) -> None:
    """What libxl would look for in vain."""
    missing = host_fit.missing(guest_config)
    if not missing:
        return
    told = f"{guest_config.name} needs what this host has not: {'; '.join(missing)}"
    if not force:
        raise DomainError(
            f"{told}; nothing was done",
            name=ErrorName.HOST_LACKS_DEVICE,
            remedies=[Advice(Remedy.RESTORE_ANYWAY)],
        )
    LOG.warning("%s; tried all the same, as was asked for", told)


def _check_cpu(handles: Handles, request: RestoreRequest) -> None:
    """By a second look into the file. What comes through a pipe is looked at when the domain is there already."""
    if request.image == STDIN or not stat.S_ISREG(Path(request.image).stat().st_mode):
        return
    with opened(request.image) as image:
        reader = LibxcReader(image.source)
        restore_here.check_architecture(reader.domain.type)
        leaves = msrs = b""
        while not reader.static_data_ended:
            record = reader.next()
            if isinstance(record, PageData) or record.type == RecordType.END:
                break
            if isinstance(record, X86CpuidPolicy):
                leaves = record.leaves
            elif isinstance(record, X86MsrPolicy):
                msrs = record.entries
            elif isinstance(record, Arm64Platform):
                from saverestore.guest.arm64.restore import check_platform, check_size

                check_platform(record, gic_version(image.config.gic_version), check_cpu=not request.force)
                check_size(record, image.config.max_vcpus, image.config.max_kib)
        if reader.domain.type is not DomainType.ARM64:
            is_hvm = reader.domain.type == DomainType.X86_HVM
            check_cpu_policy(handles.xen, is_hvm, leaves, msrs, check_cpu=not request.force)


def _tell_time(source: ImageSource, findings: Findings) -> None:
    size = source.total_bytes
    if size is None:
        return
    started, begun_at = time.monotonic(), source.offset
    sample = bytearray(SAMPLE_BYTES >> 6)
    for _ in range(min(SAMPLE_BYTES, size - source.offset) // len(sample)):
        source.readinto(sample)
    rate = (source.offset - begun_at) / max(time.monotonic() - started, 1e-6)
    findings.tell(
        f"size: {size >> 20} MiB; time: {duration(size / rate)} to read it, at {rate / (1 << 20):.0f} MiB/s as "
        "measured on some of it"
    )
