"""Where a suspended guest has its vCPUs' vcpu_info: Xen is made to write into each.

Xen notes an event in the vcpu_info of the vCPU that it is for: pending becomes 1, by which the place is known. Where
it was 1 already (a back end has something to tell, say) nothing changes. So in a second pass every place that could
be one with an event pending is cleared first, what Xen then sets again is looked for, and all else is put back.

That each vCPU has an event pending afterwards is left so: guests cope with one that turns out to be nothing (Xen
itself marks everything as pending when a vcpu_info is registered), and one of a back end's that came meanwhile is not
lost.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np

from saverestore.errors import Advice, DomainError, ErrorName, Remedy
from saverestore.guest.arm64.find import event_since, pending_candidates
from saverestore.guest.arm64.journal import Journal
from saverestore.guest.arm64.layout import PAGE_SHIFT, PAGE_SIZE, Control
from saverestore.guest.arm64.memory import KeptMemory, digests_of
from saverestore.guest.arm64.resuming import (
    pending_of,
    put_back_cleared,
    undo_channel,
    write_cleared,
)
from saverestore.guest.arm64.stubs import Piece, Scratch
from saverestore.guest.arm64.vcpu import control_result, write_priority
from saverestore.guest.common.handles import Handles
from saverestore.guest.ports import U64

LOWEST_PRIORITY = 15
"""EVTCHN_FIFO_PRIORITY_MIN. Guests use 7 and 0; each event has one of its own, as a queue tells of its first only."""

ATTEMPTS = 4

STEPS = {
    "bind": Control.BOUND,
    "give a priority to": Control.PRIORITIZED,
    "unmask": Control.UNMASKED,
    "send": Control.SENT,
    "close": Control.CLOSED,
}


class VcpuInfoSearch:
    """One search. `keep` is given the journal to go by whenever that becomes another one, before it is needed."""

    def __init__(
        self, handles: Handles, memory: KeptMemory, scratch: Scratch, keep: Callable[[Journal], None]
    ) -> None:
        self._handles = handles
        self._memory = memory
        self._scratch = scratch
        self._keep = keep

    def addresses(self, journal: Journal) -> tuple[int, ...]:
        """The physical address of each vCPU's. DomainError unless there is exactly one for each."""
        numbers = range(len(journal.contexts))
        digests = digests_of(self._memory)
        found: dict[int, int] = {}
        for number in numbers:
            address = self._by_change(journal, digests, number, set(found.values()))
            if address is not None:
                found[number] = address
        missing = [number for number in numbers if number not in found]
        if missing:
            found |= self._by_clearing(journal, missing, set(found.values()))
        return tuple(found[number] for number in numbers)

    def _by_change(self, journal: Journal, digests: U64, number: int, known: set[int]) -> int | None:
        """The place that got the event; None when it cannot be told. The `known` ones are those of other vCPUs."""
        self._send(journal, number, LOWEST_PRIORITY)
        changed = self._got_an_event(digests, but=journal.shared_info_gfn) - known
        return changed.pop() if len(changed) == 1 else None

    def _got_an_event(self, digests: U64, *, but: int) -> set[int]:
        """Where memory changed as a vcpu_info does that gets an event; the frame `but` is passed over.

        What has changed in any other way (a back end that completed something, say) is none of our business.
        """
        gfns = self._memory.gfns()
        now = digests_of(self._memory)
        found = set()
        for index in (now != digests).any(axis=1).nonzero()[0]:
            gfn = int(gfns[index])
            with self._memory.read(gfns[index : index + 1]) as batch:
                if gfn == but or not batch.nr_data:
                    continue
                page = batch.copy_data(np.empty((1, PAGE_SIZE), dtype=np.uint8))[0]
            offset = event_since(page, digests[index])
            if offset is not None:
                found.add((gfn << PAGE_SHIFT) + offset)
        return found

    def _by_clearing(self, journal: Journal, numbers: list[int], known: set[int]) -> dict[int, int]:
        cleared = self._candidates(known, but=journal.shared_info_gfn)
        journal = journal.with_cleared(cleared)
        self._keep(journal)
        write_cleared(self._handles, journal.domid, cleared)
        found = {number: self._set_again(journal, cleared, number) for number in numbers}
        put_back_cleared(self._handles, journal.domid, cleared)
        owner: dict[int, int] = {}
        for number, address in found.items():
            if owner.setdefault(address, number) != number:
                raise DomainError(
                    f"domain {journal.domid}: vCPUs {owner[address]} and {number} seem to have their vcpu_info at "
                    f"one place, {address:#x}, which is impossible; the domain is running",
                    name=ErrorName.DOMAIN_UNREADABLE,
                    remedies=[Advice(Remedy.TRY_AGAIN)],
                )
        return found

    def _set_again(self, journal: Journal, cleared: U64, number: int) -> int:
        """Of the cleared places the one that this vCPU's events set, each time."""
        left = cleared
        for attempt in range(ATTEMPTS):
            write_cleared(self._handles, journal.domid, left)
            self._send(journal, number, LOWEST_PRIORITY - 1 - attempt)
            left = left[pending_of(self._handles, journal.domid, left)]
            # A back end's event may have set another vCPU's: but not each time.
            if len(left) <= 1:
                break
        if len(left) != 1:
            raise _not_one(journal.domid, number, len(left))
        return int(left[0, 0])

    def _candidates(self, known: set[int], *, but: int) -> U64:
        """All places that may be one with an event pending, shape (n, 2): address, and what selects its events."""
        found = [np.zeros((0, 2), dtype=np.uint64)]
        for first, mapping in self._memory.chunks():
            there = mapping.errors == 0
            if first <= but < first + mapping.nr_pages:
                there[but - first] = False
            pages = mapping.pages if there.all() else mapping.pages[there]
            offsets, selectors = pending_candidates(pages)
            gfns = (first + there.nonzero()[0])[offsets >> PAGE_SHIFT]
            addresses = (gfns << PAGE_SHIFT) + (offsets & PAGE_SIZE - 1)
            found.append(np.stack([addresses.astype(np.uint64), selectors], axis=1))
        places = np.concatenate(found)
        return places[~np.isin(places[:, 0], np.array(sorted(known), dtype=np.uint64))]

    def _send(self, journal: Journal, number: int, priority: int) -> None:
        write_priority(self._scratch.data(number), priority)
        self._scratch.run(
            Piece.EVENT, journal.contexts, [number], lambda: self._handles.xen.unpause(journal.domid)
        )
        undo_channel(self._handles, journal)
        page = self._scratch.data(number)
        for step, at in STEPS.items():
            result = control_result(page, at)
            # Channels of the 2-level kind have no priorities.
            if result and not (at == Control.PRIORITIZED and result == -errno.ENOSYS):
                raise DomainError(
                    f"domain {journal.domid}: Xen did not {step} an event channel of vCPU {number} "
                    f"(error {-result}); it cannot be saved, and is running",
                    name=ErrorName.DOMAIN_UNREADABLE,
                )


def _not_one(domid: int, number: int, count: int) -> DomainError:
    return DomainError(
        f"domain {domid}: {count} places in its memory change as the vcpu_info of vCPU {number} does when it gets "
        "an event, and only one can be it; the domain is running",
        name=ErrorName.DOMAIN_UNREADABLE,
        remedies=[Advice(Remedy.TRY_AGAIN)],
    )
