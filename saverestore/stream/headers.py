"""The two headers of a libxc stream: what the image is, and what domain it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from saverestore.errors import ErrorName
from saverestore.stream.errors import BadHeader, beginning
from saverestore.stream.layout import (
    DOMAIN_HEADER,
    DRAFT_B_VERSION,
    IMAGE_HEADER,
    IMAGE_ID,
    IMAGE_MARKER,
    IMAGE_OPTION_BIG_ENDIAN,
    IMAGE_VERSIONS,
    PAGE_SHIFT,
    ByteOrder,
    DomainType,
)
from saverestore.transport.base import ByteSource


@dataclass(frozen=True)
class ImageHeader:
    """First header: format version 2 or 3 (Xen's own), or 1 (`draft-b`), and the byte order of all that follows.

    Xen's own versions are little-endian: no host that runs Xen writes anything else.
    """

    version: int
    order: ByteOrder = ByteOrder.LITTLE

    def pack(self) -> bytes:
        """Return the 24-byte header."""
        options = IMAGE_OPTION_BIG_ENDIAN if self.order is ByteOrder.BIG else 0
        return IMAGE_HEADER.pack(IMAGE_MARKER, IMAGE_ID, self.version, options, 0, 0)

    @classmethod
    def read(cls, source: ByteSource, prefix: bytes = b"") -> Self:
        """Read the header, of which `prefix` has been taken from `source` already."""
        offset = source.offset - len(prefix)
        data = prefix + source.read(IMAGE_HEADER.size - len(prefix), "the image header")
        marker, magic, version, options, reserved, more_reserved = IMAGE_HEADER.unpack(data)
        if marker != IMAGE_MARKER or magic != IMAGE_ID:
            raise BadHeader(
                f"{source.name}: not a libxc image: {beginning(data[:12])}, not with eight bytes ff and XENF",
                offset=offset,
                name=ErrorName.NOT_AN_IMAGE,
            )
        if version not in IMAGE_VERSIONS:
            raise BadHeader(
                f"{source.name}: libxc image of version {version}: versions 1 (draft-b), 2 and 3 can be read; "
                "a higher one needs a newer version of this program",
                offset=offset,
                name=ErrorName.IMAGE_UNSUPPORTED,
            )
        order = ByteOrder.BIG if options & IMAGE_OPTION_BIG_ENDIAN else ByteOrder.LITTLE
        if order is ByteOrder.BIG and version != DRAFT_B_VERSION:
            raise BadHeader(
                f"{source.name}: big-endian image, which no host that runs Xen writes",
                offset=offset,
                name=ErrorName.IMAGE_UNSUPPORTED,
            )
        if options & ~IMAGE_OPTION_BIG_ENDIAN or reserved or more_reserved:
            raise BadHeader(
                f"{source.name}: reserved bits are set in the image header {data.hex()}", offset=offset
            )
        return cls(version, order)


@dataclass(frozen=True)
class DomainHeader:
    """Second header: the kind of guest, and the Xen that wrote the image.

    `xen_major` is 0 for an image converted from the format of Xen 4.5 and before; `xen_minor` is then
    the converter's version.
    """

    type: DomainType
    page_shift: int
    xen_major: int
    xen_minor: int

    def pack(self, order: ByteOrder = ByteOrder.LITTLE) -> bytes:
        """Return the 16-byte header."""
        return DOMAIN_HEADER.pack(self.type, self.page_shift, 0, self.xen_major, self.xen_minor, order=order)

    @classmethod
    def read(cls, source: ByteSource, order: ByteOrder = ByteOrder.LITTLE) -> Self:
        """Read the header."""
        offset = source.offset
        data = source.read(DOMAIN_HEADER.size, "the domain header")
        type, page_shift, reserved, xen_major, xen_minor = DOMAIN_HEADER.unpack(data, order)
        try:
            domain_type = DomainType(type)
        except ValueError:
            known = ", ".join(f"{kind.value} {kind.name}" for kind in DomainType)
            raise BadHeader(
                f"{source.name}: unknown domain type {type}; known are {known}",
                offset=offset,
                name=ErrorName.IMAGE_UNSUPPORTED,
            ) from None
        if page_shift != PAGE_SHIFT:
            raise BadHeader(
                f"{source.name}: page shift {page_shift}, where all domains have pages of {PAGE_SHIFT}",
                offset=offset,
            )
        if reserved:
            raise BadHeader(
                f"{source.name}: reserved bits are set in the domain header {data.hex()}", offset=offset
            )
        return cls(domain_type, page_shift, xen_major, xen_minor)
