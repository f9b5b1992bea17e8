"""Real domains for the contract: the lab's guests, in its control domain. See conftest."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "xen"))

from guest_makers import EmptyDomain, KeepingMaker
from p2m_in_place import p2m_at
from xen_lab import Guest

from saverestore.guest.common.handles import Handles, open_handles
from saverestore.guest.common.suspend import Suspender
from saverestore.guest.ports import SaveGuest
from saverestore.guest.x86.hvm import HvmRestore, HvmSave
from saverestore.guest.x86.pv import PvRestore, PvSave
from saverestore.stream.records import X86PvP2mFrames
from saverestore.toolstack import bare, config, domains


def opened(handles: Handles, domid: int) -> SaveGuest:
    info = handles.xen.domain(domid)
    suspender = Suspender(handles.xen, handles.store, domid)
    return HvmSave(handles, info, suspender) if info.hvm else PvSave(handles, info, suspender)


class EmptyXenDomain(EmptyDomain):
    handles: Handles
    domid: int
    p2m_frame_pfns: np.ndarray

    @contextmanager
    def reopened(self) -> Iterator[SaveGuest]:
        with mock.patch("saverestore.guest.x86.pv.P2m", p2m_at(self.p2m_frame_pfns)):
            guest = opened(self.handles, self.domid)
        yield guest
        guest.close()


class XenMaker:
    """The lab's guest of one kind, booted once and kept until `close`: paused, but for the test that has it."""

    def __init__(self, kind: str) -> None:
        self.name = f"xen-{kind}"
        self._lab = Guest(f"contract-{kind}", kind, 1, memory_mib=128)

    @contextmanager
    def running(self) -> Iterator[SaveGuest]:
        self._lab.wake()
        if not self._lab.is_running():
            self._lab.destroy()
            self._lab.create(pages=256, rate=500)
        try:
            with open_handles() as self._handles:
                guest = self._guest = opened(self._handles, self._lab.domid)
                yield guest
                guest.close()
        finally:
            self._lab.rest()

    def close(self) -> None:
        self._lab.destroy()

    def is_running(self) -> bool:
        return self._lab.is_running()

    @contextmanager
    def empty(self) -> Iterator[EmptyDomain]:
        handles = self._handles
        original = domains.config_of(handles, domains.find(handles, self._lab.name))
        fresh_uuid = uuid.uuid4()
        raw = {**original.raw, "c_info": {**original.raw["c_info"], "uuid": str(fresh_uuid)}}
        described = config.parse(json.dumps(raw).encode()).replaced(name="contract-copy")
        with ExitStack() as undo:
            fresh = bare.create(handles, described)
            undo.callback(bare.destroy, handles, fresh.domid, fresh_uuid)
            info = handles.xen.domain(fresh.domid)
            guest = HvmRestore(handles, info) if info.hvm else PvRestore(handles, info)
            undo.callback(guest.close)
            found = EmptyXenDomain(guest, fresh.channels)
            found.handles, found.domid = handles, fresh.domid
            frames = [r.frames for r in self._guest.memory_records() if isinstance(r, X86PvP2mFrames)]
            found.p2m_frame_pfns = np.concatenate([np.empty(0, dtype=np.uint64), *frames])
            yield found


def makers() -> list[KeepingMaker]:
    return [XenMaker("pv"), XenMaker("pvh")]
