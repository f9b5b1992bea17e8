"""Restoring where this process fills the domain, which the bare toolstack has made; on ARM also libxl."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from saverestore import interrupts
from saverestore.engine import restore as engine
from saverestore.engine.progress import Progress, RestoreReport
from saverestore.errors import DomainError, ErrorName, ImageError
from saverestore.guest.arm64.host import gic_version, is_arm64_host
from saverestore.guest.common.handles import Handles
from saverestore.guest.ports import RestoredPages, RestoreGuest
from saverestore.guest.x86.hvm import HvmRestore, last_pfn
from saverestore.guest.x86.pv import PvRestore, pfn_limit
from saverestore.interrupts import shield
from saverestore.operations.image import OpenedImage
from saverestore.stream.layout import DomainType
from saverestore.stream.reader import LibxcReader
from saverestore.toolstack.config import GuestConfig
from saverestore.toolstack.ports import FreshDomain, Maker
from saverestore.transport.base import ByteSource


def restore(
    handles: Handles,
    maker: Maker,
    image: OpenedImage,
    guest_config: GuestConfig,
    progress: Progress,
    report: RestoreReport,
    *,
    paused: bool,
    force: bool,
    require_digest: bool,
) -> int:
    """Create a domain from an image that stands at its libxc stream: its domid. On any error there is none."""
    # The image first: what is wrong with it can be told before anything is done.
    reader = LibxcReader(image.source, before=image.before, require_digest=require_digest)
    _check_kind(guest_config, reader)
    maker.check_host()
    progress.phase(f"creating {guest_config.name}")
    with _Making(handles, maker, guest_config) as making:
        started = time.monotonic()
        fresh = making.create()
        report.create_s = time.monotonic() - started
        pages = _fill(
            handles,
            fresh,
            guest_config,
            reader,
            image.source,
            progress,
            report,
            force=force,
        )
        maker.connect(fresh, guest_config, pages)
        image.expect_end(reader.following)
        filled_at = time.monotonic()
        with shield():
            if not paused:
                maker.unpause(fresh.domid)
            making.keep()
            interrupts.too_late()
        report.start_s = time.monotonic() - filled_at
        report.total_s = time.monotonic() - started
    return fresh.domid


class _Making:
    """A domain being made: destroyed at the end of the block unless `keep` was called."""

    def __init__(self, handles: Handles, maker: Maker, guest_config: GuestConfig) -> None:
        self._handles = handles
        self._maker = maker
        self._config = guest_config
        self._kept = False
        self._domid: int | None = None

    def create(self) -> FreshDomain:
        """Create it."""
        with shield():  # it must not come into being without this object knowing of it
            fresh = self._maker.create(self._config)
            self._domid = fresh.domid
        return fresh

    def keep(self) -> None:
        """The domain is whole: leave it."""
        self._kept = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._kept or self._domid is None:
            return
        with shield():
            self._handles.memory.unmap_lingering()  # or some of the domain would outlive its end
            self._maker.destroy(self._domid, self._config.uuid)
        if error is not None:
            error.add_note("no domain was left behind")


def check_architecture(domain_type: DomainType) -> None:
    """ImageError when the image's domain ran on another architecture than this host's."""
    if (domain_type is DomainType.ARM64) != is_arm64_host():
        names = ("arm64", "x86") if domain_type is DomainType.ARM64 else ("x86", "arm64")
        raise ImageError(
            f"the image holds an {names[0]} domain, and this is an {names[1]} host; nothing was done",
            name=ErrorName.HOST_INCOMPATIBLE,
        )


def _check_kind(guest_config: GuestConfig, reader: LibxcReader) -> None:
    """The configuration and the stream must speak of the same kind of domain, one that we can restore."""
    if guest_config.kind == "hvm":
        raise DomainError(
            f"{guest_config.name} is an HVM domain with a device model, which the bare toolstack cannot restore; "
            "nothing was done",
            name=ErrorName.TOOLSTACK_UNSUITABLE,
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
    info = handles.xen.domain(fresh.domid)
    guest: RestoreGuest
    if reader.domain.type == DomainType.ARM64:
        from saverestore.guest.arm64.layout import last_gfn
        from saverestore.guest.arm64.restore import Arm64Restore

        guest = Arm64Restore(
            handles, info, gic_version(guest_config.gic_version), check_cpu=not force, is_built=fresh.is_built
        )
        reader.max_pfn = last_gfn(guest_config.max_kib // 4)
    elif reader.domain.type == DomainType.X86_PV:
        guest = PvRestore(handles, info, pfn_limit=pfn_limit(guest_config.max_kib // 4), check_cpu=not force)
    else:
        guest = HvmRestore(handles, info, check_cpu=not force)
        reader.max_pfn = last_pfn(guest_config.max_kib // 4)
    try:
        pages, _ = engine.restore(reader, source, guest, fresh.channels, progress, report)
    finally:
        guest.close()
    return pages
