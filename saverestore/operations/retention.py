"""Which images of a store are kept: a pure function of their times, in the words of borg.

Each rule keeps the newest image of each of the last N periods that have any; an image that another rule keeps does
not count for the next one. Rules are looked at from the shortest period to the longest.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from enum import Enum

from saverestore.operations.store import Entry


class Rule(Enum):
    """A period, by its word, and how local times within one are written the same."""

    LAST = "last"
    HOURLY = "hourly"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"
    YEARLY = "yearly"


FORMS = {
    Rule.HOURLY: "%Y-%m-%d %H",
    Rule.DAILY: "%Y-%m-%d",
    Rule.WEEKLY: "%G-%V",
    Rule.MONTHLY: "%Y-%m",
    Rule.YEARLY: "%Y",
}


def kept(
    images: Iterable[Entry], counts: Mapping[Rule, int], zone: datetime.tzinfo | None = None
) -> dict[Entry, str]:
    """Those that are kept of one domain's images, each with the reason: "daily 2", the second kept for its day.

    `zone`: in which days begin and end; None: this host's.
    """
    found: dict[Entry, str] = {}
    newest_first = sorted(images, key=lambda one: one.order, reverse=True)
    for rule in Rule:
        left, number, before = counts.get(rule, 0), 0, None
        for one in newest_first:
            if number >= left:
                break
            period = one.order if rule is Rule.LAST else _local(one.when, zone).strftime(FORMS[rule])
            if period == before:
                continue
            before = period
            if one not in found:
                number += 1
                found[one] = f"{rule.value} {number}"
    return found


def _local(when: datetime.datetime, zone: datetime.tzinfo | None) -> datetime.datetime:
    try:
        return when.astimezone(zone)
    except (OverflowError, ValueError, OSError):  # on the first day there is, or the last
        return when
