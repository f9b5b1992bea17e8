"""Pages as text: pseudo-physical address, 16 bytes, and those of them that are letters."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from saverestore.image.pages import Batch, Pages
from saverestore.stream.layout import PAGE_SHIFT, PageType

ROW_BYTES = 16
PRINTABLE = bytes(code if 0x20 <= code < 0x7F else ord(".") for code in range(256))


def lines_of(batch: Batch) -> Iterator[str]:
    """A heading for each page, then its rows; a row that is the same as the one before is "*", once for many."""
    for pfn, type, there, page in zip(
        batch.pfns.tolist(), batch.types.tolist(), batch.there.tolist(), batch.pages, strict=True
    ):
        yield f"pfn {pfn:#x}  {PageType(type).name}" + ("" if there else "  not in the image")
        if there:
            yield from _rows(pfn << PAGE_SHIFT, page)


def _rows(address: int, page: Pages) -> Iterator[str]:
    rows = page.reshape(-1, ROW_BYTES)
    repeats = np.append(False, (rows[1:] == rows[:-1]).all(axis=1))
    starred = False
    for i, (row, again) in enumerate(zip(rows, repeats, strict=True)):
        if again:
            if not starred:
                yield "*"
            starred = True
            continue
        starred = False
        data = row.tobytes()
        hexed = f"{data[:8].hex(' ')}  {data[8:].hex(' ')}"
        yield f"{address + i * ROW_BYTES:012x}  {hexed}  |{data.translate(PRINTABLE).decode('ascii')}|"
