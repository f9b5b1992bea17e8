"""The handles that everything which works on a domain needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pyxc import ForeignMemory, Xen, XenStore
from pyxc import XenError as XenError  # for `operations` too, which catches it and knows nothing else of pyxc

FORCE = "--force"
"""How a person has a domain restored on a processor of another kind all the same."""


@dataclass(frozen=True)
class Handles:
    """The libraries' handles, opened once and shared by everything that works on a domain."""

    xen: Xen
    memory: ForeignMemory
    store: XenStore


@contextmanager
def open_handles(*, process_ends: bool = False) -> Iterator[Handles]:
    """Everything a save or restore needs of Xen, opened once and closed at the end of the block.

    `process_ends`: soon after the block. Then unmapping is left to the kernel, where it may be; see `ForeignMemory`.
    """
    with Xen() as xen, ForeignMemory(process_ends=process_ends) as memory, XenStore() as store:
        yield Handles(xen, memory, store)
