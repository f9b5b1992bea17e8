"""Everything that is looked at before a domain is saved, and opened for it.

Nothing here touches the domain, but that processor time which a killed save has taken from it is given back.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from saverestore.engine.policy import OnStall
from saverestore.engine.progress import DomainState, SaveReport
from saverestore.errors import (
    Advice,
    DomainError,
    ErrorName,
    Interrupted,
    Remedy,
    SaveRestoreError,
    TransportError,
    fact_of,
)
from saverestore.guest.common.handles import XenError
from saverestore.guest.common.suspend import Suspending
from saverestore.guest.kinds import Architecture
from saverestore.guest.ports import SaveGuest, Throttle
from saverestore.operations import store
from saverestore.operations.commit import Commit, commit_of
from saverestore.operations.host import Host, opened_host
from saverestore.operations.preflight import Findings, duration, reading_rate
from saverestore.operations.requests import STDOUT, FinalState, SaveRequest
from saverestore.operations.room import Storing, estimate, full_size
from saverestore.stream.digest_algorithms import NO_DIGEST, DigestAlgorithm, algorithm_for_writing
from saverestore.toolstack import decisions, host_fit, processor_cap
from saverestore.toolstack.condition import Condition
from saverestore.toolstack.config import GuestConfig
from saverestore.toolstack.device_model import DeviceModel
from saverestore.toolstack.domains import Domain
from saverestore.toolstack.ports import Toolstack
from saverestore.transport.cache import Cache
from saverestore.transport.image_sockets import address_of
from saverestore.words import counted, mib

LOG = logging.getLogger(__name__)

MIB = 1 << 20

ENDED = (Condition.CRASHED, Condition.STOPPED, Condition.DYING, Condition.GONE)


@dataclass(frozen=True)
class Prepared:
    """A domain that can be saved, and who does what of it. `config`: its configuration; `written`: the one that the
    image gets; `devices`: what it had when that was read, see `Host.devices_of`."""

    domain: Domain
    toolstack: Toolstack
    config: GuestConfig
    written: GuestConfig
    device_model: DeviceModel | None
    suspending: Suspending
    guest: SaveGuest
    digest: DigestAlgorithm | None
    throttle: Throttle | None
    devices: dict[str, str]


def prepare(
    host: Host,
    request: SaveRequest,
    findings: Findings,
    stack: ExitStack,
    report: SaveReport | None = None,
) -> Prepared:
    """Look at everything, in the order in which it is cheapest to report; open and lock what is needed, on `stack`.

    The guest of the result is the caller's to close. Unless `findings` are of a dry run, a processor cap that a
    killed save has left is put back. `report`: see `ended_is_the_reason`.
    """
    digest = None
    with findings.check():
        digest = algorithm_for_writing(NO_DIGEST if request.plain else request.digest)
    domain = host.find(request.domain)
    with ended_is_the_reason(host, domain, report):
        return _opened(host, domain, digest, request, findings, stack)


@contextmanager
def ended_is_the_reason(host: Host, domain: Domain, report: SaveReport | None = None) -> Iterator[None]:
    """An error in this block, in which the domain is only looked at: if the domain has ended meanwhile, it says that.

    Whatever call it was that failed. The report has the domain's state then, too.
    """
    try:
        yield
    except (XenError, SaveRestoreError) as error:
        found = host.look_up(domain)
        if found.condition not in ENDED:
            raise
        if report is not None:
            report.domain_state = DomainState[found.condition.name]
        told = fact_of(error)
        if isinstance(error, Interrupted) or found.what in told:
            raise
        LOG.info("what failed: %s", told)
        raise DomainError(
            f"{domain} {found.what}; no changes were made", name=ErrorName.DOMAIN_STOPPED
        ) from error


def _opened(
    host: Host,
    domain: Domain,
    digest: DigestAlgorithm | None,
    request: SaveRequest,
    findings: Findings,
    stack: ExitStack,
) -> Prepared:
    with findings.check():
        # Locked first: what another save is doing to the domain is no state that somebody has to put right.
        stack.enter_context(host.locked(domain))
        domain = host.again(domain)
        host.check_can_be_saved(domain)
    with findings.check():
        host.check_hypervisor(
            domain, resumes=request.final_state is not FinalState.DESTROY, force=request.force
        )
    toolstack = stack.enter_context(closing(host.toolstack_for_saving(domain, request.toolstack)))
    with findings.check():
        _check_devices(host.architecture, domain, toolstack, request)
    device_model = None
    with findings.check():
        device_model = toolstack.device_model_of(domain)
    if not findings.dry:
        # Before its configuration is read: libxl takes the cap from the scheduler.
        processor_cap.speed_up(host.handles, domain)
    devices = host.devices_of(domain)  # before, too: what changes from here on is noticed
    config = toolstack.config_of(domain)
    written = config
    with findings.check():
        if request.config is not None:
            written = request.config.over(config)
    if request.name is not None:
        written = written.replaced(name=request.name)
    with findings.check():
        _check_passed_through(domain, config, request)
    with findings.check():
        _check_losses(domain, config)
    throttle = None
    with findings.check():
        if request.live and request.limits.on_stall is OnStall.THROTTLE:
            throttle = host.throttle(domain)
    suspending = host.suspending(domain, device_model, request.suspend_timeout_s)
    if device_model is not None:
        stack.callback(device_model.close)
    guest = host.save_guest(domain, config, device_model, suspending)
    return Prepared(
        domain, toolstack, config, written, device_model, suspending, guest, digest, throttle, devices
    )


def _check_devices(
    architecture: Architecture, domain: Domain, toolstack: Toolstack, request: SaveRequest
) -> None:
    devices = toolstack.unsupported_devices(domain)
    if not devices:
        return
    fact = f"{domain} has devices that the {toolstack.name} toolstack cannot restore: {', '.join(devices)}"
    if not request.force:
        raise DomainError(
            f"{fact}; no changes were made",
            name=ErrorName.DEVICES_UNSUPPORTED,
            remedies=[
                Advice(Remedy.SAVE_WITHOUT_DEVICES, "xl restore" if architecture.libxl_restores else None)
            ],
        )
    if request.final_state is FinalState.DESTROY:
        raise DomainError(
            f"{fact}, nor remove; no changes were made",
            name=ErrorName.DEVICES_UNSUPPORTED,
            remedies=[Advice(Remedy.SAVE_PAUSED_AND_DESTROY, domain.domid)],
        )


def _check_losses(domain: Domain, config: GuestConfig) -> None:
    """What is in its configuration and cannot be restored."""
    lost = decisions.losses(config.raw)
    if lost.refused:
        raise DomainError(
            f"{domain} has state that cannot be saved: {'; '.join(lost.refused)}; no changes were made",
            name=ErrorName.DOMAIN_UNSUPPORTED,
        )
    if lost.reported:
        LOG.warning("not in an image of %s: %s", domain, "; ".join(lost.reported))


def _check_passed_through(domain: Domain, config: GuestConfig, request: SaveRequest) -> None:
    devices = host_fit.passed_through(config)
    if not devices:
        return
    if request.live:
        raise DomainError(
            f"{domain} has passed-through PCI devices ({', '.join(devices)}), which write to its memory unseen: it "
            "cannot be saved live; no changes were made",
            name=ErrorName.DEVICES_UNSUPPORTED,
            remedies=[Advice(Remedy.SAVE_WITHOUT_LIVE), Advice(Remedy.DETACH_PCI, domain.domid)],
        )
    LOG.warning(
        "%s has passed-through PCI devices (%s): their state is not in the image",
        domain,
        ", ".join(devices),
    )


def check_devices_kept(host: Host, prepared: Prepared) -> None:
    """DomainError when the domain, which is suspended, has other devices than the configuration in its image.

    Its memory knows those of now. Of one that somebody is destroying, all there is may be this image.
    """
    domain, before, now = prepared.domain, prepared.devices, host.devices_of(prepared.domain)
    if now == before or host.look_up(domain).condition in (Condition.GONE, Condition.DYING):
        return
    changes = [
        *(f"{device} was attached" for device in now if device not in before),
        *(f"{device} was detached" for device in before if device not in now),
        *(
            f"the medium of {device} was changed"
            for device in now
            if now[device] != before.get(device, now[device])
        ),
    ]
    raise DomainError(
        f"the devices of {domain} changed while it was being saved: {', '.join(changes)}",
        name=ErrorName.DOMAIN_CHANGED,
        remedies=[Advice(Remedy.TRY_AGAIN)],
    )


def placed(request: SaveRequest, prepared: Prepared, *, dry: bool = False) -> SaveRequest:
    """The request with the image's name, where a store is to give it one. The domain is locked.

    `dry`: no directory is made and nothing removed.
    """
    if request.store is None:
        return request
    folder = store.opened(request.store, make=not dry)
    if not dry:
        store.remove_abandoned(folder)
    path = store.new_path(folder, prepared.domain.name, datetime.datetime.now(datetime.UTC))
    return replace(request, image=str(path))


def check_room(commit: Commit, request: SaveRequest, guest: SaveGuest, domain: Domain) -> None:
    """Before the guest is touched: is there room for it? TransportError where there is not; a doubt is a warning."""
    if not request.space_check or (free := commit.free_bytes()) is None or full_size(guest) <= free:
        return
    needed = estimate(guest, Storing(commit.has_holes, request.compress, request.coding))
    if needed.least > free:
        raise TransportError(
            f"{domain} needs about {mib(needed.likely)}, {commit.name} has room for {free >> 20} MiB; "
            "no changes were made",
            name=ErrorName.DISK_FULL,
            remedies=[Advice(Remedy.OTHER_PLACE), Advice(Remedy.NO_SPACE_CHECK)],
        )
    if needed.most > free or request.live:
        again = ", and more for pages that are sent again" if request.live else ""
        LOG.warning(
            "%s has room for %d MiB, and may need %d to %d MiB%s: it may not fit",
            commit.name,
            free >> 20,
            needed.least >> 20,
            -(-needed.most >> 20),
            again,
        )


def dry_run(request: SaveRequest, *, host: Host | None = None) -> Findings:
    """What a save would do and what stands in its way. The domain is looked at, and some of its memory read."""
    findings = Findings(dry=True)
    with findings.check(), ExitStack() as stack:
        host = host or stack.enter_context(opened_host())
        prepared = prepare(host, request, findings, stack)
        try:
            with ended_is_the_reason(host, prepared.domain):
                with findings.check():
                    request = placed(request, prepared, dry=True)
                _describe(host, prepared, request, findings)
                with findings.check(), _dry_commit(request) as commit:
                    _describe_size(commit, prepared, request, findings)
                    if commit is not None:
                        check_room(commit, request, prepared.guest, prepared.domain)
        finally:
            prepared.guest.close()
    return findings


@contextmanager
def _dry_commit(request: SaveRequest) -> Iterator[Commit | None]:
    """Where the image would go, without what would compress it.

    Pipes, sockets and devices are not opened for nothing: whoever reads would take it for one.
    """
    path = Path(request.image)
    address = address_of(request.image, tls=request.tls)
    if address is not None and address.kind != "fd":
        yield None
        return
    is_no_file = request.image != STDOUT and path.exists() and not path.is_file()
    is_in_new_store = request.store is not None and not path.parent.exists()  # made by its first save
    if is_no_file or is_in_new_store:
        yield None
        return
    with commit_of(replace(request, compress=None)) as commit:
        yield commit


def _describe(host: Host, prepared: Prepared, request: SaveRequest, findings: Findings) -> None:
    config = prepared.config
    where = "standard output" if request.image == STDOUT else request.image
    findings.note(
        f"{prepared.domain}: {config.kind.upper()}, {counted(config.max_vcpus, 'vCPU')}, "
        f"{prepared.guest.populated_pages >> 8} MiB; "
        f"it would be saved to {where} and then be {request.final_state.value}"
    )
    devices = ", ".join(config.devices) or "none besides the console"
    findings.note(f"toolstack {prepared.toolstack.name}; devices: {devices}")
    if request.live:
        kind = host.architecture.of_domain(host.handles, prepared.domain.info)
        has_log = kind.has_log_dirty(shadow=host.handles.xen.host().shadow)
        how = "the hypervisor's log-dirty" if has_log and request.dirty != "digest" else "content digests"
        findings.note(f"live: dirty pages would be tracked by {how}")
    try:
        rate = reading_rate(prepared.guest)
    except Interrupted:
        raise
    except SaveRestoreError as error:
        findings.note(f"time: its memory cannot be read just now: {error}")
        return
    time = duration(full_size(prepared.guest) / rate)
    findings.note(
        f"time: {time} to read its memory, at {rate / (1 << 20):.0f} MiB/s as measured on some of it; writing may "
        "take longer"
    )


def _describe_size(
    commit: Commit | None, prepared: Prepared, request: SaveRequest, findings: Findings
) -> None:
    """What the image would take where it goes, as far as that can be told."""
    holes = commit is not None and commit.has_holes
    storing = Storing(holes, request.compress, request.coding)
    try:
        found = estimate(prepared.guest, storing)
    except Interrupted:
        raise
    except SaveRestoreError:  # reported where its time is
        return
    size = mib(found.likely)
    if mib(found.least) != mib(found.most):
        size = f"about {size} ({found.least / MIB:.0f} to {mib(found.most)})"
    if storing.shrinks:
        size = f"{size}, as measured on some of its memory; at most {mib(full_size(prepared.guest))}"
    findings.note(f"size: {size}" + (", and dirty pages that are resent" if request.live else ""))
    if commit is not None and commit.cache is Cache.DIRECT:
        findings.note("it would be written by direct I/O, past the page cache")
