"""Restoring where this process fills the domain, which the bare toolstack has made; on ARM also libxl."""

from __future__ import annotations

from saverestore.engine import restore as engine
from saverestore.engine.progress import Progress, RestoreReport
from saverestore.errors import DomainError, ErrorName
from saverestore.guest.kinds import Architecture, Kind
from saverestore.interrupts import shield
from saverestore.operations.host import Host
from saverestore.operations.image import OpenedImage
from saverestore.operations.requests import RestoreRequest
from saverestore.operations.restoring import Restoring
from saverestore.stream.reader import LibxcReader
from saverestore.toolstack import disks
from saverestore.toolstack.config import GuestConfig
from saverestore.toolstack.ports import Maker


class RestoringHere(Restoring):
    """See Restoring."""

    def __init__(self, host: Host, maker: Maker, image: OpenedImage, request: RestoreRequest) -> None:
        super().__init__(host, image, request)
        self._maker = maker

    def fill(self, progress: Progress, report: RestoreReport) -> int:
        """See Restoring."""
        self._report = report
        image, config = self._image, self._image.config
        # The image first: what is wrong with it can be found before anything is done.
        reader = LibxcReader(
            image.source, header_digest=image.header_digest, require_digest=self._request.require_digest
        )
        kind = _kind_of(self._host.architecture, config, reader)
        self._maker.check_host()
        progress.phase(f"creating {config.name}")
        self._began_at = self._host.clock()
        with shield():  # it must not come into being without this object knowing of it
            fresh = self._maker.create(config)
            self._domid = fresh.domid
        report.create_s = self._host.clock() - self._began_at
        guest = self._host.restore_guest(kind, fresh, config, reader, force=self._request.force)
        try:
            with self._host.memory_claimed(fresh, config, self._request.pages):
                pages, _ = engine.restore(
                    reader,
                    image.source,
                    guest,
                    fresh.channels,
                    progress,
                    report,
                    take_disks=lambda record: disks.check(
                        disks.used_by(config, record.disks), image.saved_uuid, force=self._request.force
                    ),
                )
        finally:
            guest.close()
        self._maker.connect(fresh, config, pages)
        image.expect_end(reader.following)
        return fresh.domid

    def _unpause(self, domid: int) -> None:
        """See Restoring."""
        self._maker.unpause(domid)

    def _destroy(self, domid: int) -> None:
        """See Restoring."""
        self._host.handles.memory.unmap_lingering()  # or some of the domain would outlive its end
        self._maker.destroy(domid, self._image.config.uuid)


def _kind_of(kinds: Architecture, guest_config: GuestConfig, reader: LibxcReader) -> Kind:
    """The configuration and the stream must speak of the same kind of domain, one that we can restore."""
    kind = kinds.of_image(reader.domain.type, guest_config.kind)
    if kind.has_device_model:
        raise DomainError(
            f"{guest_config.name} is an HVM domain with a device model, which the bare toolstack cannot restore; "
            "no changes were made",
            name=ErrorName.TOOLSTACK_UNSUITABLE,
        )
    return kind
