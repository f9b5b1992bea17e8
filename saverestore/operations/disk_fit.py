"""Whether the disks of an image's domain are what they were when it was saved."""

from __future__ import annotations

from saverestore.operations.image import is_file, opened
from saverestore.stream.reader import LibxcReader, PageData
from saverestore.stream.records import Disks
from saverestore.toolstack import disks


def check(image: str, *, force: bool) -> None:
    """See `disks.check`, of an image that can be looked through at once: a file that is not compressed.

    Of any other, it is found when the record comes, with the domain filled and about to be given up.
    """
    if not is_file(image):
        return
    with opened(image) as found:
        if found.source.regular_file is None:  # compressed
            return
        reader = LibxcReader(found.source, check_digest=False)
        while not reader.ended:
            record = reader.next()
            if isinstance(record, PageData):
                reader.skip_pages()
            elif isinstance(record, Disks):
                disks.check(record.disks, found.config.uuid, force=force)
