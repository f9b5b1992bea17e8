"""The golden images of this folder, and sources that behave badly, for the tests of the stream."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from saverestore.stream import DomainType, LibxcWriter
from saverestore.stream.layout import entries_of
from saverestore.stream.records import HvmContext, StaticDataEnd
from saverestore.transport import FdSink, FdSource

VECTORS = Path(__file__).parent
NAMES = ("pv-v3", "hvm-v3", "hvm-v2-xl")


def golden(name: str) -> bytes:
    """Return the bytes of a golden image; its file says how they are written down."""
    data = bytearray()
    for line in (VECTORS / f"{name}.hex").read_text().splitlines():
        for token in line.partition("#")[0].split():
            byte, _, count = token.partition("*")
            data += bytes.fromhex(byte) * int(count or 1)
    return bytes(data)


def file_of(data: bytes) -> int:
    """Return a descriptor of an anonymous regular file with this content, standing at its front."""
    fd = os.memfd_create("image")
    with FdSink(fd, "image", close_fd=False) as sink:
        sink.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def source_of(data: bytes) -> FdSource:
    return FdSource(file_of(data), "image")


class StingySource(FdSource):
    """Gives at most `most` bytes at a time, and remembers the longest buffer it was asked to fill."""

    def __init__(self, data: bytes, most: int = 1 << 30) -> None:
        super().__init__(file_of(data), "image")
        self.most = most
        self.longest_request = 0

    def _readv(self, views: list[Any]) -> int:
        first = memoryview(views[0]).cast("B")
        self.longest_request = max(self.longest_request, *(memoryview(view).nbytes for view in views))
        return super()._readv([first[: self.most]])


class PipeLikeSource(StingySource):
    """Cannot seek, as a pipe."""

    def __init__(self, data: bytes, most: int = 1 << 30) -> None:
        super().__init__(data, most)
        self._is_file = False


class MemorySink:
    """Keeps what is written, and how many calls that took."""

    def __init__(self) -> None:
        self.name = "memory"
        self.data = bytearray()
        self.calls = 0

    @property
    def offset(self) -> int:
        return len(self.data)

    @property
    def leaves_holes(self) -> bool:
        return False

    @property
    def stored_bytes(self) -> int:
        return len(self.data)

    def finish(self) -> None:
        pass

    def write(self, data: Any) -> None:
        self.writev([data])

    def writev(self, buffers: Any) -> None:
        self.calls += 1
        for buffer in buffers:
            self.data += memoryview(buffer).cast("B")

    def close(self) -> None:
        pass


def small_hvm_image(nr_pages: int = 4, name: bytes = b"") -> bytes:
    """Return a libxc stream with pages of which every other one is zero."""
    sink = MemorySink()
    writer = LibxcWriter(sink, DomainType.X86_HVM, (4, 17))
    writer.record(StaticDataEnd())
    pages = np.zeros((nr_pages, 4096), dtype=np.uint8)
    pages[1::2] = 7
    writer.page_data(entries_of(np.arange(nr_pages), np.zeros(nr_pages)), [pages.data])
    writer.record(HvmContext(b"context" + name))
    writer.end()
    return bytes(sink.data)
