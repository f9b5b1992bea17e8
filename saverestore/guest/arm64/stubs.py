"""Running a stub on a domain's own vCPUs: scratch pages, contexts, waiting, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from enum import Enum
from types import TracebackType
from typing import Self

import numpy as np

from pyxc import Mapping, arm64
from pyxc import memory as xen_memory
from saverestore.errors import DomainError, ErrorName
from saverestore.guest.arm64 import layout, vcpu
from saverestore.guest.arm64.vcpu import Context
from saverestore.guest.common.handles import Handles
from saverestore.guest.ports import U8, U64
from saverestore.interrupts import shield

TIMEOUT_S = 60.0
POLL_S = 0.005


class Piece(Enum):
    """The stubs, by their names in stub.S without the version of the GIC."""

    SAVE = "save_v{gic}"
    LOAD = "load_v{gic}"
    EVENT = "event"
    VECTORS = "vectors"


def code_of(piece: Piece, gic: int) -> bytes:
    """The machine code. DomainError where it was not built: on another architecture."""
    try:
        from saverestore import _arm64_stubs
    except ImportError as error:
        raise DomainError(
            "this installation cannot save or restore arm64 domains: it was made without the code that their "
            f"processors have to run ({error}); install it again on the arm64 host, with a C compiler",
            name=ErrorName.INSTALLATION_INCOMPLETE,
        ) from error
    size = _arm64_stubs.ffi.new("size_t *")
    name = piece.value.format(gic=gic)
    start = _arm64_stubs.lib.stub_piece(name.encode(), size)
    if start == _arm64_stubs.ffi.NULL:
        raise DomainError(f"there is no stub {name!r}", name=ErrorName.INSTALLATION_INCOMPLETE)
    return bytes(_arm64_stubs.ffi.buffer(start, size[0]))


def get_context(handles: Handles, domid: int, number: int) -> Context:
    """A vCPU's context."""
    return Context(**vars(arm64.vcpu_context(handles.xen, domid, number)))


def set_context(handles: Handles, domid: int, number: int, context: Context) -> None:
    """Set it."""
    arm64.set_vcpu_context(handles.xen, domid, number, arm64.VcpuContext(**vars(context)))


def scratch_gfns(nr_vcpus: int) -> U64:
    """All frames that stubs need, as an array."""
    return np.array(layout.scratch_gfns(nr_vcpus), dtype=np.uint64)


class Scratch:
    """Pages given to a domain for stubs to run in; taken away again by `close`. The guest's own are never touched."""

    def __init__(self, handles: Handles, domid: int, nr_vcpus: int, gic: int) -> None:
        self._handles = handles
        self._domid = domid
        self._gic = gic
        self._gfns = scratch_gfns(nr_vcpus)
        self._mapping: Mapping | None = None
        with shield():
            xen_memory.populate(handles.xen, domid, self._gfns)
            try:
                self._mapping = handles.memory.map(domid, self._gfns, writable=True)
            except BaseException:
                xen_memory.release(handles.xen, domid, self._gfns)
                raise

    @property
    def _pages(self) -> U8:
        assert self._mapping is not None, "used after close"
        return self._mapping.pages

    def data(self, number: int) -> U8:
        """A vCPU's data page."""
        page: U8 = self._pages[layout.data_gfn(number) - layout.SCRATCH_GFN]
        return page

    def run(
        self,
        piece: Piece,
        contexts: Iterable[Context],
        on: Iterable[int],
        start: Callable[[], None],
        flags: Callable[[int], int] = lambda number: 0,
    ) -> None:
        """Have the vCPUs `on` run a stub, the others being taken down; `start` makes the domain run.

        Paused when this returns, and when it raises. DomainError when a vCPU met an exception, or did not end.
        """
        wanted = set(on)
        self._copy(0, code_of(piece, self._gic))
        self._copy(1, code_of(Piece.VECTORS, self._gic))
        arm64.flush_caches(self._handles.xen, self._domid, layout.SCRATCH_GFN, len(self._gfns))
        with shield():
            for number, context in enumerate(contexts):
                begun = vcpu.into_stub(context, number, self._gic, flags(number), run=number in wanted)
                set_context(self._handles, self._domid, number, begun)
            start()
            try:
                ended = wait_for_stub(self._handles, self._domid, wanted)
            finally:
                self._handles.xen.pause(self._domid)
            arm64.flush_caches(self._handles.xen, self._domid, layout.SCRATCH_GFN, len(self._gfns))
        for number, context in ended.items():
            if context.verdict != vcpu.DONE:
                how = (
                    f"met an exception (ESR_EL1 {context.x[29]:#x}, at {context.elr_el1:#x})"
                    if context.verdict == vcpu.FAULTED
                    else f"did not end within {TIMEOUT_S:.0f} s (pc {context.pc:#x})"
                )
                raise DomainError(
                    f"domain {self._domid}: vCPU {number} {how} while its hidden registers were "
                    f"{'written' if piece is Piece.LOAD else 'read'}",
                    name=ErrorName.DOMAIN_UNREADABLE,
                )

    def _copy(self, page: int, code: bytes) -> None:
        into = self._pages[page]
        into[:] = 0
        into[: len(code)] = np.frombuffer(code, dtype=np.uint8)

    def unmap(self) -> None:
        """Unmap the pages and leave them there: whoever puts the domain right takes them away. Twice is fine."""
        mapping, self._mapping = self._mapping, None
        if mapping is not None:
            mapping.close()

    def close(self) -> None:
        """Unmap, and take the pages away. Twice is fine."""
        mapping, self._mapping = self._mapping, None
        if mapping is not None:
            mapping.close()
            release_scratch(self._handles, self._domid, self._gfns)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with shield():
            self.close()


def release_scratch(handles: Handles, domid: int, gfns: U64) -> None:
    """Take away those of the scratch pages that are there: whoever died may not have come to giving all of them."""
    mapping = handles.memory.map(domid, gfns, partial=True)
    there = gfns[mapping.errors == 0]
    mapping.close()
    if len(there):
        xen_memory.release(handles.xen, domid, there)


def wait_for_stub(handles: Handles, domid: int, on: Iterable[int]) -> dict[int, Context]:
    """Until all these vCPUs have ended their stub, or time is up: their contexts then."""
    deadline = time.monotonic() + TIMEOUT_S
    wanted = sorted(on)
    while True:
        contexts = {number: get_context(handles, domid, number) for number in wanted}
        ended = all(context.has_ended for context in contexts.values())
        if ended or time.monotonic() > deadline:
            return contexts
        time.sleep(POLL_S)
