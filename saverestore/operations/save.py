"""Saving one domain into one image: preflight, the engine's session, the image's safety, the domain's final state."""

from __future__ import annotations

import contextlib
import datetime
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import saverestore
from saverestore import interrupts
from saverestore.engine.policy import Limits
from saverestore.engine.progress import DomainState, Progress, SaveReport
from saverestore.engine.save import write_up_to_end
from saverestore.engine.session import SaveSession
from saverestore.engine.settings import SaveSettings
from saverestore.errors import (
    Advice,
    DomainError,
    ErrorName,
    Remedy,
    SaveRestoreError,
    TransportError,
    XenRefused,
    advise,
    fact_of,
)
from saverestore.guest.common.handles import XenError
from saverestore.interrupts import shield
from saverestore.operations import while_suspended
from saverestore.operations.account import account_after_failure, account_of
from saverestore.operations.commit import Commit, commit_of
from saverestore.operations.host import Host, opened_host
from saverestore.operations.pending import forget, is_pending, pending, to_be_restored
from saverestore.operations.preflight import Findings
from saverestore.operations.prepare_save import (
    Prepared,
    check_devices_kept,
    check_room,
    ended_is_the_reason,
    placed,
    prepare,
)
from saverestore.operations.requests import FinalState, SaveRequest
from saverestore.process import ending
from saverestore.stream.codecs import Coding
from saverestore.stream.header_digest import HeaderDigestSink
from saverestore.stream.layout import DomainType
from saverestore.stream.libxl import LibxlWriter
from saverestore.stream.records import Disks
from saverestore.stream.trailer import TrailerBuffer
from saverestore.stream.xl import XlHeader
from saverestore.toolstack import last_downtime
from saverestore.toolstack.condition import Condition
from saverestore.toolstack.device_model import DeviceModel
from saverestore.toolstack.domains import Domain

LOG = logging.getLogger(__name__)


def commit_of_image(request: SaveRequest, _prepared: Prepared) -> AbstractContextManager[Commit]:
    """See `commit_of`."""
    return commit_of(request)


def save_domain(
    request: SaveRequest,
    progress: Progress,
    report: SaveReport | None = None,
    *,
    host: Host | None = None,
    opened_commit: Callable[[SaveRequest, Prepared], AbstractContextManager[Commit]] = commit_of_image,
    process_ends: bool = False,
) -> SaveReport:
    """Save a domain. The image is complete and on the disk before the domain is destroyed.

    On any error the image does not exist, and the domain runs as before. What was done goes into `report` while it is
    done, so it is known of a save that fails, too. `host`: None, this machine. `opened_commit`: where the image goes.
    `process_ends`: see `open_handles`.
    """
    report = SaveReport() if report is None else report
    began_at = time.monotonic()
    with ExitStack() as stack:
        host = host or stack.enter_context(opened_host(process_ends=process_ends))
        prepared = prepare(host, request, Findings(), stack, report)
        report.domain_uuid = str(prepared.domain.info.uuid)
        report.xen_version = host.xen_version()
        request = placed(request, prepared)
        report.image = request.image if request.store is not None else None
        try:
            with opened_commit(request, prepared) as commit:
                with ended_is_the_reason(host, prepared.domain, report):
                    check_room(commit, request, prepared.guest, prepared.domain)
                report.check_s = time.monotonic() - began_at
                with _reporting_leftovers(host, commit, prepared, report):
                    stream, settings = _write_head(host, prepared, request, commit)
                    session = SaveSession(
                        prepared.guest, commit.sink, settings, progress, report, clock=host.clock
                    )
                    with session:
                        write_up_to_end(session, live=request.live)
                        if commit.hands_over:
                            # The other host opens them when it has all of the image.
                            host.flush_disks(prepared.config)
                        noted = _look_outside_memory(host, prepared, request, session)
                        session.end(_trailer(stream, commit.sink.name, prepared.device_model))
                        if request.final_state is FinalState.RUN:
                            _check_suspended(host, prepared.domain)
                            _resume_early(host, prepared, session)
                        _commit_image(host, prepared.domain, request, commit, session, report)
                final_state = commit.final_state(request.final_state)
                with _noted_for_boot(host, prepared.domain, request, final_state, session):
                    _make_final(host, prepared, replace(request, final_state=final_state), session, report)
                if final_state is FinalState.DESTROY:
                    _settle(host, prepared.domain, noted)
        finally:
            with shield():
                prepared.guest.close()
        return report


def _write_head(
    host: Host, prepared: Prepared, request: SaveRequest, commit: Commit
) -> tuple[LibxlWriter, SaveSettings]:
    """Write xl's header, and libxl's stream as far as libxc's begins; and the settings for that."""
    outside = HeaderDigestSink(commit.sink)
    XlHeader.write(outside, prepared.written.to_json())
    stream = LibxlWriter(outside)
    stream.libxc_context()
    settings = SaveSettings(
        live=request.live,
        dirty=request.dirty,
        digest=prepared.digest,
        header_digest=outside.digest(),
        coding=request.coding,
        limits=_limits(host, prepared.domain, request),
        throttle=prepared.throttle,
        storage=commit if request.space_check else None,
        batch_pfns=host.batch_pfns,
    )
    settings = commit.settings(settings)
    if not request.plain:
        settings = replace(settings, provenance=_provenance(request, prepared, settings))
    return stream, settings


def _look_outside_memory(
    host: Host, prepared: Prepared, request: SaveRequest, session: SaveSession
) -> list[dict[str, Any]]:
    """What the image is to know of the suspended domain's disks, once the command that was asked for has been run.

    DomainError when the domain's devices are not those of the image any more.
    """
    check_devices_kept(host, prepared)
    if request.while_suspended is not None:
        while_suspended.run(request.while_suspended, prepared.domain, request.image)
    noted = host.disks_of(prepared.config) if request.note_disks else []
    if noted and not request.plain:
        session.note(Disks({"disks": noted}))
    return noted


def _settle(host: Host, domain: Domain, noted: list[dict[str, Any]]) -> None:
    """Who served a disk may have written to it when it closed it: that is not a change since the save."""
    try:
        host.settle_disks(domain, noted)
    except OSError as error:
        LOG.warning("what the disks of %s are now could not be noted: %s", domain, error)


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


def _check_suspended(host: Host, domain: Domain) -> None:
    """DomainError when somebody has resumed the domain: its image is of several moments, and it has run on.

    One of arm64 is paused by now, see the kind. One that was destroyed is as good: all of it had been read by then.
    """
    found = host.look_up(domain)
    if found.condition in (Condition.RUNNING, Condition.CRASHED, Condition.STOPPED):
        raise DomainError(
            f"{domain} {found.what}: another program has resumed it while it was saved",
            name=ErrorName.DOMAIN_BUSY,
            remedies=[Advice(Remedy.TRY_AGAIN)],
        )


def _commit_image(
    host: Host,
    domain: Domain,
    request: SaveRequest,
    commit: Commit,
    session: SaveSession,
    report: SaveReport,
) -> None:
    """The image is on the disk and has its name: from here on the request is carried out, not given up."""
    written_at = host.clock()
    try:
        commit.finish()
        report.stored_bytes, report.cache = commit.stored_bytes, commit.cache
        if commit.handed_over():
            interrupts.too_late()
            session.give_away()
    except BaseException as error:
        if not commit.handed_over(error):
            raise
        interrupts.too_late()
        session.give_away()
    report.sync_s = host.clock() - written_at
    with shield():
        if request.final_state is not FinalState.RUN:  # else it may have been resumed already
            _check_suspended(host, domain)
        if commit.hands_over:
            session.give_away()
        commit.commit()
        interrupts.too_late()


@contextmanager
def _noted_for_boot(
    host: Host, domain: Domain, request: SaveRequest, final_state: FinalState, session: SaveSession
) -> Iterator[None]:
    """Before the domain is destroyed: the power may fail next. Where the image cannot be noted, it runs again."""
    if not request.restored_at_boot or final_state is not FinalState.DESTROY:
        yield
        return

    def still_there() -> bool:  # libxl may fail at its devices when the domain itself is destroyed
        return account_of(host, domain).state not in (DomainState.GONE, DomainState.DYING)

    image = Path(request.image)
    try:
        with ExitStack() as noted:
            try:
                noted.enter_context(to_be_restored(image, still_there))
            except TransportError as error:
                _resume_after(host, domain, request, session, error)
                raise
            yield
    finally:
        _forget_older(image, domain)


def _forget_older(image: Path, domain: Domain) -> None:
    """Where this image is pending, no other of its domain is: that was here, whoever had restored it from one.

    A link whose image cannot be read stays.
    """
    from saverestore.operations.image import opened as opened_image

    try:
        if not is_pending(image):
            return
        for one in pending(image.parent):
            if one.path.name == image.name:
                continue
            found = None
            with contextlib.suppress(SaveRestoreError), opened_image(str(one.path)) as older:
                found = older.saved_uuid
            if str(found) == str(domain.info.uuid):
                LOG.info("%s is not to be restored any more: %s is newer", one.path, image)
                forget(one.path)
    except TransportError as error:
        LOG.warning("%s", error)


def _resume_after(
    host: Host, domain: Domain, request: SaveRequest, session: SaveSession, error: TransportError
) -> None:
    """The image is complete, but the domain may not be destroyed: `error` says how both are."""
    with contextlib.suppress(XenError, DomainError):
        session.resume()
    account = account_of(host, domain)
    session.report.domain_state = account.state
    error.add_note(f"{request.image} is complete; {domain} {account.what}")
    for advice in account.remedies:
        advise(error, advice)


def _make_final(
    host: Host, prepared: Prepared, request: SaveRequest, session: SaveSession, report: SaveReport
) -> None:
    """The image is safe: make of the domain what was asked for."""
    domain, wanted = prepared.domain, request.final_state
    try:
        if wanted is FinalState.DESTROY:
            prepared.guest.close()
            if prepared.device_model is not None:
                prepared.device_model.close()
            host.handles.memory.unmap_lingering()  # or some of it would outlive its end
            prepared.toolstack.destroy(domain)
            report.domain_state = DomainState.DESTROYED
        else:
            if wanted is FinalState.PAUSE:
                host.handles.xen.pause(domain.domid)
            session.resume(paused=wanted is FinalState.PAUSE)
    except (XenError, DomainError) as error:
        account = account_of(host, domain)
        report.domain_state = account.state
        if wanted is not FinalState.DESTROY or account.state is not DomainState.GONE:
            raise XenRefused(
                f"{request.image} is complete, but {domain} could not be made {wanted.value}: {fact_of(error)}; "
                f"it {account.what}",
                name=ErrorName.FINAL_STATE_FAILED,
                remedies=account.remedies or [Advice(Remedy.LIST_DOMAINS)],
            ) from error
    if wanted is not FinalState.DESTROY:
        account = account_of(host, domain)
        if account.state not in (DomainState.RUNNING, DomainState.PAUSED):
            LOG.warning("%s %s", domain, account.what, extra={"remedies": account.remedies})
        report.domain_state = account.state
        _remember(host, domain, report)
    # Not of one that is paused: a PV domain may be unpaused at any moment.
    if wanted is not FinalState.PAUSE:
        ending.let_memory_follow()


@contextmanager
def _reporting_leftovers(
    host: Host, commit: Commit, prepared: Prepared, report: SaveReport
) -> Iterator[None]:
    """An error in this block also says what is left of the image, and how the domain is."""
    domain = prepared.domain
    try:
        yield
    except BaseException as error:
        told = fact_of(error)
        account = account_after_failure(host, prepared, report)
        report.domain_state = account.state
        if isinstance(error, XenError) and account.state in (DomainState.GONE, DomainState.DYING):
            # Whatever call it was that failed: this is why.
            reason = DomainError(f"{domain} {account.what}: {told}", name=ErrorName.DOMAIN_STOPPED)
            reason.add_note(commit.left_behind)
            raise reason from error
        known = account.what in told  # each fact once
        error.add_note(commit.left_behind if known else f"{commit.left_behind}; {domain} {account.what}")
        for advice in account.remedies:
            advise(error, advice)
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


def _provenance(request: SaveRequest, prepared: Prepared, settings: SaveSettings) -> dict[str, object]:
    domain, coding = prepared.domain, settings.coding
    codec = str(coding) if isinstance(coding, Coding) else "auto, also xor"
    return {
        "tool": "pysave",
        "version": saverestore.__version__,
        "host": socket.gethostname(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "domain": {"name": domain.name, "uuid": str(domain.info.uuid), "domid": domain.domid},
        "memory": {"pages": prepared.guest.populated_pages},
        "options": {
            "live": request.live,
            "dirty": request.dirty,
            "afterwards": request.final_state.value,
            "compress": None if request.compress is None else f"zstd:{request.compress}",
            "format": "xen" if coding is None else f"draft-b, {codec}",
        },
    }
