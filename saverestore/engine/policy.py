"""When to stop sending pages of a running domain: a pure function of what has been seen so far."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Decision(Enum):
    """What to do after a round."""

    CONTINUE = "another round while the domain runs"
    STOP = "suspend the domain and send the rest"


@dataclass(frozen=True)
class RoundStats:
    """One finished round: `sent_pages` were sent in it, and `dirty_pages` are known to be written since.

    `dirty_pages` is None where that is only found by reading everything again (content digests).
    """

    number: int
    sent_pages: int
    dirty_pages: int | None
    seconds: float


@dataclass(frozen=True)
class Limits:
    """Bounds of a live save. The defaults are Xen's own."""

    max_rounds: int = 5
    few_pages: int = 50


def decide(rounds: list[RoundStats], limits: Limits) -> Decision:
    """Decide after the last of `rounds` (at least one: the first sends everything).

    Stop when few pages are left, when the limit of rounds is reached, or when a round found nothing less to
    send than the one before it: the domain writes as fast as we send, and another round would change nothing.
    """
    last = rounds[-1]
    if last.number + 1 >= limits.max_rounds:
        return Decision.STOP
    left = last.sent_pages if last.dirty_pages is None and last.number > 0 else last.dirty_pages
    if left is not None and left < limits.few_pages:
        return Decision.STOP
    # The first round sends all there is: only from the second on do two rounds compare.
    if last.number >= 2 and last.sent_pages >= rounds[-2].sent_pages:
        return Decision.STOP
    return Decision.CONTINUE
