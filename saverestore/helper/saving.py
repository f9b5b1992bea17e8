"""A save for libxl: our engine writes the stream; libxl suspends the domain and decides what becomes of it."""

from __future__ import annotations

import datetime
import errno
import logging
import socket
from typing import Any

import saverestore
from saverestore.engine.policy import Limits, OnStall
from saverestore.engine.progress import SaveReport
from saverestore.engine.save import save as save_image
from saverestore.engine.settings import SaveSettings
from saverestore.errors import DomainError, ErrorName
from saverestore.guest.common.handles import Handles, XenError, open_handles
from saverestore.guest.common.suspend import Suspender
from saverestore.guest.kinds import this_host
from saverestore.guest.ports import SaveGuest
from saverestore.helper.arguments import SaveArguments, SaveFlag, StreamType
from saverestore.helper.channel import Channel
from saverestore.helper.messages import MessageType
from saverestore.helper.reporting import ChannelProgress
from saverestore.helper.settings import Settings
from saverestore.interrupts import shield
from saverestore.process import ending
from saverestore.stream.digest_algorithms import NO_DIGEST, algorithm_for_writing
from saverestore.toolstack import known_bad, watcher
from saverestore.toolstack.condition import Condition, look_up
from saverestore.toolstack.device_model import DeviceModel
from saverestore.toolstack.domains import Domain, name_of
from saverestore.toolstack.lock import locked
from saverestore.toolstack.processor_cap import ProcessorCap, speed_up
from saverestore.transport.pipe import sink_of

LOG = logging.getLogger(__name__)

ALIVE = frozenset({Condition.RUNNING, Condition.PAUSED, Condition.SUSPENDED})
"""It runs, or may again."""

SUSPENDED = 1
"""What libxl answers when the domain is suspended; anything else is a failure."""


class LibxlSuspender:
    """Suspending by asking libxl, which also stops the device model. Resuming is libxl's, too, while it is there."""

    is_late = False
    """libxl takes its request back, or waits."""

    has_ended = False
    """libxl finds out."""

    def __init__(self, channel: Channel, handles: Handles, domain: Domain) -> None:
        self._channel = channel
        self._handles = handles
        self._domain = domain

    def suspend(self) -> None:
        """Return once the domain is suspended. DomainError when libxl could not have it so; libxl says why."""
        answer = self._channel.ask(MessageType.SUSPEND)
        found = look_up(self._handles, self._domain.domid, self._domain.info.uuid)
        if answer != SUSPENDED or found.condition is not Condition.SUSPENDED:
            raise DomainError(
                f"libxl was asked to suspend domain {self._domain.domid} and answered {answer}; "
                f"the domain {found.what}",
                name=ErrorName.DOMAIN_UNRESPONSIVE if found.condition in ALIVE else ErrorName.DOMAIN_STOPPED,
            )

    def resume(self) -> None:
        """Nothing: libxl resumes the domain after a failure, and only it can start the device model again."""


def resume_without_libxl(domid: int) -> str:
    """Resume a domain that libxl was asked to suspend, when libxl has gone: what the domain is now, in words.

    After Ctrl-C `xl` ends without a word, and the image it was writing is of no use. A device model, which libxl
    stops with the domain, runs again, too; that it does not answer keeps nobody from resuming the domain.
    """
    with open_handles() as handles:
        try:
            domain = _domain(handles, domid)
        except XenError as error:
            if error.errno != errno.ESRCH:
                raise
            return "is gone"
        model = _resume_device_model(handles, domain)
        suspender = Suspender(handles.xen, handles.store, domid, requested=True)
        suspender.resume()
        if suspender.is_late:
            late = f"is running, and may still suspend: {watcher.start_for_late(domain)} resumes it then"
            return f"{late}{model}"
        found = look_up(handles, domid, domain.info.uuid)
        return f"{found.what}{model}" if found.condition in ALIVE else found.what


def _resume_device_model(handles: Handles, domain: Domain) -> str:
    """What is to be said of it: nothing where it runs, or there is none. Before the domain, as libxl does."""
    try:
        if this_host().of_domain(handles, domain.info).has_device_model:
            DeviceModel(handles.store, domain.domid).recover()
    except (DomainError, OSError) as error:
        return f"; its device model may have stopped: {error}"
    return ""


class LibxlEmulator:
    """The device model of a domain, if it has one: libxl talks to it. See Emulator."""

    def __init__(self, channel: Channel, domid: int) -> None:
        self._channel = channel
        self._domid = domid

    def log_dirty(self, *, on: bool) -> None:
        """Ask libxl to switch it; nothing when libxl takes no such message. DomainError when it could not."""
        if not self._channel.takes(MessageType.SWITCH_QEMU_LOGDIRTY):
            return
        answer = self._channel.ask(MessageType.SWITCH_QEMU_LOGDIRTY, self._domid, int(on))
        if answer:
            raise DomainError(
                f"the device model of domain {self._domid} did not accept the request to "
                f"{'begin' if on else 'stop'} logging "
                f"what it writes (libxl answered {answer}); its own log is /var/log/xen/qemu-dm-*.log",
                name=ErrorName.DEVICE_MODEL_FAILED,
            )


def save(arguments: SaveArguments, settings: Settings, channel: Channel) -> SaveReport:
    """Write the domain to the descriptor, from the libxc stream's header to its END.

    It is suspended afterwards. On any error log-dirty is off, and libxl resumes the domain once the failure is
    reported to it; where libxl is gone (LibxlGone), `resume_without_libxl` does.
    """
    if arguments.stream_type != StreamType.PLAIN:
        raise DomainError(
            "checkpointed saves (Remus, COLO) cannot be made by this helper; use libxl's own",
            name=ErrorName.CHECKPOINTS_UNSUPPORTED,
        )
    if not channel.takes(MessageType.SUSPEND):
        raise DomainError(
            "libxl has no callback to suspend the domain, so it cannot be saved",
            name=ErrorName.HOST_UNSUPPORTED,
        )
    live = bool(arguments.flags & SaveFlag.LIVE)
    digest = algorithm_for_writing(NO_DIGEST if settings.plain else settings.digest)
    if arguments.flags & SaveFlag.DEBUG:
        LOG.warning("the debug option (send everything twice and compare) is not supported and passed over")
    limits = settings.limits
    with open_handles(process_ends=True) as handles, locked(domain := _domain(handles, arguments.domid)):
        # Whether it is resumed is not said: a PV domain is refused either way, of others there is a warning.
        known_bad.check_save(handles, this_host(), domain, resumes=False, force=False)
        speed_up(handles, domain)
        throttle = ProcessorCap(handles, domain) if live and limits.on_stall is OnStall.THROTTLE else None
        suspender = LibxlSuspender(channel, handles, domain)
        guest = _guest_of(channel, handles, arguments.domid, suspender)
        try:
            engine_settings = SaveSettings(
                live=live,
                dirty=settings.dirty,
                limits=limits if live else Limits(),
                provenance=None if settings.plain else _provenance(handles, arguments, settings),
                digest=digest,
                workers=settings.workers,
                throttle=throttle,
            )
            sink = sink_of(arguments.io_fd, "the image", close_fd=False)
            report = save_image(guest, sink, engine_settings, ChannelProgress(channel))
            if live:
                # Little is left, and libxl waits for this process with the domain suspended. Of one that is not live
                # all is: then libxl must wait, which may destroy the domain next.
                handles.memory.unmap_lingering()
                ending.let_memory_follow()
            return report
        finally:
            with shield():
                guest.close()


def _domain(handles: Handles, domid: int) -> Domain:
    return Domain(handles.xen.domain(domid), name_of(handles.store, domid))


def _guest_of(channel: Channel, handles: Handles, domid: int, suspender: LibxlSuspender) -> SaveGuest:
    info = handles.xen.domain(domid)
    kind = this_host().of_domain(handles, info)
    return kind.save_guest(handles, info, suspender, LibxlEmulator(channel, domid))


def _provenance(handles: Handles, arguments: SaveArguments, settings: Settings) -> dict[str, Any]:
    return {
        "tool": "pysave-helper",
        "version": saverestore.__version__,
        "host": socket.gethostname(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "domain": {"name": name_of(handles.store, arguments.domid), "domid": arguments.domid},
        "options": {"live": bool(arguments.flags & SaveFlag.LIVE), "dirty": settings.dirty},
    }
