"""A domain's memory as one file: the page of pfn n is at offset n * 4096, what is not there is a hole."""

from __future__ import annotations

import numpy as np

from saverestore.errors import ImageError
from saverestore.image.index import ImageIndex, Progress
from saverestore.image.pages import batches_of, pfns_with_data
from saverestore.image.sparse import SparseFile
from saverestore.stream.layout import PAGE_SHIFT, PAGE_SIZE
from saverestore.transport.random_access import RandomAccess

OFFSET_MAX = (1 << 63) - 1


def dump(
    access: RandomAccess, index: ImageIndex, fd: int, name: str, on_progress: Progress | None = None
) -> tuple[int, int]:
    """Write all memory into `fd`, a new file. Returns the number of pages and the length of the file in bytes.

    A page of zeroes becomes a hole as well: it reads the same.
    """
    pfns = pfns_with_data(index.pages)
    size = (int(pfns[-1]) + 1) * PAGE_SIZE if len(pfns) else 0
    if size > OFFSET_MAX:
        raise ImageError(f"{access.name}: pfn {int(pfns[-1]):#x} lies beyond what one file can hold")
    file = SparseFile(fd, name, size)
    for batch in batches_of(access, index.pages, on_progress):
        file.write_pages(batch.pfns << np.uint64(PAGE_SHIFT), batch.pages)
    return len(pfns), size
