"""A domain's memory as a picture: two panels side by side, what the pages are and how well they compress.

    pfn, MiB │ row of cells, each some pages │   │ the same row │   │ legend, with numbers
             ┆ a strip of text for rows in which nothing is ┆

Pfns go on from left to right, then from top to bottom.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saverestore.image.drawing import Drawing, Raster, Rect, Rgb, Text
from saverestore.image.facts import BLOCK_PAGES, LEVEL, PACKED_MAX, Facts, Kind
from saverestore.image.pages import runs_of
from saverestore.stream.layout import MIB, PAGE_SIZE

COLORS: dict[Kind, tuple[str, str]] = {
    Kind.NOT_THERE: ("#f1f1f1", "absent"),
    Kind.ALLOCATE_ONLY: ("#c4c4c4", "allocated, without content"),
    Kind.BROKEN: ("#e00000", "broken"),
    Kind.ZERO: ("#cfe6f7", "zero"),
    Kind.DUPLICATE: ("#56b4e9", "duplicate of another page"),
    Kind.DATA: ("#00568a", "other content"),
    Kind.L1: ("#f0d93c", "page table, level 1"),
    Kind.L2: ("#e69f00", "page table, level 2"),
    Kind.L3: ("#d55e00", "page table, level 3"),
    Kind.L4: ("#cc79a7", "page table, level 4"),
    Kind.L1_PINNED: ("#9c8c00", "page table, level 1, pinned"),
    Kind.L2_PINNED: ("#8f6200", "page table, level 2, pinned"),
    Kind.L3_PINNED: ("#863b00", "page table, level 3, pinned"),
    Kind.L4_PINNED: ("#7a2f5f", "page table, level 4, pinned"),
}
RAMP = ("#fff7d0", "#fec44f", "#d95f0e", "#6b0000")
"""Colors from what compresses to nothing to what does not compress."""

PANEL_PX = 512
GRIDS = ((64, 128), (128, 256), (256, 512))
"""Columns, and the most rows: with more the next is taken; behind the last, cells of more pages."""

GAP_ROWS = 8
"""As many empty rows, or more, become a strip of text."""

MARGIN, LABELS_PX, BETWEEN_PX, LEGEND_PX, LINE_PX, STRIP_PX = 16, 150, 24, 330, 20, 22
LABEL_EVERY_PX = 64


@dataclass(frozen=True)
class Grid:
    """How pages become cells: `columns` cells of `pages_a_cell` pages each in a row."""

    columns: int
    pages_a_cell: int

    @property
    def scale(self) -> int:
        """Pixels of a cell."""
        return PANEL_PX // self.columns

    @property
    def pages_a_row(self) -> int:
        """Pages of a row."""
        return self.columns * self.pages_a_cell


def grid_for(facts: Facts) -> Grid:
    """The finest grid in which the rows that are not empty are not too many."""
    pages_a_cell = 1
    while True:
        for columns, rows_max in GRIDS if pages_a_cell == 1 else GRIDS[-1:]:
            grid = Grid(columns, pages_a_cell)
            if len(_rows(facts, grid)) <= rows_max:
                return grid
        pages_a_cell *= 2


def _rows(facts: Facts, grid: Grid) -> NDArray[np.uint64]:
    """Rows in which anything is, rising."""
    there = facts.pfns[facts.kinds != Kind.NOT_THERE]
    return np.unique(there // np.uint64(grid.pages_a_row))


def bands(facts: Facts, grid: Grid) -> list[tuple[int, int]]:
    """First and last rows of the parts that are drawn; what lies between them becomes a strip."""
    found: list[tuple[int, int]] = []
    for first, last in runs_of(_rows(facts, grid)).tolist():
        if found and first - found[-1][1] <= GAP_ROWS:
            found[-1] = (found[-1][0], last)
        else:
            found.append((first, last))
    return found


def cells(facts: Facts, grid: Grid, first_row: int, last_row: int) -> tuple[Rgb, Rgb]:
    """The cells of some rows, shape (rows, columns, 3): by the kind that most pages have, and by mean compression."""
    nr_cells = (last_row - first_row + 1) * grid.columns
    begin, end = (
        np.searchsorted(facts.pfns, np.uint64(row * grid.pages_a_row)) for row in (first_row, last_row + 1)
    )
    kinds = facts.kinds[begin:end]
    pfns = facts.pfns[begin:end] - np.uint64(first_row * grid.pages_a_row)
    at = (pfns // np.uint64(grid.pages_a_cell)).astype(np.intp)
    nr_kinds = len(Kind)
    counts = np.bincount(at * nr_kinds + kinds, minlength=nr_cells * nr_kinds).reshape(nr_cells, nr_kinds)
    counts[:, Kind.NOT_THERE] += grid.pages_a_cell - counts.sum(axis=1)
    # Of kinds that are equally frequent the last, which is the rarer: argmax takes the first.
    most = nr_kinds - 1 - counts[:, ::-1].argmax(axis=1)
    has_data = kinds >= Kind.ZERO
    total = np.bincount(at[has_data], facts.packed[begin:end][has_data], minlength=nr_cells)
    number = np.bincount(at[has_data], minlength=nr_cells)
    mean = np.where(number > 0, total / np.maximum(number, 1), 0).astype(np.uint8)
    by_kind = np.array([_rgb(COLORS[kind][0]) for kind in Kind], dtype=np.uint8)[most]
    by_size = _ramp()[mean]
    by_size[number == 0] = _rgb(COLORS[Kind.NOT_THERE][0])
    shape = (last_row - first_row + 1, grid.columns, 3)
    return by_kind.reshape(shape), by_size.reshape(shape)


def draw(facts: Facts, title: str) -> Drawing:
    """The whole picture."""
    grid = grid_for(facts)
    drawing = Drawing()
    left = MARGIN + LABELS_PX
    right = left + PANEL_PX + BETWEEN_PX
    legend = right + PANEL_PX + BETWEEN_PX
    each = "a page" if grid.pages_a_cell == 1 else f"{grid.pages_a_cell} pages"
    y = MARGIN + LINE_PX // 2
    add = drawing.elements.append
    add(Text(MARGIN, y, f"{title}; each cell is {each}"))
    y += LINE_PX + 4
    add(Text(left, y, "what the pages are"))
    add(
        Text(
            right, y, f"how well they compress (zstd -{LEVEL}, blocks of {BLOCK_PAGES * PAGE_SIZE >> 10} KiB)"
        )
    )
    add(Text(left - 10, y, "pfn (address)", "end"))
    y += LINE_PX
    top = y
    row_after = 0
    for first, last in bands(facts, grid):
        if first > row_after:
            text = f"no pages from pfn {row_after * grid.pages_a_row:#x} to {first * grid.pages_a_row - 1:#x}"
            add(Text(left, y + STRIP_PX // 2, text))
            y += STRIP_PX
        for x, part in zip((left, right), cells(facts, grid, first, last), strict=True):
            add(Raster(x, y, part, grid.scale))
        for at in range(0, (last - first + 1) * grid.scale, LABEL_EVERY_PX):
            pfn = (first + at // grid.scale) * grid.pages_a_row
            add(Text(left - 10, y + at + LINE_PX // 2 - 4, f"{pfn:#x} ({_address(pfn)})", "end"))
            add(Rect(left - 6, y + at, 6, 1, "#222222"))
        y += (last - first + 1) * grid.scale
        row_after = last + 1
    legend_y = top
    for element in _legend(facts, legend, top):
        add(element)
        legend_y = max(legend_y, element.y)
    drawing.width = legend + LEGEND_PX + MARGIN
    drawing.height = max(y, legend_y + LINE_PX) + MARGIN
    return drawing


def _legend(facts: Facts, x: int, y: int) -> Iterator[Rect | Text]:
    counts = np.bincount(facts.kinds, minlength=len(Kind))
    y += LINE_PX // 2
    for kind in reversed(Kind):
        if counts[kind] or kind is Kind.NOT_THERE:
            color, text = COLORS[kind]
            number = f": {counts[kind]} ({_mib(int(counts[kind]))})" if counts[kind] else ""
            yield from _entry(x, y, color, f"{text}{number}")
            y += LINE_PX
    y += LINE_PX
    nr_data = int(counts[Kind.ZERO :].sum())
    yield Text(x, y, f"{_mib(nr_data)} of pages compress to {_size(facts.packed_bytes)}")
    y += LINE_PX
    ramp = _ramp()
    for percent in (0, 25, 50, 75, 100):
        color = "#" + bytes(ramp[percent * PACKED_MAX // 100]).hex()
        words = {0: ": compresses to nothing", 100: ": does not compress"}.get(percent, "")
        yield from _entry(x, y, color, f"{percent} % of its size{words}")
        y += LINE_PX


def _entry(x: int, y: int, color: str, text: str) -> Iterator[Rect | Text]:
    yield Rect(x, y - 7, 14, 14, "#888888")
    yield Rect(x + 1, y - 6, 12, 12, color)
    yield Text(x + 22, y, text)


def _mib(nr_pages: int) -> str:
    """The size of so many pages."""
    return _size(nr_pages * PAGE_SIZE)


def _size(size: int) -> str:
    """A size in bytes; KiB where MiB would be 0.0."""
    return f"{size >> 10} KiB" if 0 < size < MIB // 10 else f"{size / MIB:.1f} MiB"


def _address(pfn: int) -> str:
    return f"{pfn * PAGE_SIZE // MIB} MiB"


def _rgb(color: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(color[1:]))


def _ramp() -> Rgb:
    """256 colors along RAMP."""
    stops = np.array([_rgb(color) for color in RAMP], dtype=float)
    at = np.linspace(0, len(stops) - 1, PACKED_MAX + 1)
    channels = [np.interp(at, np.arange(len(stops)), stops[:, i]) for i in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8)
