"""A restore for libxl, into a domain that libxl has created and will give its devices."""

from __future__ import annotations

import os

from saverestore.engine import restore as engine
from saverestore.engine.progress import RestoreReport
from saverestore.errors import DomainError, ErrorName, ImageError
from saverestore.guest.common import process_end
from saverestore.guest.common.handles import open_handles
from saverestore.guest.ports import U8, U64, Channels, PageWindow, RestoredPages
from saverestore.guest.x86.hvm import HvmRestore, last_pfn
from saverestore.guest.x86.pv import PvRestore, pfn_limit
from saverestore.helper.arguments import RestoreArguments, StreamType
from saverestore.helper.channel import Channel
from saverestore.helper.messages import MessageType, Missing
from saverestore.helper.settings import Settings
from saverestore.helper.telling import ChannelProgress
from saverestore.stream.behind import check_ahead
from saverestore.stream.layout import DomainType
from saverestore.stream.reader import LibxcReader
from saverestore.stream.records import Record
from saverestore.toolstack.helper_link import Task
from saverestore.transport.fd import FdSource


class LibxlRestoreGuest:
    """A domain to be filled; libxl is told when static data are over, and gives a policy where there is none."""

    def __init__(self, guest: HvmRestore | PvRestore, channel: Channel) -> None:
        self._guest = guest
        self._channel = channel

    def take(self, record: Record) -> None:
        """See RestoreGuest."""
        self._guest.take(record)

    def static_data_done(self) -> None:
        """Images of Xen before 4.14 have no CPU policy: libxl makes one of the configuration."""
        self._guest.static_data_done()
        if not self._channel.takes(MessageType.STATIC_DATA_DONE):
            return
        missing = Missing(0)
        if not self._guest.has_cpuid:
            missing |= Missing.CPUID
        if not self._guest.has_msrs:
            missing |= Missing.MSR
        answer = self._channel.ask(MessageType.STATIC_DATA_DONE, missing)
        if answer:
            raise DomainError(
                f"libxl could not give the domain its CPU policy (it answered {answer})",
                name=ErrorName.LIBXL_FAILED,
            )

    def write_pages(self, pfns: U64, types: U8) -> PageWindow:
        """See RestoreGuest."""
        return self._guest.write_pages(pfns, types)

    def complete(self, channels: Channels) -> RestoredPages:
        """See RestoreGuest."""
        return self._guest.complete(channels)

    def close(self) -> None:
        """See RestoreGuest."""
        self._guest.close()


def _source(fd: int, task: Task | None) -> FdSource:
    """What libxl reads from, called and counted as whoever asked libxl does, so that errors name place and file."""
    source = FdSource(fd, "the image" if task is None else task.image, close_fd=False)
    if task is not None:
        source.offset = task.offset
    return source


def restore(
    arguments: RestoreArguments, settings: Settings, channel: Channel, report: RestoreReport
) -> RestoredPages:
    """Read one libxc stream to its END, and no byte more, into the domain: where its rings are.

    Of what libxl will read behind that, a file is looked at beforehand; what comes through a pipe cannot be.
    On any error the domain is of no use; libxl destroys it. What was done goes into `report`, then, too.
    """
    if arguments.stream_type != StreamType.PLAIN:
        raise DomainError(
            "checkpointed streams (Remus, COLO) cannot be restored by this helper; use libxl's own",
            name=ErrorName.CHECKPOINTS_UNSUPPORTED,
        )
    task = Task.of(os.environ)
    source = _source(arguments.io_fd, task)
    check_cpu = settings.check_cpu if task is None else task.check_cpu
    reader = LibxcReader(
        source,
        before=None if task is None else task.before,
        require_digest=task is not None and task.require_digest,
    )
    with open_handles(process_ends=True) as handles:
        info = handles.xen.domain(arguments.domid)
        guest: HvmRestore | PvRestore
        if (reader.domain.type == DomainType.X86_HVM) != info.hvm:
            raise ImageError(
                f"the image holds an {reader.domain.type.name} domain, "
                f"but libxl made an {'HVM or PVH' if info.hvm else 'PV'} one"
            )
        if info.hvm:
            guest = HvmRestore(handles, info, check_cpu=check_cpu)
            reader.max_pfn = last_pfn(info.max_pages)
        else:
            guest = PvRestore(handles, info, pfn_limit=pfn_limit(info.max_pages), check_cpu=check_cpu)
        channels = Channels(
            store_port=arguments.store_port,
            console_port=arguments.console_port,
            store_domid=arguments.store_domid,
            console_domid=arguments.console_domid,
        )
        try:
            restored, _ = engine.restore(
                reader, source, LibxlRestoreGuest(guest, channel), channels, ChannelProgress(channel), report
            )
            check_ahead(source, reader.following)
            process_end.let_memory_follow()
            return restored
        finally:
            guest.close()
