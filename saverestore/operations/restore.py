"""Restoring one image into one fresh domain."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from saverestore import interrupts
from saverestore.engine import restore as engine
from saverestore.engine.progress import Progress, RestoreReport
from saverestore.errors import DomainError, ImageError
from saverestore.guest.ports import RestoreGuest
from saverestore.guest.x86.common import Handles, open_handles
from saverestore.guest.x86.hvm import HvmRestore, last_pfn
from saverestore.guest.x86.pv import PvRestore, pfn_limit
from saverestore.interrupts import shield
from saverestore.stream.digest import BeforeSource
from saverestore.stream.layout import DomainType
from saverestore.stream.libxl import LibxlReader, LibxlRecordType
from saverestore.stream.reader import LibxcReader
from saverestore.stream.xl import XlHeader
from saverestore.toolstack import bare, config, domains
from saverestore.toolstack.bare import FreshDomain
from saverestore.toolstack.config import GuestConfig
from saverestore.transport.base import ByteSource
from saverestore.transport.opening import ImageSource, open_image

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RestoreRequest:
    """What `pyrestore` was asked for. `require_digest`: an image without a digest is refused."""

    image: str
    paused: bool = False
    name: str | None = None
    force: bool = False
    require_digest: bool = False


@dataclass(frozen=True)
class Restored:
    """The domain that came of it."""

    domid: int
    name: str
    report: RestoreReport


def restore_domain(request: RestoreRequest, progress: Progress) -> Restored:
    """Create a domain from an image; it runs, or is paused, when this returns. On any error there is none."""
    with _open_image(request.image) as source:
        # The image first: what is wrong with it can be told on any machine.
        outside = BeforeSource(source)
        guest_config = _read_config(outside, request)
        stream = LibxlReader(outside)
        _expect(stream, source, LibxlRecordType.LIBXC_CONTEXT)
        reader = LibxcReader(source, before=outside.before(), require_digest=request.require_digest)
        _check_kind(guest_config, reader)
        with open_handles() as handles:
            domains.check_free(handles, guest_config.name, guest_config.uuid)
            bare.check_host(handles)
            bare.check_memory(handles, guest_config)
            if guest_config.left_out:
                LOG.warning(
                    "%s: this version does not bring back: %s; 'xl restore' does",
                    guest_config.name,
                    ", ".join(guest_config.left_out),
                )
            progress.phase(f"creating {guest_config.name}")
            with _FreshDomain(handles, guest_config) as fresh:
                report = _fill(handles, fresh.create(), guest_config, reader, source, progress)
                _expect(stream, source, LibxlRecordType.END)
                _check_end(source)
                if report.digest is None:
                    LOG.info("%s has no digest: a changed byte in its pages would go unnoticed", source.name)
                with shield():
                    if not request.paused:
                        handles.xen.unpause(fresh.domid)
                    fresh.keep()
                    interrupts.too_late()
            return Restored(fresh.domid, guest_config.name, report)


class _FreshDomain:
    """A domain being made: destroyed at the end of the block unless `keep` was called."""

    def __init__(self, handles: Handles, guest_config: GuestConfig) -> None:
        self._handles = handles
        self._config = guest_config
        self._kept = False
        self.domid = -1

    def create(self) -> FreshDomain:
        """Create it."""
        with shield():  # it must not come into being without this object knowing of it
            fresh = bare.create(self._handles, self._config)
            self.domid = fresh.domid
        return fresh

    def keep(self) -> None:
        """The domain is whole: leave it."""
        self._kept = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._kept or self.domid < 0:
            return
        with shield():
            bare.destroy(self._handles, self.domid, self._config.uuid)
        if error is not None:
            error.add_note("no domain was left behind")


@contextmanager
def _open_image(image: str) -> Iterator[ImageSource]:
    with open_image(image) as source:
        try:
            yield source
        except ImageError as error:
            if source.name not in str(error):
                error.add_note(f"the image is {source.name}")
            raise


def _read_config(source: ByteSource, request: RestoreRequest) -> GuestConfig:
    header = XlHeader.read(source)
    if header.config is None:
        raise ImageError(f"{source.name} has no domain configuration: it cannot be restored without one")
    guest_config = config.parse(header.config)
    if guest_config.devices and not request.force:
        raise DomainError(
            f"{guest_config.name} has devices that this version cannot bring back: "
            f"{', '.join(guest_config.devices)}; nothing was done (--force restores it without them; "
            "'xl restore' brings them back)"
        )
    return guest_config if request.name is None else guest_config.replaced(name=request.name)


def _check_kind(guest_config: GuestConfig, reader: LibxcReader) -> None:
    """The configuration and the stream must speak of the same kind of domain, one that we can restore."""
    if guest_config.kind == "hvm":
        raise DomainError(
            f"{guest_config.name} is an HVM domain with a device model, which cannot be restored yet; "
            "use 'xl restore'"
        )
    wanted = DomainType.X86_PV if guest_config.kind == "pv" else DomainType.X86_HVM
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
) -> RestoreReport:
    info = handles.xen.domain(fresh.domid)
    guest: RestoreGuest
    if reader.domain.type == DomainType.X86_PV:
        guest = PvRestore(handles, info, pfn_limit=pfn_limit(guest_config.max_kib // 4))
    else:
        guest = HvmRestore(handles, info)
        reader.max_pfn = last_pfn(guest_config.max_kib // 4)
    try:
        pages, report = engine.restore(reader, source, guest, fresh.channels, progress)
    finally:
        guest.close()
    bare.introduce(handles, fresh, guest_config, pages)
    return report


def _expect(stream: LibxlReader, source: ByteSource, wanted: LibxlRecordType) -> None:
    record = stream.next()
    if record.type != wanted:
        raise ImageError(
            f"{source.name}: a libxl record {record.type.name} where {wanted.name} belongs",
            offset=record.offset,
        )


def _check_end(source: ImageSource) -> None:
    """Nothing follows the image; of a compressed one this also checks what ends the file."""
    offset = source.offset
    if not source.may_go_on and not source.at_end():
        raise ImageError(f"{source.name}: something follows the end of the image", offset=offset)
