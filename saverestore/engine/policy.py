"""When to stop sending pages of a running domain: pure functions of the rounds so far.

predict   how long would the domain stand still if it were suspended now?
decide    another round, suspend it, slow it down, or give up?

suspend request        suspended                                  END     runs again
      │ suspend_s          │ rest_s: the last round                 │ state_s  │
      ├────────────────────┼────────────────────────────────────────┼──────────┤
                               downtime
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from saverestore.kernels.page import PAGE_SIZE
from saverestore.words import counted

if TYPE_CHECKING:
    from saverestore.stream.coding_choice import Coded

ALL_OF_IT = 100
"""Percent of its processor time: what a domain that nobody slows down has."""


class Decision(Enum):
    """What to do after a round."""

    CONTINUE = "another round while the domain runs"
    STOP = "suspend the domain and send the rest"
    THROTTLE = "slow the domain down, then another round"
    ABORT = "end the save"


class OnStall(Enum):
    """What to do when rounds no longer help: the domain writes as fast as its pages can be sent."""

    STOP = "stop"
    ABORT = "abort"
    THROTTLE = "throttle"


@dataclass(frozen=True)
class RoundStats:
    """One finished round: `sent_pages` were sent in it, and `dirty_pages` are known to be written since it began.

    `dirty_pages` is None where that is only found by reading everything again (content digests). `sent_bytes`: how
    much longer the stream became. `cpu_percent`: how much of its processor time the domain had meanwhile. `final`: it
    was suspended. `zero_pages`: of those sent. `stored_bytes`: what it took where the image is stored, and
    `room_bytes`: what is free there now; None where that means nothing. `coded`: what was written by each coding of
    pages, by its name. `broken_s`: for how long there was no way to where the stream goes, see `was_broken`.
    """

    number: int
    sent_pages: int
    dirty_pages: int | None
    seconds: float
    sent_bytes: int = 0
    cpu_percent: int = ALL_OF_IT
    final: bool = False
    zero_pages: int = 0
    stored_bytes: int | None = None
    room_bytes: int | None = None
    coded: Mapping[str, Coded] = field(default_factory=dict)
    broken_s: float = 0.0

    @property
    def was_broken(self) -> bool:
        """Whether there was no way to where the stream goes for a while.

        The domain wrote all that time and nothing was sent: such a round does not say which of the two is faster.
        """
        return self.broken_s > 0

    @property
    def send_rate(self) -> float | None:
        """Pages sent a second; None of a round that took no time."""
        return self.sent_pages / self.seconds if self.seconds > 0 else None


@dataclass(frozen=True)
class Limits:
    """Bounds of a live save. What is left out is as Xen's own tools have it.

    `max_rounds`: None, as many as suit what else is asked for. `max_time_s`: no round is begun later than this.
    Rounds in which the link was broken do not count for `max_rounds`, but there are never more than twice as many.
    Nor does the time without a link count for `max_time_s`, and one more round follows in any case.
    `downtime_s`: suspend as soon as the domain is expected to stand still no longer than this. `suspend_s` and
    `state_s`: what suspending, and what processors, the end of the stream and going on take, besides the pages.
    `throttle_steps`: percent of its processor time that the domain is left, one step after the other.
    """

    max_rounds: int | None = None
    few_pages: int = 50
    max_time_s: float | None = None
    downtime_s: float | None = None
    on_stall: OnStall = OnStall.STOP
    suspend_s: float = 0.1
    state_s: float = 0.05
    throttle_steps: tuple[int, ...] = (75, 50, 35, 25, 15, 10)

    ROUNDS = 5
    ROUNDS_WITH_A_GOAL = 30

    @property
    def rounds_at_most(self) -> int:
        """How many rounds there may be while the domain runs."""
        if self.max_rounds is not None:
            return self.max_rounds
        has_goal = self.downtime_s is not None or self.on_stall is OnStall.THROTTLE
        return self.ROUNDS_WITH_A_GOAL if has_goal else self.ROUNDS

    @property
    def rounds_in_all(self) -> int:
        """The same, with those in which the link was broken."""
        return 2 * self.rounds_at_most


ROOM_TO_SPARE = 1 << 20
"""Bytes for what an image has beside pages."""

LARGEST_PAGE_BYTES = PAGE_SIZE + 32
"""With its entry and its part of a record's head."""

UNKNOWN_PART = 4
"""By digests nobody knows after the first round what is dirty: one page in so many is taken for that (its room)."""

CATCHING_UP = 0.5
"""Up to this share of what is sent may be dirtied meanwhile, see `catches_up`."""

STALLED = 0.95
"""A round that leaves more than this part of what it sent gains nothing that is worth sending it again."""


@dataclass(frozen=True)
class Prediction:
    """How long the domain would stand still, by its parts; `least_s`: if nothing at all were left to be sent."""

    suspend_s: float
    rest_s: float
    state_s: float
    least_s: float

    @property
    def downtime_s(self) -> float:
        """All of it."""
        return self.suspend_s + self.rest_s + self.state_s


@dataclass(frozen=True)
class Verdict:
    """A decision, why it was made, and what is expected of a suspend at this moment.

    `wanted`: it is what the rounds were for, not what was left to do when they did not help. `cpu_percent`: what
    THROTTLE leaves the domain. `lacks_room`: ABORT, as the image could not be completed.
    """

    decision: Decision
    why: str
    prediction: Prediction
    wanted: bool = True
    cpu_percent: int = ALL_OF_IT
    lacks_room: bool = False


def decide(rounds: Sequence[RoundStats], limits: Limits) -> Verdict:
    """Decide after the last of `rounds` (at least one: the first sends everything).

    Suspend when the rest fits, or when few pages are left, or when no more rounds are allowed. When the last round
    left as much as it sent, another one would change nothing: then do what `limits.on_stall` says. An aim for the
    downtime that the limits do not let the rounds reach is such a stall, too, for who wants to give up then. Nor is
    there another round where its pages could take the room of those of the last one; where not even these fit, the
    save is given up before the domain is suspended for it. A round in which the link was broken is no stall, however
    much it left: another one follows, up to the limits.
    """
    prediction = predict(rounds, limits)
    last, left = rounds[-1], left_pages(rounds)
    goal = limits.downtime_s
    if lacking := _lacks_room(rounds):
        return Verdict(Decision.ABORT, lacking, prediction, wanted=False, lacks_room=True)
    if goal is not None and prediction.downtime_s <= goal:
        return Verdict(Decision.STOP, f"the rest fits into {_ms(goal)}", prediction)
    if left is not None and left < limits.few_pages:
        return Verdict(Decision.STOP, f"few dirty pages are left: {left}", prediction)
    used_up = _used_up(rounds, limits)
    if used_up:
        missed = goal is not None and limits.on_stall is OnStall.ABORT
        return Verdict(Decision.ABORT if missed else Decision.STOP, used_up, prediction, wanted=goal is None)
    if not is_stalled(rounds):
        broken = f"there was no link for {last.broken_s:.1f} s of the last round"
        why = broken if last.was_broken else "each round leaves less"
        return Verdict(Decision.CONTINUE, why, prediction)
    why = f"a round leaves as many dirty pages as it sends ({_rates(rounds)})"
    if limits.on_stall is OnStall.ABORT:
        return Verdict(Decision.ABORT, why, prediction, wanted=False)
    if limits.on_stall is OnStall.STOP:
        return Verdict(Decision.STOP, why, prediction, wanted=goal is None)
    if goal is not None and prediction.least_s > goal:
        least = _ms(prediction.least_s)
        never = f"even with nothing to send the downtime would be {least}, so throttling cannot help"
        return Verdict(Decision.STOP, f"{why}; {never}", prediction, wanted=False)
    lower = [step for step in limits.throttle_steps if step < last.cpu_percent]
    if not lower:
        return Verdict(Decision.STOP, f"{why}, however slow the domain", prediction, wanted=False)
    return Verdict(Decision.THROTTLE, why, prediction, wanted=False, cpu_percent=max(lower))


def _used_up(rounds: Sequence[RoundStats], limits: Limits) -> str:
    """Which limit has been reached; nothing when none."""
    most, whole = limits.rounds_at_most, sum(not one.was_broken for one in rounds)
    if whole >= most or len(rounds) >= limits.rounds_in_all:
        return f"the limit of {counted(most, 'round')} is reached"
    # A link may have broken before the round in which it came back.
    seconds = sum(max(0.0, one.seconds - one.broken_s) for one in rounds)
    if limits.max_time_s is not None and seconds >= limits.max_time_s and not rounds[-1].was_broken:
        return f"the rounds took {seconds:.1f} s, and {limits.max_time_s:g} s are allowed"
    room, rest = rounds[-1].room_bytes, _rest_bytes(rounds)
    if room is not None and rest is not None and 2 * rest + ROOM_TO_SPARE > room:
        return f"another round could leave too little room for the last one: {room >> 20} MiB are free"
    return ""


def _lacks_room(rounds: Sequence[RoundStats]) -> str:
    """That not even the last round fits, as far as that can be told; nothing where it does."""
    room, rest = rounds[-1].room_bytes, _rest_bytes(rounds)
    if room is None or rest is None or left_pages(rounds) is None or rest + ROOM_TO_SPARE <= room:
        return ""
    return f"the dirty pages that are left take about {-(-rest >> 20)} MiB, and {room >> 20} MiB are free"


def _rest_bytes(rounds: Sequence[RoundStats]) -> int | None:
    """What a last round would take where the image is stored; None where that cannot be told."""
    counted = [one for one in rounds if one.sent_pages > one.zero_pages and one.stored_bytes is not None]
    if not counted:
        return None
    left = left_pages(rounds)
    if left is None:
        left = rounds[-1].sent_pages // UNKNOWN_PART
    # Of the last two: what is written while it runs is not of the same kind as what was there before.
    page_bytes = max((one.stored_bytes or 0) / (one.sent_pages - one.zero_pages) for one in counted[-2:])
    return int(left * min(page_bytes, LARGEST_PAGE_BYTES))


def left_pages(rounds: Sequence[RoundStats]) -> int | None:
    """How many pages a last round would send now; None while that cannot be told.

    Where only reading tells what was written, as many as the last round found; not after one that took longer than it
    should, as the link was broken.
    """
    last = rounds[-1]
    if last.dirty_pages is not None:
        return last.dirty_pages
    return last.sent_pages if len(rounds) > 1 and not last.was_broken else None


def is_stalled(rounds: Sequence[RoundStats]) -> bool:
    """Whether the last round left (almost) as much as it sent: the domain writes as fast as we send.

    Never after the first round, which sends everything, or after one in which the link was broken. Rounds of a domain
    that has just been slowed down are not compared with those before.
    """
    if len(rounds) < 2 or rounds[-1].was_broken:
        return False
    last, previous = rounds[-1], rounds[-2]
    if last.dirty_pages is not None:
        return last.dirty_pages > STALLED * last.sent_pages
    # By digests a round finds what was written during the one before, too: all of a cut.
    if len(rounds) < 3 or last.cpu_percent != previous.cpu_percent or previous.was_broken:
        return False
    return last.sent_pages >= STALLED * previous.sent_pages


def catches_up(rounds: Sequence[RoundStats]) -> bool:
    """Whether waiting for what is on its way leaves less to be sent: the domain dirties clearly less than is sent.

    False where that is not known.
    """
    measured = _measured(rounds)
    written, sent = dirty_rate(measured), measured[-1].send_rate
    return written is not None and sent is not None and written <= CATCHING_UP * sent


def dirty_rate(rounds: Sequence[RoundStats]) -> float | None:
    """Different pages written a second, as seen in the last round; None while that cannot be told.

    By digests, a page's time is that from its turn in one round to its turn in the next: on average, half of each.
    """
    last = rounds[-1]
    if last.dirty_pages is not None:
        written, seconds = last.dirty_pages, last.seconds
    elif len(rounds) > 1:
        written, seconds = last.sent_pages, (last.seconds + rounds[-2].seconds) / 2
    else:
        return None
    return written / seconds if seconds > 0 else None


def predict(rounds: Sequence[RoundStats], limits: Limits) -> Prediction:
    """How long the domain would stand still if it were suspended after the last of `rounds`."""
    fixed_s = limits.suspend_s + limits.state_s
    last, timed = rounds[-1], _timed(rounds)
    if last.dirty_pages is None:
        # Everything is read again, and about as much is sent as the last time; who knows how much after a cut.
        rest_s = max(one.seconds for one in timed) if last.was_broken else last.seconds
        return Prediction(limits.suspend_s, rest_s, limits.state_s, fixed_s + _reading_s(timed))
    round_s, page_s = _cost_of_a_round(rounds)
    written = (dirty_rate(_measured(rounds)) or 0.0) * limits.suspend_s  # it runs until it is suspended
    rest_s = round_s + (last.dirty_pages + written) * page_s
    return Prediction(limits.suspend_s, rest_s, limits.state_s, fixed_s + round_s)


def _measured(rounds: Sequence[RoundStats]) -> Sequence[RoundStats]:
    """Up to the last round in which the link was not broken: those before the cut.

    All of them where it was broken in each: by these, too little is sent in a second, never too much.
    """
    end = max((nr for nr, one in enumerate(rounds, 1) if not one.was_broken), default=len(rounds))
    return rounds[:end]


def _timed(rounds: Sequence[RoundStats]) -> Sequence[RoundStats]:
    """Those in which the link was not broken; all of them where it was in each, as above."""
    return [one for one in rounds if not one.was_broken] or rounds


def _cost_of_a_round(rounds: Sequence[RoundStats]) -> tuple[float, float]:
    """Seconds for a round as such, and for each page: the straight line that fits the rounds after the first best.

    The first reads memory in order, later ones here and there, so it only counts while it is the only one. Rounds in
    which the link was broken only count where there are no others.
    """
    timed = _timed(rounds)
    sending = [one for one in timed if one.sent_pages]
    counted = [one for one in sending if one is not rounds[0]] or sending
    if not counted:
        return max(one.seconds for one in timed), 0.0
    mean_pages = sum(one.sent_pages for one in counted) / len(counted)
    mean_s = sum(one.seconds for one in counted) / len(counted)
    spread = sum((one.sent_pages - mean_pages) ** 2 for one in counted)
    if spread:
        page_s = sum((one.sent_pages - mean_pages) * (one.seconds - mean_s) for one in counted) / spread
        round_s = mean_s - mean_pages * page_s
        if page_s > 0 and round_s >= 0:
            return round_s, page_s
    return 0.0, counted[-1].seconds / counted[-1].sent_pages


def _reading_s(rounds: Sequence[RoundStats]) -> float:
    """By digests: what reading and comparing everything takes, without sending. 0 while that cannot be told."""
    first, last = rounds[0], rounds[-1]
    fewer = first.sent_pages - last.sent_pages
    if fewer <= 0 or last.seconds >= first.seconds:
        return 0.0
    return max(0.0, last.seconds - last.sent_pages * (first.seconds - last.seconds) / fewer)


def _rates(rounds: Sequence[RoundStats]) -> str:
    """For people."""
    written, sent = dirty_rate(rounds), rounds[-1].send_rate
    if written is None or sent is None:
        return f"{rounds[-1].sent_pages} pages"
    return f"{written:.0f} pages per second are dirtied, {sent:.0f} can be sent"


def _ms(seconds: float) -> str:
    """For people."""
    return f"{seconds * 1000:.0f} ms"
