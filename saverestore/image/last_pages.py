"""The last version of each page that an image has told so far: what deltas (XOR) that come later are against.

A domain that is restored holds these in its memory. Here they are in a file without a name, which is gone with this
process, whatever ends it; in memory is only where they are in it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from saverestore.errors import TransportError, name_of_errno
from saverestore.image.pagemap import PageMap
from saverestore.image.pages import Pages, read_pages
from saverestore.kernels.zero_pages import zero_pages
from saverestore.stream.layout import PAGE_SIZE, U64Array
from saverestore.transport.fd import FdSink, FdSource
from saverestore.transport.random_access import PlainFile

NOT_IN_FILE = np.uint64(1)
"""Place of a page that is all zero, or that was given back: a fresh domain has zeroes there. Others are offsets."""


class LastPages:
    """Pages by pfn. 8 bytes of memory for each pfn; on the disk each page, as often as it was told, but zero ones.

    A context manager: the file is gone when the block has ended.
    """

    def __init__(self, folder: Path) -> None:
        """TransportError when no file can be made in `folder`."""
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed by __exit__
        except OSError as error:
            raise TransportError(
                f"{folder}: a temporary file, for pages that later ones are coded by, cannot be made there: "
                f"{error.strerror}",
                name=name_of_errno(error.errno),
            ) from error
        name = f"a temporary file in {folder}, for pages that later ones are coded by"
        fd = self._file.fileno()
        self._sink = FdSink(fd, name, close_fd=False)
        self._stored = PlainFile(FdSource(fd, name, close_fd=False))
        os.lseek(fd, PAGE_SIZE, os.SEEK_SET)  # so that no page has the offset 0
        self._places = PageMap()

    def put(self, pfns: U64Array, pages: Pages) -> None:
        """These are now the last versions: `pages`, shape (n, 4096), of `pfns`, none of them twice."""
        stored = ~zero_pages(pages.view(np.uint64))
        places = np.full(len(pfns), NOT_IN_FILE)
        nr_stored = int(np.count_nonzero(stored))
        first = PAGE_SIZE + self._sink.offset
        places[stored] = np.arange(nr_stored, dtype=np.uint64) * np.uint64(PAGE_SIZE) + np.uint64(first)
        if nr_stored:
            data = pages if nr_stored == len(pages) else pages[stored]
            self._sink.write(data.reshape(-1).data)
        self._places.put(pfns, places)

    def forget(self, pfns: U64Array) -> None:
        """These have no memory any more."""
        self._places.put(pfns, np.full(len(pfns), NOT_IN_FILE))

    def get_into(self, pages: Pages, pfns: U64Array) -> None:
        """Fill `pages`, shape (n, 4096), with the last versions of `pfns`; zeroes for those that never came."""
        places = self._places.get(pfns)
        stored = places > NOT_IN_FILE
        pages[~stored] = 0
        if stored.any():
            pages[stored] = read_pages(self._stored, places[stored])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
