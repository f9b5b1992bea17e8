"""Resuming a suspended arm64 domain, wherever its saver stopped: at once, or later with the journal's help."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyxc import DomainInfo, Mapping, XenError
from saverestore.guest.arm64 import journal as journals
from saverestore.guest.arm64.find import PENDING, undo_in_shared_info
from saverestore.guest.arm64.journal import Journal
from saverestore.guest.arm64.layout import PAGE_SHIFT, PAGE_SIZE
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


def recover_by_journal(handles: Handles, journal: Journal, directory: Path = journals.DIRECTORY) -> list[str]:
    """Resume the journal's domain as if no save had touched it: what was done, in words.

    What is to be undone is seen from the domain: a vCPU in our page, or a domain shut down for suspend. One that has
    neither is running again already, and is left alone. The journal is settled before anything of the domain runs,
    so that nobody puts back what is the guest's by then; it is gone from `directory` when this returns. When this
    raises, it can be called again.
    """
    domid, xen = journal.domid, handles.xen
    done: list[str] = []
    with shield():
        if journals.is_settled(domid, journal.uuid, directory):
            return _run(handles, domid, journal.uuid, directory)
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
        if in_stub or info.paused:
            undo_channel(handles, journal)
            if journal.cleared is not None:
                put_back_cleared(handles, domid, journal.cleared)
                done.append("places in its memory that had been cleared are as they were")
        release_scratch(handles, domid, scratch_gfns(len(journal.contexts)))
        if in_stub:
            for number, context in enumerate(journal.contexts):
                set_context(handles, domid, number, context.with_x0(CANCELLED) if number == 0 else context)
            done.append("its processors are as they were when it suspended")
        elif info.suspended:
            set_context(handles, domid, 0, journal.contexts[0].with_x0(CANCELLED))
        journals.settle(domid, journal.uuid, directory)
        return done + _run(handles, domid, journal.uuid, directory)


def _run(handles: Handles, domid: int, domain_uuid: uuid.UUID, directory: Path) -> list[str]:
    """Resume a domain that is right but for that: what was done."""
    done = []
    if handles.xen.domain(domid).suspended:
        handles.xen.resume(domid)
        done.append("it was suspended and has been resumed")
    _resume_in_store(handles, domid)
    if handles.xen.domain(domid).paused:
        handles.xen.unpause(domid)
        done.append("it was paused and has been unpaused")
    journals.remove(domid, domain_uuid, directory)
    return done


def recover(handles: Handles, info: DomainInfo, directory: Path = journals.DIRECTORY) -> list[str]:
    """Put a domain right whose saver died: what was done. Nothing for one that runs as it should.

    `directory`: where its journal is.
    """
    journal = journals.read(info.domid, info.uuid, directory)
    if journal is not None:
        return recover_by_journal(handles, journal, directory)
    if journals.is_settled(info.domid, info.uuid, directory):
        with shield():
            return _run(handles, info.domid, info.uuid, directory)
    if not info.suspended:
        return []
    resume_untouched(handles, info.domid)
    return ["it was suspended and has been resumed"]


def resume_untouched(handles: Handles, domid: int) -> None:
    """Resume a domain that has suspended and to which nothing else was done; called again, do what is missing."""
    with shield():
        if handles.xen.domain(domid).suspended:
            set_context(handles, domid, 0, get_context(handles, domid, 0).with_x0(CANCELLED))
            handles.xen.resume(domid)
        _resume_in_store(handles, domid)


def _resume_in_store(handles: Handles, domid: int) -> None:
    try:
        handles.store.resume_domain(domid)
    except XenError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL):
            raise


def undo_channel(handles: Handles, journal: Journal) -> None:
    """Take our event channel out of the shared_info page."""
    with handles.memory.map_page(journal.domid, journal.shared_info_gfn, writable=True) as mapping:
        undo_in_shared_info(mapping.pages[0], journal.shared_info)


def write_cleared(handles: Handles, domid: int, places: U64) -> None:
    """Make places that may be a vcpu_info (shape (n, 2): address, selector) ones without an event pending."""
    for mapping, _, words in _mapped(handles, domid, places, writable=True):
        view = mapping.pages.reshape(-1).view("<u8")
        view[words] = 0
        view[words + 1] = 0


def put_back_cleared(handles: Handles, domid: int, places: U64) -> None:
    """Make them what they were, but for events that have come meanwhile: these stay. Twice is fine."""
    for mapping, rows, words in _mapped(handles, domid, places, writable=True):
        view = mapping.pages.reshape(-1).view("<u8")
        view[words] = PENDING
        view[words + 1] |= places[rows, 1]


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
        batch = wanted[at : at + MAPPED_PAGES]
        rows = slice(
            int(np.searchsorted(gfns, batch[0])), int(np.searchsorted(gfns, batch[-1], side="right"))
        )
        page = np.searchsorted(batch, gfns[rows])
        inside = places[rows, 0] & np.uint64(PAGE_SIZE - 1)
        words = page * (PAGE_SIZE // 8) + (inside >> np.uint64(3)).astype(np.intp)
        with handles.memory.map(domid, batch, writable=writable) as mapping:
            yield mapping, rows, words
