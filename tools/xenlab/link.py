"""What the cable of a pair is made to be: rate, delay and loss, as people write them.

They are put on what each host sends, by netem in its dom0 (`dom0/lab-link`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from xenlab.errors import LabError

_RATE_UNITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_DELAY_UNITS = {"us": 1, "ms": 10**3, "s": 10**6}
_LOSS_UNITS = {"%": 1.0}

FULL_FRAME_BYTES = 1514
LEAST_QUEUE = 1000
"""Frames: netem's own default."""

CUT_PERCENT = 100.0


@dataclass(frozen=True)
class Link:
    """How one direction behaves; the default is the cable as it is."""

    rate_bits_s: int | None = None
    delay_us: int = 0
    """One way: an answer takes twice that."""
    loss_percent: float = 0.0

    @property
    def queue_frames(self) -> int:
        """How many frames wait at most: twice what is on the way at full rate, so that delay alone loses none."""
        on_the_way = (self.rate_bits_s or 10**9) // 8 * self.delay_us // 10**6 // FULL_FRAME_BYTES
        return max(LEAST_QUEUE, 2 * on_the_way)

    def __str__(self) -> str:
        rate = "at any rate" if self.rate_bits_s is None else f"at {self.rate_bits_s / 10**6:g} Mbit/s"
        if self.loss_percent == CUT_PERCENT:
            return "nothing (cut)"
        return f"{rate}, {self.delay_us / 1000:g} ms late, {self.loss_percent:g}% lost"

    def arguments(self) -> list[str]:
        """Return what `lab-link set` is given in dom0."""
        rate = [] if self.rate_bits_s is None else [f"--rate-bytes={self.rate_bits_s // 8}"]
        return [
            *rate,
            f"--delay-us={self.delay_us}",
            f"--loss-percent={self.loss_percent:g}",
            f"--limit={self.queue_frames}",
        ]


CUT = Link(loss_percent=CUT_PERCENT)


def parse(rate: str | None = None, delay: str | None = None, loss: str | None = None) -> Link:
    """Return the link of "100mbit", "20ms", "0.1%"; raises LabError that says how a value is written."""
    return Link(
        rate_bits_s=None if rate is None else _above_zero(rate, _RATE_UNITS),
        delay_us=0 if delay is None else round(_number(delay, _DELAY_UNITS)),
        loss_percent=0.0 if loss is None else _percent(loss),
    )


def _number(text: str, units: dict[str, int] | dict[str, float]) -> float:
    matched = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z%]+)", text.strip().lower())
    if not matched or matched[2] not in units:
        raise LabError(f"{text!r}: write a number with one of the units {', '.join(units)}")
    return float(matched[1]) * units[matched[2]]


def _above_zero(text: str, units: dict[str, int]) -> int:
    value = round(_number(text, units))
    if value < 8:
        raise LabError(f"{text!r}: the rate must be greater than 0 (`link cut` lets nothing through)")
    return value


def _percent(text: str) -> float:
    value = _number(text, _LOSS_UNITS)
    if value > CUT_PERCENT:
        raise LabError(f"{text!r}: at most 100% can be lost")
    return value
