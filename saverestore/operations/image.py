"""An image opened for a restore: what stands before the libxc stream has been read, and is looked at here."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from saverestore.errors import ErrorName, ImageError
from saverestore.operations.requests import RestoreRequest
from saverestore.stream.header_digest import HeaderDigest, HeaderDigestSource
from saverestore.stream.libxl import LibxlReader, LibxlRecordType
from saverestore.stream.records import Following
from saverestore.stream.trailer import TrailerSource
from saverestore.stream.walk import walk_from_libxc
from saverestore.stream.xl import XlHeader
from saverestore.toolstack import config
from saverestore.toolstack.config import GuestConfig
from saverestore.transport.base import ByteSource, ImageSource
from saverestore.transport.fd import STDIN, FdSource
from saverestore.transport.image_sockets import address_of, descriptor, sender_at
from saverestore.transport.opening import decompressed, open_image


@dataclass(frozen=True)
class OpenedImage:
    """`source` stands at the libxc stream; `stream` continues behind that. `header_digest`: of what came before.

    `config`: the domain's as it is to be restored. `saved_uuid`: the UUID of the domain that was saved.
    `confirm`: to be called once its domain is here for good, so that whoever sent the image hears it.
    """

    source: ImageSource
    config: GuestConfig
    stream: LibxlReader
    header_digest: HeaderDigest
    saved_uuid: uuid.UUID
    confirm: Callable[[], None] = lambda: None

    def expect_end(self, expected: Following | None) -> None:
        """The libxc stream has been read: libxl's END comes, as `expected`, and nothing follows."""
        trailer = TrailerSource(self.source, expected)
        self.stream.continue_in(trailer)
        expect(self.stream, self.source, LibxlRecordType.END)
        trailer.check_end()
        self.check_end()

    def follow(self, source: ByteSource) -> None:
        """Read on to libxl's END from `source`, which stands where `self.source` would.

        Order and what comes behind the libxc stream are checked; its digest is for who takes the pages.
        """
        for _ in walk_from_libxc(source, self.stream, None, check_digest=False):
            pass

    def check_end(self) -> None:
        """Nothing follows the image; of a compressed one this also checks what ends the file."""
        offset = self.source.offset
        if not self.source.may_continue and not self.source.at_end():
            raise ImageError(f"{self.source.name}: something follows the end of the image", offset=offset)


@contextmanager
def opened(image: str, request: RestoreRequest | None = None) -> Iterator[OpenedImage]:
    """Open an image and read its headers. `request`: what is to be changed in its configuration.

    ImageErrors inside the block are raised with the image's name.
    """
    with open_image(image) as source, opened_in(source, request) as found:
        yield found


@contextmanager
def incoming(request: RestoreRequest) -> Iterator[OpenedImage]:
    """The image of a restore: as `opened`, and from who connects to a socket. That peer hears what came of it: see
    `OpenedImage.confirm`."""
    address = address_of(request.image, tls=request.tls)
    if address is None:
        with opened(request.image, request) as found:
            yield found
        return
    if address.kind == "fd":
        fd = descriptor(address, writing=False)
        given = FdSource(fd, f"descriptor {fd}", close_fd=False)
        with decompressed(given) as source, opened_in(source, request) as found:
            yield found
        return
    with sender_at(address, request.allowed) as sender, opened_in(sender.source, request) as found:
        yield replace(found, confirm=sender.confirm)


def is_file(image: str) -> bool:
    """Whether an image can be opened again, with random access."""
    return image != STDIN and address_of(image) is None and stat.S_ISREG(Path(image).stat().st_mode)


def path_of(image: str) -> str:
    """A path by which it can be found, also of a file that was opened before and given as a descriptor."""
    address = address_of(image)
    number = 0 if image == STDIN else address.port if address is not None and address.kind == "fd" else None
    if number is None:
        return image
    try:
        return f"/proc/self/fd/{number}" if stat.S_ISREG(os.fstat(number).st_mode) else image
    except OSError:  # reported when it is read
        return image


@contextmanager
def opened_in(source: ImageSource, request: RestoreRequest | None = None) -> Iterator[OpenedImage]:
    """The same, of a source that is open already and stays open."""
    try:
        outside = HeaderDigestSource(source)
        header = XlHeader.read(outside)
        if header.config is None:
            raise ImageError(
                f"{source.name} has no domain configuration: it cannot be restored without one",
                name=ErrorName.CONFIGURATION_MISSING,
            )
        saved = config.parse(header.config)
        stream = LibxlReader(outside)
        expect(stream, source, LibxlRecordType.LIBXC_CONTEXT)
        wanted = saved if request is None else _as_requested(saved, request)
        yield OpenedImage(source, wanted, stream, outside.digest(), saved.uuid)
    except ImageError as error:
        if source.name not in " ".join([str(error), *getattr(error, "__notes__", [])]):
            error.add_note(f"the image is {source.name}")
        raise


def _as_requested(saved: GuestConfig, request: RestoreRequest) -> GuestConfig:
    found = saved if request.config is None else request.config.over(saved)
    return found.replaced(name=request.name, domain_uuid=uuid.uuid4() if request.new_uuid else None)


def expect(stream: LibxlReader, source: ImageSource, wanted: LibxlRecordType) -> None:
    """The next record of libxl's is of this type."""
    record = stream.next()
    if record.type != wanted:
        raise ImageError(
            f"{source.name}: a libxl record {record.type.name} where {wanted.name} belongs",
            offset=record.offset,
        )
