"""Opening an image that a person named, whatever it is compressed with, for reading from front to back."""

from __future__ import annotations

import os
from collections.abc import Iterator

from saverestore.transport.base import ImageSource
from saverestore.transport.compressed_source import DecompressedSource, Job
from saverestore.transport.compression import FIRST_BYTES, Compression, compression_of
from saverestore.transport.fd import FdSource


def open_image(image: str, *, workers: int | None = None) -> ImageSource:
    """Open an image: a path, or "-" for standard input.

    Errors are those of `FdSource.open`; ImageError for a seek table that lies, and for a compression that cannot be
    read here, with the package that is missing.
    """
    raw = FdSource.open(image)
    try:
        return decompressed(raw, workers=workers)
    except BaseException:
        raw.close()
        raise


def decompressed(raw: FdSource, *, workers: int | None = None) -> ImageSource:
    """`raw` itself where it is not compressed, else what it decompresses to; `raw` is then closed with that."""
    compression = compression_of(raw.peek(FIRST_BYTES))
    if compression is Compression.NONE:
        return raw
    total_bytes = None
    jobs: Iterator[Job]
    if compression is Compression.ZSTD:
        from saverestore.transport.zstd_source import ZstdJobs

        total_bytes = _content_bytes(raw)
        jobs = iter(ZstdJobs(raw))
    else:
        from saverestore.transport.gzip_lz4 import gzip_jobs, lz4_jobs

        jobs = gzip_jobs(raw) if compression is Compression.GZIP else lz4_jobs(raw)
    return DecompressedSource(raw, jobs, total_bytes=total_bytes, workers=workers)


def _content_bytes(raw: FdSource) -> int | None:
    """The image's length, where a seek table tells it before the rest is read."""
    if raw.total_bytes is None or os.lseek(raw.fileno(), 0, os.SEEK_CUR) != 0:
        return None
    from saverestore.transport.random_access import PlainFile, read_seek_table

    file = PlainFile(raw)
    table = read_seek_table(file.pread, file.file_size, file.name)
    return None if table is None else table.content_bytes
