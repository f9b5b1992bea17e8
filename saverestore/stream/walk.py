"""A whole image as one sequence of events, whichever layer it begins with.

    xl header ─► libxl header ─► libxl records … LIBXC_CONTEXT ─► libxc headers ─► libxc records … END ─► … END

Layers come in the order of the bytes. In a stream with checkpoints each CHECKPOINT hands over to libxl's records,
and CHECKPOINT_END hands back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn, TypeAlias

from saverestore.errors import Advice, ErrorName, Remedy
from saverestore.stream.errors import BadHeader, OutOfOrder, beginning
from saverestore.stream.header_digest import HeaderDigest, HeaderDigestSource
from saverestore.stream.libxl import IDENT, LibxlReader, LibxlRecord, LibxlRecordType
from saverestore.stream.reader import AnyRecord, LibxcReader
from saverestore.stream.records import Checkpoint
from saverestore.stream.trailer import TrailerSource
from saverestore.stream.xl import MAGIC, XlHeader
from saverestore.transport.base import ByteSource

Event: TypeAlias = "XlHeader | LibxlReader | LibxlRecord | LibxcReader | AnyRecord"
"""A header, a reader that has just read its headers, or a record."""

PREFIX_BYTES = 8
"""So many first bytes tell the three layers apart; no header is shorter."""

LIBXC_PREFIX = b"\xff" * PREFIX_BYTES
LIBXL_PREFIX = IDENT.to_bytes(PREFIX_BYTES, "big")

OTHER_FORMATS = {
    b"LinuxGue": "an image of xend (Xen 4.4 or before), which is unsupported",
    b"\x7fELF": "an ELF file, not an image of a Xen domain",
}

COMPRESSED = {b"\x28\xb5\x2f\xfd": "zstd", b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz"}

T = LibxlRecordType


def walk(source: ByteSource, *, check_digest: bool = True) -> Iterator[Event]:
    """Read `source`, which stands at the front of an image, to the end of that image.

    `check_digest`: as in `LibxcReader`. Without it pages can be passed over unread. What comes behind the libxc
    stream is held in any case against what that tells of it.

    Pages of a `PageData` event are read, if they are wanted, from the `LibxcReader` that came before it and before
    the next event is asked for; else they are passed over. Raises what the readers raise.
    """
    outside = HeaderDigestSource(source)  # what is outside libxc's stream is read through it
    prefix = outside.read(PREFIX_BYTES, "the first header")
    if prefix == MAGIC[:PREFIX_BYTES]:
        yield XlHeader.read(outside, prefix)
        yield from _walk_libxl(source, outside, b"", check_digest)
    elif prefix == LIBXL_PREFIX:
        yield from _walk_libxl(source, outside, prefix, check_digest)
    elif prefix == LIBXC_PREFIX:
        reader = LibxcReader(source, prefix, check_digest=check_digest)
        yield from _walk_libxc(reader, None)
    else:
        _refuse_prefix(source.name, prefix)


def looks_like_an_image(first: bytes) -> bool:
    """Whether a file that starts with these bytes, `PREFIX_BYTES` or more, is to be read as an image."""
    return first[:PREFIX_BYTES] in (MAGIC[:PREFIX_BYTES], LIBXL_PREFIX, LIBXC_PREFIX)


def _refuse_prefix(name: str, prefix: bytes) -> NoReturn:
    for magic, program in COMPRESSED.items():
        if prefix.startswith(magic):
            raise BadHeader(
                f"{name} is compressed with {program}, which cannot be read here",
                offset=0,
                name=ErrorName.NOT_AN_IMAGE,
                remedies=[Advice(Remedy.DECOMPRESS, program)],
            )
    for magic, what in OTHER_FORMATS.items():
        if prefix.startswith(magic):
            raise BadHeader(f"{name} is {what}", offset=0, name=ErrorName.NOT_AN_IMAGE)
    raise BadHeader(
        f"{name} is not an image of a Xen domain: {beginning(prefix)}",
        offset=0,
        name=ErrorName.NOT_AN_IMAGE,
    )


def _walk_libxl(
    source: ByteSource, outside: HeaderDigestSource, prefix: bytes, check_digest: bool
) -> Iterator[Event]:
    reader = LibxlReader(outside, prefix)
    yield reader
    yield reader.next()  # LIBXC_CONTEXT: no other may come first
    yield from walk_from_libxc(source, reader, outside.digest(), check_digest=check_digest)


def walk_from_libxc(
    source: ByteSource, outer: LibxlReader, header_digest: HeaderDigest | None, *, check_digest: bool = True
) -> Iterator[Event]:
    """As `walk`, from where `source` stands at the libxc stream and `outer` has read LIBXC_CONTEXT."""
    outer.continue_in(source)
    inner = LibxcReader(source, header_digest=header_digest, check_digest=check_digest)
    yield from _walk_libxc(inner, outer)
    trailer = TrailerSource(source, inner.following)
    outer.continue_in(trailer)
    while not outer.ended:
        record = outer.next()
        if record.type in (T.CHECKPOINT_END, T.CHECKPOINT_STATE):
            _refuse(record, "outside a checkpoint")
        if record.type is T.END:
            trailer.check_end()
        yield record


def _walk_libxc(reader: LibxcReader, outer: LibxlReader | None) -> Iterator[Event]:
    yield reader
    while not reader.ended:
        record = reader.next()
        yield record
        if isinstance(record, Checkpoint) and outer is not None:
            yield from _walk_checkpoint(outer)


def _walk_checkpoint(reader: LibxlReader) -> Iterator[Event]:
    """Libxl's part of a checkpoint, between CHECKPOINT and the next record of libxc."""
    type = None
    while type is not T.CHECKPOINT_END:
        record = reader.next()
        type = record.type
        if type is T.END:
            _refuse(record, "inside a checkpoint")
        yield record


def _refuse(record: LibxlRecord, where: str) -> NoReturn:
    raise OutOfOrder(f"libxl {record.type.name} record {where}", offset=record.offset, type=record.type)
