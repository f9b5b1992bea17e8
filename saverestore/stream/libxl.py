"""The libxl stream: a thin layer around the libxc stream, with the state of the device emulator.

Header, big-endian, then records, little-endian, bodies padded with zeroes to 8 bytes:

     0     1     2     3     4     5     6     7
    +-----------------------------------------------+
    | "LibxlFmt"                                    |
    +-----------------------+-----------------------+
    | version 2             | options               |
    +-----------------------+-----------------------+
    | record type           | body length           |
    +-----------------------+-----------------------+
    | body…, for EMULATOR_*: emulator u32, index u32, data…

Order:

    LIBXC_CONTEXT  (the whole libxc stream, raw)  (EMULATOR_XENSTORE_DATA | EMULATOR_CONTEXT)…  END

In a stream with checkpoints, each CHECKPOINT record of the libxc stream hands over to this layer, which
hands back with CHECKPOINT_END:

    (EMULATOR_XENSTORE_DATA | EMULATOR_CONTEXT | CHECKPOINT_STATE)…  CHECKPOINT_END

Which of the two comes is for the consumer to check, who also runs the libxc reader: `survey` does.
Source: docs/specs/libxl-migration-stream.pandoc, revision 2. Its optional records (bit 31) no libxl
has ever skipped, so any unknown type is an error here too.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Self

from saverestore.errors import ErrorName
from saverestore.stream.errors import BadHeader, BadRecord, OutOfOrder, UnknownRecord, beginning
from saverestore.stream.layout import MIB, padding_of
from saverestore.transport.base import ByteSink, ByteSource

IDENT = 0x4C6962786C466D74
HEADER = struct.Struct(">QII")
VERSION = 2
RECORD_HEADER = struct.Struct("<II")
EMULATOR_HEADER = struct.Struct("<II")


class Option(IntFlag):
    """Bits of the header's options."""

    BIG_ENDIAN = 1
    LEGACY = 2


class LibxlRecordType(IntEnum):
    """Record types of the libxl stream."""

    END = 0
    LIBXC_CONTEXT = 1
    EMULATOR_XENSTORE_DATA = 2
    EMULATOR_CONTEXT = 3
    CHECKPOINT_END = 4
    CHECKPOINT_STATE = 5


class EmulatorId(IntEnum):
    """Whose state an EMULATOR record holds; UNKNOWN comes from converted legacy images only."""

    UNKNOWN = 0
    QEMU_TRADITIONAL = 1
    QEMU_UPSTREAM = 2


T = LibxlRecordType

BODY_MAX: dict[LibxlRecordType, int] = {
    T.END: 0,
    T.LIBXC_CONTEXT: 0,
    T.EMULATOR_XENSTORE_DATA: 1 * MIB,
    T.EMULATOR_CONTEXT: 64 * MIB,  # QEMU's device state without guest memory; libxl itself has no bound
    T.CHECKPOINT_END: 0,
    T.CHECKPOINT_STATE: 8,  # u32; one that was padded into the body is tolerated
}

CONTEXT_HEAD = HEADER.pack(IDENT, VERSION, 0) + RECORD_HEADER.pack(T.LIBXC_CONTEXT, 0)
"""Header and first record as every writer makes them: what stands directly before the libxc stream."""

EMULATOR_TYPES = (T.EMULATOR_XENSTORE_DATA, T.EMULATOR_CONTEXT)


@dataclass(frozen=True)
class EmulatorState:
    """Body of an EMULATOR record: `data` is xenstore's "key NUL value NUL …", or the emulator's own."""

    emulator: EmulatorId
    index: int
    data: bytes

    def pack(self) -> bytes:
        """Return the body."""
        return EMULATOR_HEADER.pack(self.emulator, self.index) + self.data

    @classmethod
    def unpack(cls, body: bytes, offset: int, type: LibxlRecordType) -> Self:
        """Read the body of the record of `type` that begins at `offset`."""
        if len(body) < EMULATOR_HEADER.size:
            raise BadRecord(f"libxl {type.name}: body of {len(body)} bytes", offset=offset, type=type)
        emulator, index = EMULATOR_HEADER.unpack_from(body)
        try:
            return cls(EmulatorId(emulator), index, body[EMULATOR_HEADER.size :])
        except ValueError:
            raise BadRecord(
                f"libxl {type.name}: unknown emulator {emulator}", offset=offset, type=type
            ) from None


@dataclass(frozen=True)
class LibxlRecord:
    """One record; `offset` is where it begins, `body` comes without padding."""

    type: LibxlRecordType
    offset: int
    body: bytes

    def emulator(self) -> EmulatorState:
        """Return the parts of an EMULATOR record's body."""
        return EmulatorState.unpack(self.body, self.offset, self.type)


class _Order:
    """LIBXC_CONTEXT first and once, END last."""

    def __init__(self) -> None:
        self._begun = False
        self.ended = False

    def advance(self, type: LibxlRecordType, offset: int) -> None:
        if self.ended:
            raise OutOfOrder(f"libxl {type.name} record after END", offset=offset, type=type)
        if not self._begun and type != T.LIBXC_CONTEXT:
            raise OutOfOrder(
                f"libxl {type.name} record at the start, where there could be LIBXC_CONTEXT",
                offset=offset,
                type=type,
            )
        if self._begun and type == T.LIBXC_CONTEXT:
            raise OutOfOrder("a second libxl LIBXC_CONTEXT record", offset=offset, type=type)
        self._begun = True
        self.ended = type == T.END


class LibxlReader:
    """Reads the libxl records of one stream from a source that stands at its header.

    After LIBXC_CONTEXT the source stands at the libxc stream: the consumer runs a `LibxcReader` on the
    same source until `End`, and comes back here. `legacy`: converted from an image of Xen 4.5 or before.
    """

    def __init__(self, source: ByteSource, prefix: bytes = b"") -> None:
        """Read the header; `prefix`: bytes of it that have been taken from `source` before."""
        self._source = source
        self._order = _Order()
        offset = source.offset - len(prefix)
        head = prefix + source.read(HEADER.size - len(prefix), "libxl's header")
        ident, version, options = HEADER.unpack(head)
        if ident != IDENT:
            raise BadHeader(
                f"{source.name}: not a libxl stream: {beginning(head[:8])}",
                offset=offset,
                name=ErrorName.NOT_AN_IMAGE,
            )
        if version != VERSION:
            raise BadHeader(
                f"{source.name}: libxl stream of version {version}; version {VERSION} can be read",
                offset=offset,
                name=ErrorName.IMAGE_UNSUPPORTED,
            )
        if options & Option.BIG_ENDIAN:
            raise BadHeader(
                f"{source.name}: big-endian libxl stream", offset=offset, name=ErrorName.IMAGE_UNSUPPORTED
            )
        if options & ~int(Option.LEGACY):
            raise BadHeader(
                f"{source.name}: unknown options {options:#x} in libxl's header",
                offset=offset,
                name=ErrorName.IMAGE_UNSUPPORTED,
            )
        self.version: int = version
        self.legacy = bool(options & Option.LEGACY)

    @property
    def ended(self) -> bool:
        """Whether END has been returned."""
        return self._order.ended

    def continue_in(self, source: ByteSource) -> None:
        """Read what comes next from another source, which stands where this one would."""
        self._source = source

    def next(self) -> LibxlRecord:
        """Read the next record. After END this is a mistake of the caller (`RuntimeError`)."""
        if self.ended:
            raise RuntimeError(f"{self._source.name}: the libxl stream has been read to its end")
        offset = self._source.offset
        number, length = RECORD_HEADER.unpack(self._source.read(RECORD_HEADER.size, "a libxl record header"))
        try:
            type = LibxlRecordType(number)
        except ValueError:
            raise UnknownRecord(
                f"unknown libxl record {number:#x}, {length} bytes: this image needs a newer version of this "
                "program, or is damaged",
                offset=offset,
                type=number,
            ) from None
        _check_length(type, length, offset)
        self._order.advance(type, offset)
        body = self._source.read(length, f"the libxl {type.name} record")
        padding = self._source.read(padding_of(length), f"the padding of the libxl {type.name} record")
        if any(padding):
            raise BadRecord(
                f"libxl {type.name} record: nonzero padding {padding.hex()}", offset=offset, type=type
            )
        record = LibxlRecord(type, offset, body)
        if type in EMULATOR_TYPES:
            record.emulator()
        return record


class LibxlWriter:
    """Writes the libxl records of one stream; the counterpart of `LibxlReader`."""

    def __init__(self, sink: ByteSink, *, legacy: bool = False) -> None:
        """Write the header. `legacy`: what follows was converted from an image of Xen 4.5 or before."""
        self._sink = sink
        self._order = _Order()
        sink.write(HEADER.pack(IDENT, VERSION, Option.LEGACY if legacy else 0))

    @property
    def ended(self) -> bool:
        """Whether END has been written."""
        return self._order.ended

    def continue_in(self, sink: ByteSink) -> None:
        """Write what comes next into another sink."""
        self._sink = sink

    def libxc_context(self) -> None:
        """Write LIBXC_CONTEXT: the libxc stream comes next, by a `LibxcWriter` on the same sink."""
        self.record(T.LIBXC_CONTEXT)

    def record(self, type: LibxlRecordType, body: bytes = b"") -> None:
        """Write a record. `BadRecord` or `OutOfOrder`, with nothing written, if it breaks the format."""
        offset = self._sink.offset
        type = LibxlRecordType(type)
        _check_length(type, len(body), offset)
        if type in EMULATOR_TYPES:
            EmulatorState.unpack(body, offset, type)
        self._order.advance(type, offset)
        self._sink.writev([RECORD_HEADER.pack(type, len(body)), body, bytes(padding_of(len(body)))])

    def end(self) -> None:
        """Write END: the image is complete."""
        self.record(T.END)


def _check_length(type: LibxlRecordType, length: int, offset: int) -> None:
    if length > BODY_MAX[type]:
        raise BadRecord(
            f"libxl {type.name} record of {length} bytes, longer than the {BODY_MAX[type]} bytes it may have",
            offset=offset,
            type=type,
        )
    if type == T.CHECKPOINT_STATE and length not in (4, 8):
        raise BadRecord(f"libxl {type.name}: body of {length} bytes, 4 wanted", offset=offset, type=type)
