"""Charts as SVG text: bars and lines over rounds, and bars of phases. Colours are the page's, by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760, 64, 16, 12, 40
PLOT_HEIGHT = 200
SMALLEST_LABELLED = 0.05
"""Parts of a bar that are less than this part of it have their figure in the list below only."""


@dataclass(frozen=True)
class Series:
    """Values over rounds, None where there is none; `style` is a class of the page's (s1, s2 …)."""

    name: str
    style: str
    values: Sequence[float | None]


def short(value: float) -> str:
    """A number of at most about four characters: 950, 12k, 3.4M."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            scaled = value / limit
            return f"{scaled:.1f}{letter}" if scaled < 10 else f"{scaled:.0f}{letter}"
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


class _Log:
    """A logarithmic axis from 1 on: what is less stands on it."""

    def __init__(self, largest: float) -> None:
        self.decades = max(1, math.ceil(math.log10(max(largest, 1.0)) or 1))

    def height(self, value: float) -> float:
        return PLOT_HEIGHT * math.log10(max(value, 1.0)) / self.decades

    def ticks(self) -> list[float]:
        return [10.0**i for i in range(self.decades + 1)]


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
                parts.append(_text(x + wide / 2 - 1, max(y - 3, 9), short(value)))
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
    axis = _Log(largest) if logarithmic else _Linear(largest)
    parts = _frame(axis, names)
    slot = (WIDTH - LEFT - RIGHT) / max(1, len(names))
    if mark is not None:
        y = TOP + PLOT_HEIGHT - axis.height(mark[1])
        parts.append(f'<line class="mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(WIDTH - RIGHT, y - 4, mark[0], anchor="end"))
    for one in series:
        points = [
            (LEFT + slot * (i + 0.5), TOP + PLOT_HEIGHT - axis.height(value), names[i], value)
            for i, value in enumerate(one.values)
            if value is not None
        ]
        if len(points) > 1:
            way = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in points)
            parts.append(f'<polyline class="line {one.style}" points="{way}"/>')
        for x, y, name, value in points:
            tip = escape(f"{name}: {one.name} {value:,.4g}")
            parts.append(
                f'<circle class="{one.style}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{tip}</title></circle>'
            )
            if slot >= 48:
                parts.append(_text(x, y - 8, short(value)))
    return _chart(title, parts, series)


def phases(title: str, rows: Sequence[tuple[str, Sequence[tuple[str, str, float]]]]) -> str:
    """One horizontal bar for each row (name, parts), all to one scale; a part is (name, style, seconds)."""
    longest = max((sum(seconds for _, _, seconds in parts) for _, parts in rows), default=0.0) or 1.0
    room, left = WIDTH - RIGHT - 150, 80
    out, y = [], TOP
    legend: dict[str, str] = {}
    for name, parts in rows:
        out.append(_text(left - 8, y + 18, name, anchor="end"))
        x = float(left)
        total = sum(seconds for _, _, seconds in parts)
        for part, style, seconds in parts:
            legend[part] = style
            width = room * seconds / longest
            tip = escape(f"{name}: {part} {seconds:.3f} s")
            out.append(
                f'<rect class="{style}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="26">'
                f"<title>{tip}</title></rect>"
            )
            if seconds >= SMALLEST_LABELLED * longest:
                out.append(_text(x + width / 2, y + 17, f"{seconds:.2f}", style="on"))
            x += width
        out.append(_text(x + 6, y + 18, f"{total:.2f} s", anchor="start"))
        y += 36
    return _figure(title, out, y, list(legend.items()))


def _frame(axis: _Log | _Linear, names: Sequence[str]) -> list[str]:
    """Axis, grid and the rounds' names."""
    parts = []
    for tick in axis.ticks():
        y = TOP + PLOT_HEIGHT - axis.height(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 6, y + 4, short(tick), anchor="end"))
    slot = (WIDTH - LEFT - RIGHT) / max(1, len(names))
    every = max(1, math.ceil(40 / slot))
    for i, name in enumerate(names):
        if i % every == 0 or i == len(names) - 1:
            parts.append(_text(LEFT + slot * (i + 0.5), TOP + PLOT_HEIGHT + 18, name))
    return parts


def _text(x: float, y: float, text: str, *, anchor: str = "middle", style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _chart(title: str, parts: list[str], series: Sequence[Series]) -> str:
    return _figure(title, parts, TOP + PLOT_HEIGHT + BOTTOM - 12, [(one.name, one.style) for one in series])


def _figure(title: str, parts: list[str], height: float, legend: Sequence[tuple[str, str]]) -> str:
    keys = "".join(f'<span><i class="{style}"></i>{escape(name)}</span>' for name, style in legend)
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><p class="legend">{keys}</p>'
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg></figure>"
    )
