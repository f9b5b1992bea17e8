"""The handles that everything which works on a domain needs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pyxc import ForeignMemory, Xen, XenStore
from pyxc import XenError as XenError  # for `operations` too, which catches it and knows nothing else of pyxc
from pyxc import built_for as built_for  # for --version
from pyxc.process import keep_freed_memory


@dataclass(frozen=True)
class Handles:
    """The libraries' handles, opened once and shared by everything that works on a domain."""

    xen: Xen
    memory: ForeignMemory
    store: XenStore


@contextmanager
def open_handles(*, process_ends: bool = False) -> Iterator[Handles]:
    """Everything a save or restore needs of Xen, opened once and closed at the end of the block.

    `process_ends`: soon after the block. Then closing is left to that, and so is unmapping, where it may be; see
    `ForeignMemory`. What else costs time at the end is put off as well.
    """
    if process_ends:
        keep_freed_memory()
        gc.freeze()  # what is loaded by now: or all of it is looked through, time and again
        yield Handles(Xen(), ForeignMemory(), XenStore())
        return
    with Xen() as xen, ForeignMemory() as memory, XenStore() as store:
        yield Handles(xen, memory, store)
