"""Letting a suspended arm64 domain go on, wherever its saver stopped: at once, or later with the journal's help."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyxc import DomainInfo, Mapping, XenError
from pyxc.memory import nr_gpfns
from saverestore.errors import DomainError
from saverestore.guest.arm64 import journal as journals
from saverestore.guest.arm64.find import EVENT_BYTES, PENDING, undo_in_shared_info, undone_event
from saverestore.guest.arm64.journal import Journal
from saverestore.guest.arm64.layout import PAGE_SHIFT, PAGE_SIZE, Layout
from saverestore.guest.arm64.memory import KeptMemory, digests_of
from saverestore.guest.arm64.stubs import (
    get_context,
    release_scratch,
    scratch_gfns,
    set_context,
    wait_for_stub,
)
from saverestore.guest.common.handles import Handles
from saverestore.guest.ports import U64, Bool
from saverestore.interrupts import shield

MAPPED_PAGES = 1024

CANCELLED = 1
"""What a guest's suspend hypercall returns in x0 when it was not restored: 0 would be a BUG in the old domain."""


def put_right(handles: Handles, journal: Journal) -> list[str]:
    """Let the journal's domain go on as it would have without us: what was done, in words.

    What is to be undone is seen from the domain: a vCPU in our page, or a domain shut down for suspend. One that has
    neither has gone on already, and is left alone. The journal is settled before anything of the domain runs, so that
    nobody puts back what is the guest's by then; it is gone when this returns.
    """
    domid, xen = journal.domid, handles.xen
    done: list[str] = []
    with shield():
        info = xen.domain(domid)
        now = [get_context(handles, domid, number) for number in range(len(journal.contexts))]
        in_stub = [number for number, context in enumerate(now) if context.in_stub]
        under_way = [number for number in in_stub if now[number].online and not now[number].has_ended]
        if in_stub and not info.suspended:
            # What a stub changed is put back by its own end, so it has to come to that. One that has ended must not
            # run on: its page may be gone.
            if under_way and info.paused:
                xen.unpause(domid)
            if under_way:
                wait_for_stub(handles, domid, under_way)
            if under_way or not info.paused:
                xen.pause(domid)
        if journal.digests is not None and (in_stub or info.paused):
            # In this order: what was cleared was so after all that the digests tell of had been undone.
            if journal.cleared is not None:
                put_back_cleared(handles, domid, journal.cleared)
                done.append("places in its memory that had been cleared are as they were")
            done += _undo_events(handles, journal, journal.digests)
        release_scratch(handles, domid, scratch_gfns(len(journal.contexts)))
        if in_stub:
            for number, context in enumerate(journal.contexts):
                set_context(handles, domid, number, context.with_x0(CANCELLED) if number == 0 else context)
            done.append("its processors are as they were when it suspended")
        elif info.suspended:
            set_context(handles, domid, 0, journal.contexts[0].with_x0(CANCELLED))
        journals.settle(domid, journal.uuid)
        return done + _run(handles, domid, journal.uuid)


def _run(handles: Handles, domid: int, domain_uuid: uuid.UUID) -> list[str]:
    """Let a domain go on that is right but for that: what was done."""
    done = []
    if handles.xen.domain(domid).suspended:
        handles.xen.resume(domid)
        done.append("it was suspended and goes on")
    _tell_store(handles, domid)
    if handles.xen.domain(domid).paused:
        handles.xen.unpause(domid)
        done.append("it was paused and goes on")
    journals.remove(domid, domain_uuid)
    return done


def recover(handles: Handles, info: DomainInfo) -> list[str]:
    """Put a domain right whose saver died: what was done. Nothing for one that runs as it should."""
    journal = journals.read(info.domid, info.uuid)
    if journal is not None:
        return put_right(handles, journal)
    if journals.is_settled(info.domid, info.uuid):
        with shield():
            return _run(handles, info.domid, info.uuid)
    if not info.suspended:
        return []
    resume_untouched(handles, info.domid)
    return ["it was suspended and goes on"]


def resume_untouched(handles: Handles, domid: int) -> None:
    """Let a domain go on that has suspended and to which nothing else was done."""
    with shield():
        set_context(handles, domid, 0, get_context(handles, domid, 0).with_x0(CANCELLED))
        handles.xen.resume(domid)
        _tell_store(handles, domid)


def _tell_store(handles: Handles, domid: int) -> None:
    try:
        handles.store.resume_domain(domid)
    except XenError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL):
            raise


def _undo_events(handles: Handles, journal: Journal, digests: U64) -> list[str]:
    """Undo what events sent to find a vcpu_info left in memory: pages that do not digest as in the journal."""
    info = handles.xen.domain(journal.domid)
    layout = Layout.of_domain(nr_gpfns(handles.xen, journal.domid), info.max_pages)
    memory = KeptMemory(handles, journal.domid, layout)
    try:
        undo_channel(handles, journal)
        found = events_in(memory, digests, but=journal.shared_info_gfn)
    finally:
        memory.drop()
    for event in found:
        undo_event(handles, journal.domid, event)
    return ["an event that it was sent is undone" for _ in found]


@dataclass(frozen=True)
class Event:
    """A vcpu_info that got an event: where, and what stood there before."""

    address: int
    before: bytes


def undo_channel(handles: Handles, journal: Journal) -> None:
    """Take our event channel out of the shared_info page."""
    with handles.memory.map_page(journal.domid, journal.shared_info_gfn, writable=True) as mapping:
        undo_in_shared_info(mapping.pages[0], journal.shared_info)


def events_in(memory: KeptMemory, digests: U64, *, but: int) -> list[Event]:
    """Each vcpu_info in memory that got an event since the pages had these digests; the frame `but` is passed over.

    What has changed in any other way (a backend that completed something, say) is none of our business.
    """
    gfns = memory.gfns()
    now = digests_of(memory)
    if len(now) != len(digests):
        raise DomainError("the domain's memory is not what its journal tells of; nothing was done")
    found = []
    for index in (now != digests).any(axis=1).nonzero()[0]:
        gfn = int(gfns[index])
        with memory.read(gfns[index : index + 1]) as batch:
            if gfn == but or not batch.nr_data:
                continue
            page = batch.copy_data(np.empty((1, PAGE_SIZE), dtype=np.uint8))[0]
        event = undone_event(page, digests[index])
        if event is not None:
            offset, before = event
            found.append(Event((gfn << PAGE_SHIFT) + offset, before[offset : offset + EVENT_BYTES].tobytes()))
    return found


def undo_event(handles: Handles, domid: int, event: Event) -> None:
    """Make a vcpu_info what it was."""
    gfn, offset = event.address >> PAGE_SHIFT, event.address & (PAGE_SIZE - 1)
    with handles.memory.map_page(domid, gfn, writable=True) as mapping:
        mapping.buffer[offset : offset + EVENT_BYTES] = event.before


def write_cleared(handles: Handles, domid: int, places: U64) -> None:
    """Make places that may be a vcpu_info (shape (n, 2): address, selector) ones without an event pending."""
    _write_places(handles, domid, places, np.zeros((len(places), 2), dtype=np.uint64))


def put_back_cleared(handles: Handles, domid: int, places: U64) -> None:
    """Make them what they were. Twice is fine."""
    values = places.copy()
    values[:, 0] = PENDING
    _write_places(handles, domid, places, values)


def _write_places(handles: Handles, domid: int, places: U64, values: U64) -> None:
    for mapping, rows, words in _mapped(handles, domid, places, writable=True):
        view = mapping.pages.reshape(-1).view("<u8")
        view[words] = values[rows, 0]
        view[words + 1] = values[rows, 1]


def pending_of(handles: Handles, domid: int, places: U64) -> Bool:
    """Which of these places have an event pending."""
    found = np.zeros(len(places), dtype=bool)
    for mapping, rows, words in _mapped(handles, domid, places, writable=False):
        found[rows] = mapping.pages.reshape(-1).view("<u8")[words] == PENDING
    return found


def _mapped(
    handles: Handles, domid: int, places: U64, *, writable: bool
) -> Iterator[tuple[Mapping, slice, npt.NDArray[np.intp]]]:
    """The places, ascending, some pages at a time: the mapping, which rows are there, and at which of its words."""
    gfns = places[:, 0] >> np.uint64(PAGE_SHIFT)
    wanted = np.unique(gfns)
    for at in range(0, len(wanted), MAPPED_PAGES):
        some = wanted[at : at + MAPPED_PAGES]
        rows = slice(int(np.searchsorted(gfns, some[0])), int(np.searchsorted(gfns, some[-1], side="right")))
        page = np.searchsorted(some, gfns[rows])
        inside = places[rows, 0] & np.uint64(PAGE_SIZE - 1)
        words = page * (PAGE_SIZE // 8) + (inside >> np.uint64(3)).astype(np.intp)
        with handles.memory.map(domid, some, writable=writable) as mapping:
            yield mapping, rows, words
