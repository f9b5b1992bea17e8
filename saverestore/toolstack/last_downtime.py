"""What suspending a domain, and letting it go on, took the last time: the next prediction goes by it.

    /local/domain/N/pysave/last-downtime = "183 41"        milliseconds: until it was suspended; state and going on

It stands in xenstore, where only the control domain may write, and goes with the domain.
"""

from __future__ import annotations

from pyxc import XenStore
from saverestore.guest.common.transactions import write_below

LONGEST_MS = 10 * 60 * 1000


NODE = "pysave/last-downtime"


def remember(store: XenStore, domid: int, *, suspend_s: float, state_s: float) -> None:
    """For the next save of this domain. Nothing when it is gone."""
    write_below(store, domid, NODE, f"{round(suspend_s * 1000)} {round(state_s * 1000)}")


def known(store: XenStore, domid: int) -> tuple[float, float] | None:
    """(suspend_s, state_s) of the last save; None when there was none, or what is there makes no sense."""
    words = (store.read(f"/local/domain/{domid}/{NODE}") or "").split()
    if len(words) != 2 or not all(word.isdecimal() and int(word) <= LONGEST_MS for word in words):
        return None
    return int(words[0]) / 1000, int(words[1]) / 1000
