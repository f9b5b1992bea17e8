"""Charts as SVG text: bars and lines over rounds, and bars of phases. Colours and sizes of letters are the page's, by
class: on a narrow screen, where a chart is drawn at half its size, it shows larger letters, and no `value`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760, 64, 16, 22, 30
PLOT_HEIGHT = 200
PHASES_LEFT, PHASES_TOTAL = 112, 100
"""Room for the name before a bar of phases, and for the total behind it."""

BAR_HEIGHT, BAR_STEP = 26, 36
SMALLEST_LABELLED = 0.05
"""Parts of a bar that are less than this part of the longest have no figure in it."""

LETTER_WIDTH, LETTER_HEIGHT = 6.2, 9.0
LABEL_PLACES = ((0, -8), (0, 17), (14, -8), (-14, -8), (14, 17), (-14, 17), (0, -20))
"""Where the middle of a figure's foot may be, from its point, the best first."""


@dataclass(frozen=True)
class Series:
    """Values over rounds, None where there is none; `style` is a class of the page's (s1, s2 …)."""

    name: str
    style: str
    values: Sequence[float | None]


def short(value: float) -> str:
    """A number of at most about four characters: 950, 12k, 3.4M, 2G."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            scaled = value / limit
            return f"{scaled:.1f}".removesuffix(".0") + letter if scaled < 10 else f"{scaled:.0f}{letter}"
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


class _Log:
    """A logarithmic axis from the decade of `smallest` on, at least from 1: what is less stands on it."""

    def __init__(self, largest: float, smallest: float = 1.0) -> None:
        self.first = math.floor(math.log10(max(smallest, 1.0)))
        self.decades = max(1, math.ceil(math.log10(max(largest, 1.0))) - self.first)

    def height(self, value: float) -> float:
        return PLOT_HEIGHT * max(0.0, math.log10(max(value, 1.0)) - self.first) / self.decades

    def ticks(self) -> list[float]:
        return [10.0 ** (self.first + i) for i in range(self.decades + 1)]


class _Linear:
    """An axis from 0 to a round number."""

    def __init__(self, largest: float) -> None:
        largest = largest if largest > 0 else 1.0
        step = 10.0 ** math.floor(math.log10(largest))
        self.step: float = next(step * f for f in (0.2, 0.5, 1, 2, 5) if largest / (step * f) <= 5)
        self.top: float = self.step * math.ceil(largest / self.step)

    def height(self, value: float) -> float:
        return PLOT_HEIGHT * value / self.top

    def ticks(self) -> list[float]:
        return [i * self.step for i in range(round(self.top / self.step) + 1)]


def bars(title: str, names: Sequence[str], series: Sequence[Series]) -> str:
    """Bars side by side for each round, on a logarithmic axis: the first round is so much larger than the last."""
    axis = _Log(max((value or 0 for one in series for value in one.values), default=1))
    parts = _frame(axis, names)
    slot = (WIDTH - LEFT - RIGHT) / max(1, len(names))
    wide = min(48.0, slot * 0.8 / max(1, len(series)))
    for number, one in enumerate(series):
        for i, value in enumerate(one.values):
            if value is None:
                continue
            height = axis.height(value)
            x = LEFT + slot * (i + 0.5) + wide * (number - len(series) / 2)
            y = TOP + PLOT_HEIGHT - height
            tip = escape(f"{names[i]}: {one.name} {value:,.0f}")
            parts.append(
                f'<rect class="{one.style}" x="{x:.1f}" y="{y:.1f}" width="{wide - 2:.1f}" height="{height:.1f}">'
                f"<title>{tip}</title></rect>"
            )
            if wide >= 20:
                parts.append(_text(x + wide / 2 - 1, y - 4, short(value), style="value"))
    return _chart(title, parts, series)


def lines(
    title: str,
    names: Sequence[str],
    series: Sequence[Series],
    *,
    logarithmic: bool = False,
    mark: tuple[str, float] | None = None,
) -> str:
    """A line for each series, broken where there are no values; `mark`: a value to compare with, drawn across."""
    values = [value for one in series for value in one.values if value is not None]
    largest = max([*values, *([mark[1]] if mark else [])], default=1.0)
    axis = _Log(largest, min(values, default=1.0)) if logarithmic else _Linear(largest)
    parts = _frame(axis, names)
    slot = (WIDTH - LEFT - RIGHT) / max(1, len(names))
    if mark is not None:
        y = TOP + PLOT_HEIGHT - axis.height(mark[1])
        parts.append(f'<line class="mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    drawn = [
        [
            (LEFT + slot * (i + 0.5), TOP + PLOT_HEIGHT - axis.height(value), names[i], value)
            for i, value in enumerate(one.values)
            if value is not None
        ]
        for one in series
    ]
    labels = _Labels([(x, y) for points in drawn for x, y, _, _ in points])
    for points in drawn:
        labels.keep_off([(x, y) for x, y, _, _ in points])
    for one, points in zip(series, drawn, strict=True):
        if len(points) > 1:
            way = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in points)
            parts.append(f'<polyline class="line {one.style}" points="{way}"/>')
        for x, y, name, value in points:
            tip = escape(f"{name}: {one.name} {value:,.4g}")
            parts.append(
                f'<circle class="{one.style}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{tip}</title></circle>'
            )
            if slot >= 48:
                parts.append(labels.place(x, y, short(value)))
    return _chart(title, parts, series, mark=mark)


class _Labels:
    """Figures beside their points, off points, lines and each other as far as there is room."""

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        self._taken = [(x + dx, y + dy) for x, y in points for dx in (-4, 0, 4) for dy in (-4, 0, 4)]

    def keep_off(self, way: Sequence[tuple[float, float]]) -> None:
        """Keep off a line through these points."""
        for (x1, y1), (x2, y2) in pairwise(way):
            steps = max(2, int(max(abs(x2 - x1), abs(y2 - y1)) // 3))
            self._taken += [
                (x1 + (x2 - x1) * i / steps, y1 + (y2 - y1) * i / steps) for i in range(steps + 1)
            ]

    def place(self, x: float, y: float, text: str) -> str:
        """The figure of a point, where least is in its way."""
        half = len(text) * LETTER_WIDTH / 2

        def in_its_way(place: tuple[float, float]) -> int:
            left, foot = x + place[0] - half, y + place[1]
            if foot - LETTER_HEIGHT < TOP - 14 or foot > TOP + PLOT_HEIGHT:
                return len(self._taken)
            return sum(
                left - 1 <= at_x <= left + 2 * half + 1 and foot - LETTER_HEIGHT - 1 <= at_y <= foot + 1
                for at_x, at_y in self._taken
            )

        place = min(LABEL_PLACES, key=in_its_way)
        middle, foot = x + place[0], y + place[1]
        self._taken += [
            (middle + half * part, foot - LETTER_HEIGHT * up)
            for part in (-1, -0.5, 0, 0.5, 1)
            for up in (0, 0.5, 1)
        ]
        return _text(middle, foot, text, style="value")


def phases(title: str, rows: Sequence[tuple[str, Sequence[tuple[str, str, float]]]]) -> str:
    """One horizontal bar for each row (name, parts), all to one scale; a part is (name, style, seconds)."""
    longest = max((sum(seconds for _, _, seconds in parts) for _, parts in rows), default=0.0) or 1.0
    room = WIDTH - RIGHT - PHASES_LEFT - PHASES_TOTAL
    out, y = [], 4
    legend: dict[str, str] = {}
    for name, parts in rows:
        middle = y + BAR_HEIGHT / 2
        out.append(_text(PHASES_LEFT - 8, middle, name, anchor="end", is_middle=True))
        x = float(PHASES_LEFT)
        total = sum(seconds for _, _, seconds in parts)
        for part, style, seconds in parts:
            legend[part] = style
            width = room * seconds / longest
            tip = escape(f"{name}: {part} {seconds:.3f} s")
            out.append(
                f'<rect class="{style}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}">'
                f"<title>{tip}</title></rect>"
            )
            if seconds >= SMALLEST_LABELLED * longest:
                out.append(_text(x + width / 2, middle, f"{seconds:.2f}", style="on value", is_middle=True))
            x += width
        out.append(_text(x + 6, middle, f"{total:.2f} s", anchor="start", is_middle=True))
        y += BAR_STEP
    return _figure(title, out, y, list(legend.items()))


def _frame(axis: _Log | _Linear, names: Sequence[str]) -> list[str]:
    """Axis, grid and the rounds' names."""
    parts = []
    for tick in axis.ticks():
        y = TOP + PLOT_HEIGHT - axis.height(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 6, y, short(tick), anchor="end", is_middle=True))
    slot = (WIDTH - LEFT - RIGHT) / max(1, len(names))
    every = max(1, math.ceil(40 / slot))
    last = len(names) - 1
    for i, name in enumerate(names):
        if i == last or (i % every == 0 and last - i >= every):
            parts.append(_text(LEFT + slot * (i + 0.5), TOP + PLOT_HEIGHT + 22, name))
    return parts


def _text(
    x: float, y: float, text: str, *, anchor: str = "middle", style: str = "", is_middle: bool = False
) -> str:
    """Letters that stand on `y`, or whose middle is there, whatever their size."""
    kind = f' class="{style}"' if style else ""
    down = ' dy=".35em"' if is_middle else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}"{down} text-anchor="{anchor}">{escape(text)}</text>'


def _chart(
    title: str, parts: list[str], series: Sequence[Series], *, mark: tuple[str, float] | None = None
) -> str:
    legend = [(one.name, one.style) for one in series]
    if mark is not None:
        legend.append((mark[0], "mark"))
    return _figure(title, parts, TOP + PLOT_HEIGHT + BOTTOM, legend)


def _figure(title: str, parts: list[str], height: float, legend: Sequence[tuple[str, str]]) -> str:
    keys = "".join(f'<span><i class="{style}"></i>{escape(name)}</span>' for name, style in legend)
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><p class="legend">{keys}</p>'
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg></figure>"
    )
