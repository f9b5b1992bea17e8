"""Filling a fresh domain from a libxc stream."""

from __future__ import annotations

import time
from collections.abc import Callable

from saverestore.engine.filling import PageFiller
from saverestore.engine.progress import Progress, RestoreReport, Silence, peak_memory_bytes
from saverestore.errors import ErrorName, ImageError
from saverestore.guest.ports import Channels, RestoredPages, RestoreGuest
from saverestore.stream.layout import RecordType
from saverestore.stream.reader import LibxcReader, PageData
from saverestore.stream.records import Disks, Provenance, UnknownOptional
from saverestore.transport.base import ByteSource
from saverestore.transport.cores import usable_cores

# Ours to know about, nothing to apply: digests say something of the image, not of the domain.
NOT_FOR_THE_DOMAIN = frozenset({RecordType.FOLLOWING, RecordType.IMAGE_DIGEST, RecordType.STATIC_DATA_END})


def restore(
    reader: LibxcReader,
    source: ByteSource,
    guest: RestoreGuest,
    channels: Channels,
    progress: Progress | None = None,
    report: RestoreReport | None = None,
    *,
    workers: int | None = None,
    take_disks: Callable[[Disks], None] = lambda _: None,
) -> tuple[RestoredPages, RestoreReport]:
    """Read a stream, whose headers `reader` has, to its END, into `guest`: where the domain has its rings.

    When it returns, the domain is complete and paused, the image's digest (if it has one) holds, and `source` stands
    right behind END. When it raises, the domain is of no use and is the caller's to destroy.
    What was done goes into `report` while it is done, so it is known of a restore that fails, too.
    `take_disks` is called with what the image says of the domain's disks, and may refuse them.
    `workers`: with 1 all is done on the caller's thread, with more it reads while another one fills; None: as many as
    there are cores.
    """
    progress = progress or Silence()
    report = RestoreReport() if report is None else report
    started, begun_at = time.monotonic(), source.offset
    try:
        try:
            with PageFiller(reader, guest, workers=workers or usable_cores()) as filler:
                _read_all(reader, source, guest, filler, progress, report, take_disks)
        finally:
            report.memory_s = time.monotonic() - started
        report.digest = reader.checked_digest
        progress.phase("completing the domain")
        completing_at = time.monotonic()
        pages = guest.complete(channels)
        report.complete_s = time.monotonic() - completing_at
        return pages, report
    finally:
        report.total_s = time.monotonic() - started
        report.stream_bytes = source.offset - begun_at
        report.peak_memory_bytes = peak_memory_bytes()


def _read_all(
    reader: LibxcReader,
    source: ByteSource,
    guest: RestoreGuest,
    filler: PageFiller,
    progress: Progress,
    report: RestoreReport,
    take_disks: Callable[[Disks], None],
) -> None:
    """Every record to END: pages into the domain, the others taken by it, each when it has all pages before it."""
    static_data_done = False
    while not reader.ended:
        record = reader.next()
        report.records += 1
        if not isinstance(record, PageData):
            filler.drain()
        if reader.static_data_ended and not static_data_done:
            # In version 3 a record says so, in version 2 the first one that is not static data.
            guest.static_data_done()
            static_data_done = True
        if isinstance(record, PageData):
            if reader.verifying:
                reader.skip_pages()
            else:
                filler.put(record)
            report.pages += record.nr_data
            progress.pages(record.nr_data, source.offset)
        elif isinstance(record, Provenance):
            report.saved_at = record.time
        elif isinstance(record, Disks):
            take_disks(record)
        elif isinstance(record, UnknownOptional) or record.type in NOT_FOR_THE_DOMAIN:
            continue
        elif record.type in (RecordType.CHECKPOINT, RecordType.CHECKPOINT_DIRTY_PFN_LIST):
            raise ImageError(
                "the image is a stream of checkpoints (Remus), which cannot be restored yet",
                name=ErrorName.CHECKPOINTS_UNSUPPORTED,
            )
        elif record.type not in (RecordType.END, RecordType.VERIFY):
            guest.take(record)
