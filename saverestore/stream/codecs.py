"""How the pages of a `draft-b` record can be coded, and the libraries that do it.

A compressor is made once for each thread and kept: making one costs more than using it. Those of zstd and
LZ4 are optional to a reader that never meets them, so they are imported when they are needed.
"""

from __future__ import annotations

import importlib
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from types import ModuleType
from typing import TYPE_CHECKING, Self

from saverestore.errors import ErrorName, ExitCode, SaveRestoreError, UsageError
from saverestore.stream.undecodable import Undecodable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Codec(IntEnum):
    """Bits 4 to 7 of a PAGE_DATA record's options."""

    NONE = 0
    XOR = 1
    DEFLATE = 2
    ZSTD = 3
    LZ4 = 4


PACKAGES = {
    Codec.ZSTD: ("zstandard", "zstandard", "python3-zstandard"),
    Codec.LZ4: ("lz4.frame", "lz4", "python3-lz4"),
}
"""Module, Python package and Debian package of the codecs that are not in the standard library."""

LEVELS = {Codec.DEFLATE: range(1, 10), Codec.ZSTD: range(1, 20), Codec.LZ4: range(17)}
DEFAULT_LEVELS = {Codec.DEFLATE: 1, Codec.ZSTD: 1, Codec.LZ4: 0}


class CodecUnavailable(SaveRestoreError):
    """The library of a codec is not installed on this host; nothing is wrong with the image."""

    exit_code = ExitCode.IMAGE
    name = ErrorName.PACKAGE_MISSING


@dataclass(frozen=True)
class Coding:
    """What a writer is to use: a codec, and the level of those that have levels (0 otherwise)."""

    codec: Codec = Codec.NONE
    level: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "zstd" or "zstd:3". UsageError for what does not exist, or what this host has no library for."""
        name, colon, level_text = text.partition(":")
        try:
            codec = Codec[name.upper()]
        except KeyError:
            names = ", ".join(codec.name.lower() for codec in Codec)
            raise UsageError(f"there is no codec '{name}'; there are {names}") from None
        level = DEFAULT_LEVELS.get(codec, 0)
        if colon:
            levels = LEVELS.get(codec)
            if levels is None:
                raise UsageError(f"{name} has no levels")
            if not level_text.isdecimal() or int(level_text) not in levels:
                raise UsageError(f"{name} has levels {levels[0]} to {levels[-1]}, not '{level_text}'")
            level = int(level_text)
        try:
            library_of(codec)
        except CodecUnavailable as error:
            raise UsageError(str(error), name=ErrorName.PACKAGE_MISSING) from error
        return cls(codec, level)

    @property
    def compresses(self) -> bool:
        """Whether pages get as small as a general compressor makes them."""
        return self.codec not in (Codec.NONE, Codec.XOR)

    def __str__(self) -> str:
        return f"{self.codec.name.lower()}:{self.level}" if self.codec in LEVELS else self.codec.name.lower()


def library_of(codec: Codec) -> ModuleType | None:
    """The module of a codec's library, None where it needs none; `CodecUnavailable` names what to install."""
    if codec not in PACKAGES:
        return None
    module, package, debian = PACKAGES[codec]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CodecUnavailable(
            f"{codec.name.lower()} needs the Python package {package} (Debian: {debian}), which is not installed"
        ) from error


_Compress = Callable[["ReadableBuffer"], bytes]
_kept = threading.local()


def compress(coding: Coding, pages: memoryview) -> bytes:
    """Compress pages by DEFLATE, zstd or LZ4, in one piece that tells how long it is."""
    made: dict[Coding, _Compress] = _kept.__dict__.setdefault("compressors", {})
    if coding not in made:
        made[coding] = _compressor(coding)
    return made[coding](pages)


def _compressor(coding: Coding) -> _Compress:
    library = library_of(coding.codec)
    if coding.codec is Codec.ZSTD and library is not None:
        # The length goes into the frame's header: a reader allocates by it once it has been checked.
        made: _Compress = library.ZstdCompressor(level=coding.level, write_content_size=True).compress
        return made
    if coding.codec is Codec.LZ4 and library is not None:
        module = library
        return lambda pages: module.compress(pages, compression_level=coding.level, store_size=True)
    if coding.codec is Codec.DEFLATE:
        return lambda pages: zlib.compress(pages, coding.level)
    raise ValueError(f"{coding.codec.name} is not a compressor")


def decompress(codec: Codec, coded: memoryview, length_bytes: int) -> bytes:
    """Exactly `length_bytes` of pages, and never more in memory than a little above that.

    `Undecodable` when the coded bytes are damaged, make more or less than that, or go on behind their end.
    """
    library = library_of(codec)
    if codec is Codec.ZSTD and library is not None:
        return _zstd(library, coded, length_bytes)
    if codec is Codec.LZ4 and library is not None:
        return _lz4(library, coded, length_bytes)
    if codec is Codec.DEFLATE:
        return _deflate(coded, length_bytes)
    raise ValueError(f"{codec.name} is not a compressor")


def _zstd(library: ModuleType, coded: memoryview, length_bytes: int) -> bytes:
    try:
        content_bytes = library.get_frame_parameters(coded).content_size
        if content_bytes != length_bytes:
            unknown = content_bytes == library.CONTENTSIZE_UNKNOWN
            raise Undecodable(
                f"the zstd frame declares no length, or declares {'none' if unknown else content_bytes} "
                f"where it should be {length_bytes}"
            )
        decompressor = _kept.__dict__.get("zstd") or library.ZstdDecompressor()
        _kept.zstd = decompressor
        data: bytes = decompressor.decompress(coded, max_output_size=length_bytes, allow_extra_data=False)
    except library.ZstdError as error:
        raise Undecodable(f"not to be decoded: {error}") from error
    return _checked(data, length_bytes)


def _lz4(library: ModuleType, coded: memoryview, length_bytes: int) -> bytes:
    decompressor = library.LZ4FrameDecompressor()
    try:
        data: bytes = decompressor.decompress(coded, max_length=length_bytes)
        if not decompressor.eof:  # what is left should be the end mark alone
            data += decompressor.decompress(b"", max_length=1)
    except RuntimeError as error:
        raise Undecodable(f"not to be decoded: {error}") from error
    return _checked(data, length_bytes, ended=decompressor.eof, unused=decompressor.unused_data or b"")


def _deflate(coded: memoryview, length_bytes: int) -> bytes:
    decompressor = zlib.decompressobj()
    try:
        data = decompressor.decompress(coded, length_bytes)
        if not decompressor.eof:  # what is left should be the check value alone
            data += decompressor.decompress(decompressor.unconsumed_tail, 1)
    except zlib.error as error:
        raise Undecodable(f"not to be decoded: {error}") from error
    return _checked(data, length_bytes, ended=decompressor.eof, unused=decompressor.unused_data)


def _checked(data: bytes, length_bytes: int, *, ended: bool = True, unused: bytes = b"") -> bytes:
    if len(data) > length_bytes or (len(data) == length_bytes and not ended):
        raise Undecodable(f"more than the {length_bytes} bytes it should be when decoded")
    if len(data) < length_bytes:
        raise Undecodable(f"{len(data)} bytes when decoded, not {length_bytes}")
    if unused:
        raise Undecodable(f"{len(unused)} bytes follow the end of the coded data")
    return data
