"""Saving one domain into one image: preflight, the engine's session, the image's safety, the domain's final state."""

from __future__ import annotations

import contextlib
import datetime
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace

import saverestore
from saverestore import interrupts
from saverestore.engine.policy import Limits
from saverestore.engine.progress import DomainState, Progress, SaveReport
from saverestore.engine.save import write_up_to_end
from saverestore.engine.session import SaveSession
from saverestore.engine.settings import SaveSettings
from saverestore.errors import Advice, DomainError, ErrorName, Remedy, XenRefused, advise
from saverestore.guest.common.handles import XenError
from saverestore.interrupts import shield
from saverestore.operations.commit import Commit, commit_of
from saverestore.operations.host import Host, opened_host
from saverestore.operations.preflight import Findings
from saverestore.operations.prepare_save import Prepared, check_room, prepare
from saverestore.operations.requests import FinalState, SaveRequest
from saverestore.process import ending
from saverestore.stream.header_digest import HeaderDigestSink
from saverestore.stream.layout import DomainType
from saverestore.stream.libxl import LibxlWriter
from saverestore.stream.trailer import TrailerBuffer
from saverestore.stream.xl import XlHeader
from saverestore.toolstack import last_downtime, processor_cap
from saverestore.toolstack.device_model import DeviceModel
from saverestore.toolstack.domains import Domain
from saverestore.transport.base import ByteSink

LOG = logging.getLogger(__name__)


def save_domain(
    request: SaveRequest,
    progress: Progress,
    report: SaveReport | None = None,
    *,
    host: Host | None = None,
    opened_commit: Callable[[SaveRequest], AbstractContextManager[Commit]] = commit_of,
    process_ends: bool = False,
) -> SaveReport:
    """Save a domain. The image is complete and on the disk before the domain is destroyed.

    On any error the image does not exist, and the domain runs as before. What was done goes into `report` while it is
    done, so it is known of a save that fails, too. `host`: None, this machine. `opened_commit`: where the image goes.
    `process_ends`: see `open_handles`.
    """
    report = SaveReport() if report is None else report
    with ExitStack() as stack:
        host = host or stack.enter_context(opened_host(process_ends=process_ends))
        prepared = prepare(host, request, Findings(), stack)
        report.domain_uuid = str(prepared.domain.info.uuid)
        report.xen_version = host.xen_version()
        try:
            with opened_commit(request) as commit:
                check_room(commit, prepared.guest, prepared.domain)
                _speed_up(host, prepared.domain)
                with _reporting_leftovers(commit, prepared.domain, report):
                    stream, settings = _write_head(host, prepared, request, commit.sink)
                    session = SaveSession(
                        prepared.guest, commit.sink, settings, progress, report, clock=host.clock
                    )
                    with session:
                        write_up_to_end(session, live=request.live)
                        session.end(_trailer(stream, commit.sink.name, prepared.device_model))
                        if request.final_state is FinalState.RUN:
                            _resume_early(host, prepared, session)
                        _commit_image(host, commit, report)
                _make_final(host, prepared, request, session, report)
        finally:
            with shield():
                prepared.guest.close()
        return report


def _write_head(
    host: Host, prepared: Prepared, request: SaveRequest, sink: ByteSink
) -> tuple[LibxlWriter, SaveSettings]:
    """Write xl's header, and libxl's stream as far as libxc's begins; and the settings for that."""
    outside = HeaderDigestSink(sink)
    XlHeader.write(outside, prepared.config.to_json())
    stream = LibxlWriter(outside)
    stream.libxc_context()
    settings = SaveSettings(
        live=request.live,
        dirty=request.dirty,
        provenance=None if request.plain else _provenance(request, prepared.domain),
        digest=prepared.digest,
        header_digest=outside.digest(),
        coding=request.coding,
        limits=_limits(host, prepared.domain, request),
        throttle=prepared.throttle,
        batch_pfns=host.batch_pfns,
    )
    return stream, settings


def _trailer(stream: LibxlWriter, name: str, device_model: DeviceModel | None) -> TrailerBuffer:
    """What libxl's stream has behind libxc's, of a suspended domain: the device model's state, and END."""
    kept = TrailerBuffer(name)
    stream.continue_in(kept)
    for type, body in device_model.records() if device_model else ():
        stream.record(type, body)
    stream.end()
    return kept


def _resume_early(host: Host, prepared: Prepared, session: SaveSession) -> None:
    """A domain that is to run need not wait for the disk. What fails is tried again once the image is safe."""
    with contextlib.suppress(XenError, DomainError):
        session.resume()
    if prepared.guest.domain_type == DomainType.X86_PV:
        # It runs, and the disk may take its time: see `ForeignMemory.map`.
        host.handles.memory.unmap_lingering()


def _commit_image(host: Host, commit: Commit, report: SaveReport) -> None:
    """The image is on the disk and has its name: from here on the request is carried out, not given up."""
    written_at = host.clock()
    commit.finish()
    report.stored_bytes = commit.stored_bytes
    report.sync_s = host.clock() - written_at
    with shield():
        commit.commit()
        interrupts.too_late()


def _make_final(
    host: Host, prepared: Prepared, request: SaveRequest, session: SaveSession, report: SaveReport
) -> None:
    """The image is safe: make of the domain what was asked for."""
    domain = prepared.domain
    try:
        if request.final_state is FinalState.DESTROY:
            prepared.guest.close()
            host.handles.memory.unmap_lingering()  # or some of it would outlive its end
            prepared.toolstack.destroy(domain)
        else:
            if request.final_state is FinalState.PAUSE:
                host.handles.xen.pause(domain.domid)
            session.resume(paused=request.final_state is FinalState.PAUSE)
    except (XenError, DomainError) as error:
        raise XenRefused(
            f"{request.image} is complete, but {domain} could not be made {request.final_state.value}: {error}; "
            "it is still there",
            name=ErrorName.FINAL_STATE_FAILED,
            remedies=[Advice(Remedy.LIST_DOMAINS)],
        ) from error
    report.domain_state = DomainState(request.final_state.value)
    if request.final_state is not FinalState.DESTROY:
        _remember(host, domain, report)
    # Not of one that is paused: a PV domain may be unpaused at any moment.
    if request.final_state is not FinalState.PAUSE:
        ending.let_memory_follow()


@contextmanager
def _reporting_leftovers(commit: Commit, domain: Domain, report: SaveReport) -> Iterator[None]:
    """An error in this block also says what is left of the image, and how the domain is."""
    try:
        yield
    except BaseException as error:
        if report.domain_state is DomainState.STUCK:
            error.add_note(commit.left_behind)
            advise(error, Advice(Remedy.RECOVER, domain.domid))
        else:
            error.add_note(f"{commit.left_behind}; {domain} is running")
        raise


def _limits(host: Host, domain: Domain, request: SaveRequest) -> Limits:
    """Those of the rounds, with what suspending took the last time, if there was one."""
    if not request.live:
        return Limits()
    with contextlib.suppress(XenError):
        if (known := last_downtime.known(host.handles.store, domain.domid)) is not None:
            suspend_s, state_s = known
            return replace(request.limits, suspend_s=suspend_s, state_s=state_s)
    return request.limits


def _remember(host: Host, domain: Domain, report: SaveReport) -> None:
    """For the next time. That it cannot be written down is no failure of the save."""
    downtime = report.downtime
    assert downtime is not None
    with contextlib.suppress(XenError):
        state_s = downtime.state_s + downtime.resume_s
        last_downtime.remember(
            host.handles.store, domain.domid, suspend_s=downtime.suspend_s, state_s=state_s
        )


def _speed_up(host: Host, domain: Domain) -> None:
    """A save that was killed may have left the domain slowed down."""
    try:
        if put_back := processor_cap.put_back(host.handles, domain):
            LOG.warning("%s: %s", domain, put_back)
    except XenError as error:
        LOG.warning("%s was slowed down by a save that was killed, and still is: %s", domain, error)


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
            "afterwards": request.final_state.value,
            "compress": None if request.compress is None else f"zstd:{request.compress}",
            "format": "xen" if request.coding is None else f"draft-b, {request.coding}",
        },
    }
