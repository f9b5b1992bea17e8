"""Saving one domain into one image: preflight, engine, and what becomes of the domain."""

from __future__ import annotations

import contextlib
import datetime
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import saverestore
from saverestore import interrupts
from saverestore.engine import save as engine
from saverestore.engine.policy import Limits
from saverestore.engine.progress import Progress, SaveReport
from saverestore.errors import Advice, DomainError, ErrorName, Remedy, XenRefused, advise
from saverestore.guest.common import process_end
from saverestore.guest.common.handles import Handles, XenError, open_handles
from saverestore.guest.ports import SaveGuest
from saverestore.interrupts import shield
from saverestore.operations.preflight import Findings
from saverestore.operations.prepare_save import (
    Afterwards,
    Prepared,
    SaveRequest,
    check_room,
    destination,
    prepare,
)
from saverestore.stream.behind import BehindSink
from saverestore.stream.digest import BeforeSink
from saverestore.stream.layout import DomainType
from saverestore.stream.libxl import LibxlWriter
from saverestore.stream.xl import XlHeader
from saverestore.toolstack import last_downtime, processor_cap
from saverestore.toolstack.device_model import DeviceModel
from saverestore.toolstack.domains import Domain
from saverestore.transport.base import ByteSink
from saverestore.transport.fd import FdSink
from saverestore.transport.newfile import NewFile
from saverestore.transport.stdout import StandardOutput

if TYPE_CHECKING:
    from saverestore.transport.zstd_sink import ZstdSink

__all__ = ["Afterwards", "SaveRequest", "save_domain"]

LOG = logging.getLogger(__name__)


def save_domain(
    request: SaveRequest, progress: Progress, report: SaveReport | None = None, *, process_ends: bool = False
) -> SaveReport:
    """Save a domain. The image is complete and on the disk before the domain is destroyed.

    On any error the image does not exist, and the domain runs as before. What was done goes into `report` while it is
    done, so it is known of a save that fails, too. `process_ends`: see `open_handles`.
    """
    report = SaveReport() if report is None else report
    with open_handles(process_ends=process_ends) as handles, ExitStack() as stack:
        ready = prepare(handles, request, Findings(), stack)
        domain, guest = ready.domain, ready.guest
        try:
            with destination(request) as file:
                check_room(file, guest, domain)
                _speed_up(handles, domain)
                with _resumed_on_error(guest, domain, file, report), _sink_for(request, file) as sink:
                    _write_image(ready, sink, request, _limits(handles, domain, request), progress, report)
                    report.domain_state = "suspended"
                    if request.afterwards is Afterwards.RUN:
                        # It need not wait for the disk. When this fails, the image is kept, and it is tried again.
                        resumed_at = time.monotonic()
                        with shield(), contextlib.suppress(XenError, DomainError):
                            guest.resume()
                            report.domain_state = request.afterwards.value
                        report.resume_s = time.monotonic() - resumed_at
                        report.downtime_s = time.monotonic() - report.suspended_at
                        if guest.domain_type == DomainType.X86_PV:
                            # It runs, and the disk may take its time: see `ForeignMemory.map`.
                            handles.memory.unmap_lingering()
                    written_at = time.monotonic()
                    sink.finish()
                    report.stored_bytes = file.sink.stored_bytes
                    file.sync()
                    report.sync_s = time.monotonic() - written_at
                    with shield():
                        file.publish()
                        # The image is safe: from here on the request is carried out, not given up.
                        interrupts.too_late()
                _do_afterwards(handles, ready, request)
                report.domain_state = request.afterwards.value
                if request.afterwards is not Afterwards.DESTROY:
                    _remember(handles, domain, report)
                # Not of one that is paused: a PV domain may be let go on at any moment.
                if request.afterwards is not Afterwards.PAUSE:
                    process_end.let_memory_follow()
        finally:
            with shield():
                guest.close()
        return report


def _limits(handles: Handles, domain: Domain, request: SaveRequest) -> Limits:
    """Those of the rounds, with what suspending took the last time, if there was one."""
    if not request.live:
        return Limits()
    with contextlib.suppress(XenError):
        if (known := last_downtime.known(handles.store, domain.domid)) is not None:
            suspend_s, state_s = known
            return replace(request.limits, suspend_s=suspend_s, state_s=state_s)
    return request.limits


def _remember(handles: Handles, domain: Domain, report: SaveReport) -> None:
    """For the next time. That it cannot be written down is no failure of the save."""
    with contextlib.suppress(XenError):
        state_s = report.state_s + report.resume_s
        last_downtime.remember(handles.store, domain.domid, suspend_s=report.suspend_s, state_s=state_s)


def _speed_up(handles: Handles, domain: Domain) -> None:
    """A save that was killed may have left the domain slowed down."""
    try:
        if put_back := processor_cap.put_back(handles, domain):
            LOG.warning("%s: %s", domain, put_back)
    except XenError as error:
        LOG.warning("%s was slowed down by a save that was killed, and still is: %s", domain, error)


@contextmanager
def _resumed_on_error(
    guest: SaveGuest, domain: Domain, file: NewFile | StandardOutput, report: SaveReport
) -> Iterator[None]:
    """Whatever ends the block with an exception: the guest runs again, and the error says so."""
    try:
        yield
    except BaseException as error:
        with shield():
            try:
                guest.resume()
                if report.domain_state == "suspended":
                    report.downtime_s = time.monotonic() - report.suspended_at
                report.domain_state = "running"
                error.add_note(f"{file.left_behind}; {domain} goes on")
            except (XenError, DomainError) as second:
                report.domain_state = "suspended, and could not be resumed"
                error.add_note(f"{domain} could not be resumed ({second})")
                advise(error, Advice(Remedy.RECOVER, domain.domid))
        raise


@contextmanager
def _sink_for(request: SaveRequest, file: NewFile | StandardOutput) -> Iterator[FdSink | ZstdSink]:
    """What the image is written to: the file, or what compresses into it."""
    if request.compress is None:
        yield file.sink
        return
    from saverestore.transport.zstd_sink import ZstdSink

    with ZstdSink(file.sink, level=request.compress) as sink:
        yield sink


def _write_image(
    ready: Prepared,
    sink: ByteSink,
    request: SaveRequest,
    limits: Limits,
    progress: Progress,
    report: SaveReport,
) -> None:
    """xl's header, libxl's stream around libxc's. The guest is suspended afterwards."""
    outside = BeforeSink(sink)
    XlHeader.write(outside, ready.config.to_json())
    stream = LibxlWriter(outside)
    stream.libxc_context()
    tail = _Tail(stream, sink.name, ready.device_model)
    settings = engine.SaveSettings(
        live=request.live,
        dirty=request.dirty,
        provenance=None if request.plain else _provenance(request, ready.domain),
        digest=ready.digest,
        before=outside.before(),
        following=lambda: tail.kept.following(),
        coding=request.coding,
        limits=limits,
        throttle=ready.throttle,
    )
    engine.save(ready.guest, sink, settings, progress, report)
    saved_at = time.monotonic()
    tail.kept.write_to(sink)
    report.state_s += time.monotonic() - saved_at
    report.downtime_s = time.monotonic() - report.suspended_at


class _Tail:
    """What libxl's stream has behind the libxc stream: made once, when asked for, of a domain that stands still."""

    def __init__(self, stream: LibxlWriter, name: str, device_model: DeviceModel | None) -> None:
        self._stream = stream
        self._name = name
        self._device_model = device_model

    @cached_property
    def kept(self) -> BehindSink:
        """The device model's state and END."""
        kept = BehindSink(self._name)
        self._stream.go_on_in(kept)
        for type, body in self._device_model.records() if self._device_model else ():
            self._stream.record(type, body)
        self._stream.end()
        return kept


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


def _do_afterwards(handles: Handles, ready: Prepared, request: SaveRequest) -> None:
    """The image is safe: make of the domain what was asked for."""
    try:
        if request.afterwards is Afterwards.DESTROY:
            ready.guest.close()
            handles.memory.unmap_lingering()  # or some of it would outlive its end
            ready.toolstack.destroy(ready.domain)
            return
        if request.afterwards is Afterwards.PAUSE:
            handles.xen.pause(ready.domain.domid)
        ready.guest.resume()
    except (XenError, DomainError) as error:
        raise XenRefused(
            f"{request.image} is complete, but {ready.domain} could not be made {request.afterwards.value}: {error}; "
            "it is still there",
            name=ErrorName.FINAL_STATE_FAILED,
            remedies=[Advice(Remedy.LIST_DOMAINS)],
        ) from error
