"""Everything that is looked at before a domain is saved, and opened for it. Nothing here touches the domain."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from saverestore.engine.policy import Limits, OnStall
from saverestore.errors import (
    Advice,
    DomainError,
    ErrorName,
    Remedy,
    SaveRestoreError,
    TransportError,
    UsageError,
)
from saverestore.guest.arm64.host import is_arm64_host
from saverestore.guest.common.handles import Handles, open_handles
from saverestore.guest.common.suspend import Suspender, Suspending
from saverestore.guest.ports import SaveGuest, Throttle
from saverestore.guest.x86.hvm import HvmSave
from saverestore.guest.x86.pv import PvSave
from saverestore.operations.preflight import Findings, duration, reading_rate, vcpus
from saverestore.stream.codecs import Coding
from saverestore.stream.digest import NO_DIGEST, DigestAlgorithm, algorithm_for_writing
from saverestore.toolstack import choice, domains, host_fit
from saverestore.toolstack.config import GuestConfig
from saverestore.toolstack.device_model import DeviceModel, SuspenderWithDeviceModel
from saverestore.toolstack.domains import Domain
from saverestore.toolstack.lock import locked
from saverestore.toolstack.ports import Toolstack
from saverestore.toolstack.processor_cap import ProcessorCap
from saverestore.transport.newfile import NewFile
from saverestore.transport.stdout import StandardOutput

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
    `coding`: of an image in the dialect `draft-b`; None for Xen's own format. `limits`: of a live save.
    """

    domain: str
    image: str
    afterwards: Afterwards = Afterwards.DESTROY
    live: bool = False
    dirty: str = "auto"
    limits: Limits = field(default_factory=Limits)
    plain: bool = False
    digest: str = "xxh3"
    compress: int | None = None
    suspend_timeout_s: float | None = None
    overwrite: bool = False
    force: bool = False
    toolstack: str = choice.AUTO
    coding: Coding | None = None


@dataclass(frozen=True)
class Prepared:
    """A domain that can be saved, and who does what of it."""

    domain: Domain
    toolstack: Toolstack
    config: GuestConfig
    device_model: DeviceModel | None
    guest: SaveGuest
    digest: DigestAlgorithm | None
    throttle: Throttle | None


def prepare(handles: Handles, request: SaveRequest, findings: Findings, stack: ExitStack) -> Prepared:
    """Look at everything, in the order in which it is cheapest to be told; open and lock what is needed, on `stack`.

    The guest of the result is the caller's to close.
    """
    digest = None
    with findings.check():
        digest = algorithm_for_writing(NO_DIGEST if request.plain else request.digest)
    domain = domains.find(handles, request.domain)
    with findings.check():
        domains.check_can_be_saved(domain)
    with findings.check():
        stack.enter_context(locked(domain))
    toolstack = stack.enter_context(closing(choice.for_saving(handles, domain, request.toolstack)))
    with findings.check():
        _check_devices(domain, toolstack, request)
    device_model = None
    with findings.check():
        device_model = toolstack.device_model_of(domain)
    config = toolstack.config_of(domain)
    with findings.check():
        _check_passed_through(domain, config, request)
    throttle = None
    with findings.check():
        throttle = _throttle_of(handles, domain, request)
    guest = _guest_of(handles, domain, config, device_model, request.suspend_timeout_s)
    return Prepared(domain, toolstack, config, device_model, guest, digest, throttle)


def _throttle_of(handles: Handles, domain: Domain, request: SaveRequest) -> Throttle | None:
    if not request.live or request.limits.on_stall is not OnStall.THROTTLE:
        return None
    return ProcessorCap(handles, domain)


def _check_devices(domain: Domain, toolstack: Toolstack, request: SaveRequest) -> None:
    devices = toolstack.cannot_carry(domain)
    if not devices:
        return
    told = f"{domain} has devices that the {toolstack.name} toolstack cannot bring back: {', '.join(devices)}"
    if not request.force:
        raise DomainError(
            f"{told}; nothing was done",
            name=ErrorName.DEVICES_UNSUPPORTED,
            remedies=[Advice(Remedy.SAVE_WITHOUT_DEVICES, None if is_arm64_host() else "xl restore")],
        )
    if request.afterwards is Afterwards.DESTROY:
        raise DomainError(
            f"{told}, nor take away; nothing was done",
            name=ErrorName.DEVICES_UNSUPPORTED,
            remedies=[Advice(Remedy.SAVE_PAUSED_AND_DESTROY, domain.domid)],
        )
    LOG.warning("%s; saved all the same, as was asked for", told)


def _guest_of(
    handles: Handles,
    domain: Domain,
    config: GuestConfig,
    device_model: DeviceModel | None,
    suspend_timeout_s: float | None,
) -> SaveGuest:
    if is_arm64_host():
        # Here, as loading it would be a tenth of what a save on an x86 host takes to start.
        from saverestore.guest.arm64 import save as arm64_save

        return arm64_save.guest_of(handles, domain.info, config.gic_version, suspend_timeout_s)
    suspender: Suspending = Suspender(
        handles.xen,
        handles.store,
        domain.domid,
        timeout_s=suspend_timeout_s,
        emulated=device_model is not None,
    )
    if not domain.info.hvm:
        return PvSave(handles, domain.info, suspender)
    if device_model is not None:
        suspender = SuspenderWithDeviceModel(suspender, device_model)
    return HvmSave(handles, domain.info, suspender, device_model)


def _check_passed_through(domain: Domain, config: GuestConfig, request: SaveRequest) -> None:
    devices = host_fit.passed_through(config)
    if not devices:
        return
    if request.live:
        raise DomainError(
            f"{domain} has PCI devices of its own ({', '.join(devices)}), which write to its memory unseen: it "
            "cannot be saved live; nothing was done",
            name=ErrorName.DEVICES_UNSUPPORTED,
            remedies=[Advice(Remedy.SAVE_WITHOUT_LIVE), Advice(Remedy.DETACH_PCI, domain.domid)],
        )
    LOG.warning(
        "%s has PCI devices of its own (%s): what these were doing is not in the image",
        domain,
        ", ".join(devices),
    )


@contextmanager
def destination(request: SaveRequest) -> Iterator[NewFile | StandardOutput]:
    """Where the image goes."""
    if request.image == STDOUT:
        yield StandardOutput()
        return
    path = Path(request.image)
    if not path.parent.is_dir():
        raise UsageError(
            f"{path}: there is no folder {path.parent}; nothing was done", name=ErrorName.FILE_NOT_FOUND
        )
    with NewFile(path, overwrite=request.overwrite) as file:
        yield file


def check_room(file: NewFile | StandardOutput, guest: SaveGuest, domain: Domain) -> None:
    """Before the guest is touched: is there room for it?"""
    free = file.free_bytes()
    if free is None:
        return
    # Pages that are all zero, or that compress well, take less. Which ones do is not known before they are read.
    needed = _size_bytes(guest)
    if needed > free:
        raise TransportError(
            f"{domain} needs about {needed >> 20} MiB, {file.sink.name} has room for {free >> 20} MiB; "
            "nothing was done",
            name=ErrorName.DISK_FULL,
            remedies=[Advice(Remedy.OTHER_PLACE)],
        )


def dry_run(request: SaveRequest) -> Findings:
    """What a save would do and what stands in its way. The domain is looked at, and some of its memory read."""
    findings = Findings(dry=True)
    with findings.check(), open_handles() as handles, ExitStack() as stack:
        ready = prepare(handles, request, findings, stack)
        try:
            _tell_what_would_be_done(handles, ready, request, findings)
            with findings.check(), _dry_destination(request) as file:
                if file is not None:
                    check_room(file, ready.guest, ready.domain)
        finally:
            ready.guest.close()
    return findings


@contextmanager
def _dry_destination(request: SaveRequest) -> Iterator[NewFile | StandardOutput | None]:
    """Where the image would go. Pipes and devices are not opened for nothing: whoever reads would take it for one."""
    path = Path(request.image)
    if request.image != STDOUT and path.exists() and not path.is_file():
        yield None
        return
    with destination(request) as file:
        yield file


def _tell_what_would_be_done(
    handles: Handles, ready: Prepared, request: SaveRequest, findings: Findings
) -> None:
    config = ready.config
    where = "standard output" if request.image == STDOUT else request.image
    findings.tell(
        f"{ready.domain}: {config.kind.upper()}, {vcpus(config.max_vcpus)}, {ready.guest.populated_pages >> 8} MiB; "
        f"it would be saved to {where} and then be {request.afterwards.value}"
    )
    devices = ", ".join(config.devices) or "none besides the console"
    findings.tell(f"toolstack {ready.toolstack.name}; devices: {devices}")
    if request.live:
        has_log = handles.xen.host().shadow or (ready.domain.info.hvm and not is_arm64_host())
        how = "the hypervisor's log-dirty" if has_log and request.dirty != "digest" else "content digests"
        findings.tell(f"live: pages written meanwhile would be found by {how}")
    size = _size_bytes(ready.guest)
    findings.tell(
        f"size: {size >> 20} MiB" + (", and what is written again meanwhile" if request.live else "")
    )
    try:
        rate = reading_rate(ready.guest)
    except SaveRestoreError as error:
        findings.tell(f"time: its memory cannot be read just now: {error}")
        return
    findings.tell(
        f"time: {duration(size / rate)} to read its memory, at {rate / (1 << 20):.0f} MiB/s as measured on some of "
        "it; writing may take longer"
    )


def _size_bytes(guest: SaveGuest) -> int:
    """Of an image in which each page is once, with what else there is in one."""
    return guest.populated_pages * (4096 + 8) + (1 << 20)
