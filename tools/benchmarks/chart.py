"""Bars, as SVG: for each contender how fast it is both ways, and its ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saverestore.image.drawing import Drawing, Rect, Text

LEFT, WIDTH, MARGIN = 230, 520, 20
BAR, GAP, LEGEND = 16, 9, 44  # a bar is as high as its figure
RIGHT = 170


@dataclass(frozen=True)
class Series:
    """What one color means."""

    title: str
    color: str


@dataclass(frozen=True)
class Row:
    """One contender: a value for each series, and what is written beside its name."""

    title: str
    values: tuple[float, ...]
    note: str = ""


def bars(title: str, unit: str, series: Sequence[Series], rows: Sequence[Row]) -> Drawing:
    """A drawing of horizontal bars, grouped by row, the longest as wide as there is room."""
    step = BAR * len(series) + GAP
    drawing = Drawing(LEFT + WIDTH + RIGHT, MARGIN + LEGEND + step * len(rows) + MARGIN)
    put = drawing.elements.append
    put(Text(MARGIN, MARGIN, f"{title} ({unit})"))
    for i, one in enumerate(series):
        x = LEFT + i * 200
        put(Rect(x, MARGIN + 16, 12, 12, one.color))
        put(Text(x + 18, MARGIN + 22, one.title))
    longest = max((value for row in rows for value in row.values), default=1) or 1
    for number, row in enumerate(rows):
        y = MARGIN + LEGEND + number * step
        put(Text(LEFT - 8, y + BAR * len(series) // 2, row.title, "end"))
        for i, (one, value) in enumerate(zip(series, row.values, strict=True)):
            width = max(1, round(value / longest * WIDTH))
            put(Rect(LEFT, y + i * BAR, width, BAR - 1, one.color))
            text = f"{value:,.0f}" + (f", {row.note}" if i == 0 and row.note else "")
            put(Text(LEFT + width + 6, y + i * BAR + BAR // 2, text))
    return drawing
