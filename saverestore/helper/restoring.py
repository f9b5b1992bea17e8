"""A restore for libxl, into a domain that libxl has created and will give its devices."""

from __future__ import annotations

import os
import stat
import uuid
from contextlib import AbstractContextManager, ExitStack, nullcontext

from saverestore.engine import restore as engine
from saverestore.engine.progress import RestoreReport
from saverestore.errors import DomainError, ErrorName, ImageError, SaveRestoreError
from saverestore.guest.common.handles import Handles, open_handles
from saverestore.guest.kinds import this_host
from saverestore.guest.ports import U8, U64, Channels, PageWindow, RestoredPages, RestoreGuest
from saverestore.helper.arguments import RestoreArguments, StreamType
from saverestore.helper.channel import Channel
from saverestore.helper.messages import MessageType, Missing
from saverestore.helper.reporting import ChannelProgress
from saverestore.helper.settings import Settings
from saverestore.process import ending
from saverestore.stream.reader import LibxcReader
from saverestore.stream.records import Disks, Record, X86CpuidPolicy, X86MsrPolicy
from saverestore.stream.trailer import check_trailer
from saverestore.stream.xl import XlHeader
from saverestore.toolstack import config, disks, known_bad, memory, neighbours
from saverestore.toolstack.helper_link import Task
from saverestore.toolstack.lock import restoring
from saverestore.transport.fd import FdSource


class LibxlRestoreGuest:
    """A domain to be filled; libxl is told when static data are over, and gives a policy where there is none."""

    def __init__(self, guest: RestoreGuest, channel: Channel) -> None:
        self._guest = guest
        self._channel = channel
        self._missing = Missing.CPUID | Missing.MSR

    def take(self, record: Record) -> None:
        """See RestoreGuest."""
        if isinstance(record, X86CpuidPolicy):
            self._missing &= ~Missing.CPUID
        elif isinstance(record, X86MsrPolicy):
            self._missing &= ~Missing.MSR
        self._guest.take(record)

    def static_data_done(self) -> None:
        """Images of Xen before 4.14 have no CPU policy: libxl makes one of the configuration."""
        self._guest.static_data_done()
        if not self._channel.takes(MessageType.STATIC_DATA_DONE):
            return
        answer = self._channel.ask(MessageType.STATIC_DATA_DONE, self._missing)
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


def _most_pages(handles: Handles, allowed: int, task: Task | None) -> int:
    """How many pages the image may speak of. `allowed`: what libxl lets the domain have, its target, is often less.

    `xl` does not say how much it could ever have: then it may be as much as the host has.
    """
    if task is not None and task.max_kib:
        return max(allowed, task.max_kib // 4)
    return max(allowed, handles.xen.host().total_pages)


def _check_disks(record: Disks, domain_uuid: uuid.UUID, task: Task | None) -> None:
    if task is None:  # `xl` restores over anything: a warning is all that can be done
        disks.check(record.disks, domain_uuid, force=True)
        return
    used = [disk for disk in record.disks if disk.get("path") in task.disk_paths]
    disks.check(used, uuid.UUID(task.saved_uuid), force=not task.check_disks)


def _disks_kept(fd: int, domain_uuid: uuid.UUID) -> AbstractContextManager[None]:
    """Inside this block no restore of ours makes a domain that writes to the disks of `xl`'s, as far as these are
    known: of a file, by the configuration at its front, unless `xl` was given another one.

    That another restore has one of them is a warning. They are free from the helper's end on, some moments before
    libxl has the domain's record.
    """
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return nullcontext()
        # Opened anew, as the descriptor's place is libxl's.
        with FdSource(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC), "the image") as source:
            header = XlHeader.read(source)
        found = config.parse(header.config or b"")
    except (OSError, SaveRestoreError):
        return nullcontext()
    return neighbours.disks_kept(found, force=True) if found.uuid == domain_uuid else nullcontext()


def restore(
    arguments: RestoreArguments,
    settings: Settings,
    task: Task | None,
    channel: Channel,
    report: RestoreReport,
) -> RestoredPages:
    """Read one libxc stream to its END, and no byte more, into the domain: where its rings are.

    `task`: of whoever asked libxl to restore; None when that is `xl`.
    Of what libxl will read behind that, a file is looked at beforehand; what comes through a pipe cannot be.
    On any error the domain is of no use; libxl destroys it. What was done goes into `report`, then, too.
    """
    if arguments.stream_type != StreamType.PLAIN:
        raise DomainError(
            "checkpointed streams (Remus, COLO) cannot be restored by this helper; use libxl's own",
            name=ErrorName.CHECKPOINTS_UNSUPPORTED,
        )
    source = _source(arguments.io_fd, task)
    check_cpu = settings.check_cpu if task is None else task.check_cpu
    reader = LibxcReader(
        source,
        header_digest=None if task is None else task.header_digest,
        require_digest=task is not None and task.require_digest,
    )
    with ExitStack() as stack:
        handles = stack.enter_context(open_handles(process_ends=True))
        info = handles.xen.domain(arguments.domid)
        if task is None:  # else whoever asked libxl has the lock, and has looked at memory and the hypervisor
            stack.enter_context(restoring(info.uuid, None))
            stack.enter_context(_disks_kept(arguments.io_fd, info.uuid))
            stack.enter_context(memory.counted(info))
        else:
            stack.enter_context(memory.claimed(handles, info.domid, task.name, task.pages))
        kind = this_host().of_domain(handles, info)
        if task is None:
            known_bad.check_restore(
                handles, this_host(), kind.domain_type, f"domain {info.domid}", force=False
            )
        if reader.domain.type != kind.domain_type:
            raise ImageError(
                f"the image holds an {reader.domain.type.name} domain, "
                f"but libxl made an {kind.domain_type.name} one"
            )
        max_pages = _most_pages(handles, info.max_pages, task)
        guest = kind.restore_guest(handles, info, max_pages=max_pages, check_cpu=check_cpu)
        reader.max_pfn = kind.last_pfn(max_pages)
        channels = Channels(
            store_port=arguments.store_port,
            console_port=arguments.console_port,
            store_domid=arguments.store_domid,
            console_domid=arguments.console_domid,
        )
        try:
            restored, _ = engine.restore(
                reader,
                source,
                LibxlRestoreGuest(guest, channel),
                channels,
                ChannelProgress(channel),
                report,
                take_disks=lambda record: _check_disks(record, info.uuid, task),
            )
            check_trailer(source, reader.following)
            ending.let_memory_follow()
            return restored
        finally:
            guest.close()
