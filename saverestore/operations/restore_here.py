"""Restoring where this process fills the domain, which the bare toolstack has made; on ARM also libxl."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from saverestore import interrupts
from saverestore.engine import restore as engine
from saverestore.engine.progress import Progress, RestoreReport
from saverestore.errors import DomainError, ImageError
from saverestore.guest.arm64.host import gic_version, is_arm64_host
from saverestore.guest.common.handles import FORCE, Handles
from saverestore.guest.ports import RestoredPages, RestoreGuest
from saverestore.guest.x86.hvm import HvmRestore, last_pfn
from saverestore.guest.x86.pv import PvRestore, pfn_limit
from saverestore.interrupts import shield
from saverestore.operations.host import Host
from saverestore.operations.image import OpenedImage
from saverestore.operations.requests import RestoreRequest
from saverestore.stream.layout import DomainType
from saverestore.stream.reader import LibxcReader
from saverestore.toolstack.config import GuestConfig
from saverestore.toolstack.ports import FreshDomain, Maker
from saverestore.transport.base import ByteSource


class RestoringHere:
    """See Restoring."""

    def __init__(self, host: Host, maker: Maker, image: OpenedImage, request: RestoreRequest) -> None:
        self._host = host
        self._maker = maker
        self._image = image
        self._request = request
        self._report = RestoreReport()
        self._domid: int | None = None
        self._kept = False
        self._began_at = host.clock()

    def fill(self, progress: Progress, report: RestoreReport) -> int:
        """See Restoring. The image stands at its libxc stream."""
        self._report = report
        image, config = self._image, self._image.config
        # The image first: what is wrong with it can be found before anything is done.
        reader = LibxcReader(image.source, before=image.before, require_digest=self._request.require_digest)
        _check_kind(config, reader)
        self._maker.check_host()
        progress.phase(f"creating {config.name}")
        self._began_at = self._host.clock()
        with shield():  # it must not come into being without this object knowing of it
            fresh = self._maker.create(config)
            self._domid = fresh.domid
        report.create_s = self._host.clock() - self._began_at
        pages = _fill(
            self._host.handles,
            fresh,
            config,
            reader,
            image.source,
            progress,
            report,
            force=self._request.force,
        )
        self._maker.connect(fresh, config, pages)
        image.expect_end(reader.following)
        return fresh.domid

    def activate(self) -> None:
        """See Restoring."""
        assert self._domid is not None
        filled_at = self._host.clock()
        with shield():
            if not self._request.paused:
                self._maker.unpause(self._domid)
            self._kept = True
            interrupts.too_late()
        self._report.start_s = self._host.clock() - filled_at
        self._report.total_s = self._host.clock() - self._began_at

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._kept or self._domid is None:
            return
        with shield():
            self._host.handles.memory.unmap_lingering()  # or some of the domain would outlive its end
            self._maker.destroy(self._domid, self._image.config.uuid)
        if error is not None:
            error.add_note("no domain was left behind")


def check_architecture(domain_type: DomainType) -> None:
    """ImageError when the image's domain ran on another architecture than this host's."""
    if (domain_type is DomainType.ARM64) != is_arm64_host():
        names = ("arm64", "x86") if domain_type is DomainType.ARM64 else ("x86", "arm64")
        raise ImageError(
            f"the image holds an {names[0]} domain, and this is an {names[1]} host; nothing was done"
        )


def _check_kind(guest_config: GuestConfig, reader: LibxcReader) -> None:
    """The configuration and the stream must speak of the same kind of domain, one that we can restore."""
    if guest_config.kind == "hvm":
        raise DomainError(
            f"{guest_config.name} is an HVM domain with a device model, which the bare toolstack cannot restore; "
            "nothing was done"
        )
    check_architecture(reader.domain.type)
    wanted = DomainType.X86_PV if guest_config.kind == "pv" else DomainType.X86_HVM
    if is_arm64_host():
        wanted = DomainType.ARM64
    if reader.domain.type != wanted:
        raise ImageError(
            f"the configuration says {guest_config.kind}, the stream holds an {reader.domain.type.name} domain"
        )


def _fill(
    handles: Handles,
    fresh: FreshDomain,
    guest_config: GuestConfig,
    reader: LibxcReader,
    source: ByteSource,
    progress: Progress,
    report: RestoreReport,
    *,
    force: bool,
) -> RestoredPages:
    unless = None if force else FORCE
    info = handles.xen.domain(fresh.domid)
    guest: RestoreGuest
    if reader.domain.type == DomainType.ARM64:
        from saverestore.guest.arm64.layout import last_gfn
        from saverestore.guest.arm64.restore import Arm64Restore

        guest = Arm64Restore(
            handles, info, gic_version(guest_config.gic_version), unless=unless, is_built=fresh.is_built
        )
        reader.max_pfn = last_gfn(guest_config.max_kib // 4)
    elif reader.domain.type == DomainType.X86_PV:
        guest = PvRestore(handles, info, pfn_limit=pfn_limit(guest_config.max_kib // 4), unless=unless)
    else:
        guest = HvmRestore(handles, info, unless=unless)
        reader.max_pfn = last_pfn(guest_config.max_kib // 4)
    try:
        pages, _ = engine.restore(reader, source, guest, fresh.channels, progress, report)
    finally:
        guest.close()
    return pages
