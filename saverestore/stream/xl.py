"""xl's header at the very front of an image that `xl save` wrote: the domain's configuration.

     0                                32      36          40         44              48
    | "Xen saved domain, xl format…" | mark  | mandatory | optional | optional length |
    +--------------------------------+-------+-----------+----------+-----------------+
    | config length n | libxl's JSON for the domain, with its final NUL, n bytes      |

Source: tools/xl/xl.h, struct save_file_header. The fields are in the writer's byte order, which the
mark tells; all hosts of Xen's toolstack are little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import Self

from saverestore.errors import ErrorName, ImageError
from saverestore.stream.errors import BadHeader, beginning
from saverestore.stream.layout import MIB
from saverestore.transport.base import ByteSink, ByteSource

MAGIC = b"Xen saved domain, xl format\n \0 \r"
HEADER = struct.Struct("<32s4I")
CONFIG_LENGTH = struct.Struct("<I")
BYTE_ORDER_MARK = 0x01020304
OTHER_BYTE_ORDER_MARK = 0x04030201

CONFIG_MAX = 16 * MIB
"""Longest configuration that is read or written; xl's are some KiB. xl itself has no bound."""


class MandatoryFlag(IntFlag):
    """Flags of which a reader must know every one."""

    JSON = 1
    STREAM_V2 = 2


@dataclass(frozen=True)
class XlHeader:
    """The header as read. `config`: libxl's JSON without its NUL, or None where the image has none."""

    config: bytes | None

    @classmethod
    def read(cls, source: ByteSource, prefix: bytes = b"") -> Self:
        """Read the header; the source then stands at the libxl stream.

        `prefix`: first bytes of the header that have been taken from `source` before. Raises
        `BadHeader` for what xl would not take either, and for a configuration above `CONFIG_MAX`.
        """
        offset = source.offset - len(prefix)
        head = prefix + source.read(HEADER.size - len(prefix), "xl's header")
        magic, mark, mandatory, _optional, data_bytes = HEADER.unpack(head)
        if magic != MAGIC:
            raise BadHeader(
                f"{source.name}: not an image of xl: {beginning(head[:12])}",
                offset=offset,
                name=ErrorName.NOT_AN_IMAGE,
            )
        if mark == OTHER_BYTE_ORDER_MARK:
            raise BadHeader(
                f"{source.name}: xl's header is big-endian, from a host that cannot be restored here",
                offset=offset,
                name=ErrorName.IMAGE_UNSUPPORTED,
            )
        if mark != BYTE_ORDER_MARK:
            raise BadHeader(
                f"{source.name}: xl's byte order mark is {mark:#010x}, not {BYTE_ORDER_MARK:#010x}",
                offset=offset,
            )
        _check_flags(mandatory, source.name, offset)
        if data_bytes > CONFIG_LENGTH.size + CONFIG_MAX:
            raise BadHeader(
                f"{source.name}: xl's header declares {data_bytes} bytes of data, more than {CONFIG_MAX}",
                offset=offset,
            )
        if data_bytes == 0:
            return cls(None)
        return cls(_read_config(source, mandatory, data_bytes))

    @staticmethod
    def write(sink: ByteSink, config_json: bytes) -> None:
        """Write a header with this configuration, with or without its final NUL."""
        config = config_json.rstrip(b"\0") + b"\0"
        if len(config) > CONFIG_MAX or b"\0" in config[:-1]:
            raise ImageError(f"a configuration of {len(config)} bytes cannot go into xl's header")
        flags = MandatoryFlag.JSON | MandatoryFlag.STREAM_V2
        head = HEADER.pack(MAGIC, BYTE_ORDER_MARK, flags, 0, CONFIG_LENGTH.size + len(config))
        sink.writev([head, CONFIG_LENGTH.pack(len(config)), config])


def _check_flags(mandatory: int, name: str, offset: int) -> None:
    unknown = mandatory & ~int(MandatoryFlag.JSON | MandatoryFlag.STREAM_V2)
    if unknown:
        raise BadHeader(
            f"{name}: unknown mandatory flags {unknown:#x} in xl's header: a newer xl wrote it",
            offset=offset,
            name=ErrorName.IMAGE_UNSUPPORTED,
        )
    if not mandatory & MandatoryFlag.STREAM_V2:
        raise BadHeader(
            f"{name}: a legacy image, of Xen 4.5 or before; restore and save it again with Xen 4.6 to 4.17",
            offset=offset,
            name=ErrorName.IMAGE_UNSUPPORTED,
        )


def _read_config(source: ByteSource, mandatory: int, data_bytes: int) -> bytes | None:
    """Read the optional data: the configuration, and whatever a newer xl put behind it."""
    offset = source.offset
    if data_bytes < CONFIG_LENGTH.size:
        raise BadHeader(f"{source.name}: {data_bytes} bytes of data in xl's header, too few", offset=offset)
    (length,) = CONFIG_LENGTH.unpack(source.read(CONFIG_LENGTH.size, "xl's header"))
    rest = data_bytes - CONFIG_LENGTH.size - length
    if rest < 0:
        raise BadHeader(
            f"{source.name}: a configuration of {length} bytes in {data_bytes} bytes of data of xl's header",
            offset=offset,
        )
    config = source.read(length, "the domain's configuration")
    source.skip(rest, "xl's header")
    if length == 0:
        return None
    if not mandatory & MandatoryFlag.JSON:
        raise BadHeader(
            f"{source.name}: the domain's configuration is not JSON: xl before 4.5 wrote it",
            offset=offset,
            name=ErrorName.IMAGE_UNSUPPORTED,
        )
    if config.find(b"\0") != length - 1:
        raise BadHeader(
            f"{source.name}: the domain's configuration does not end with its one NUL", offset=offset
        )
    return config[:-1]
