"""Kinds of domains to try the contract on. In-memory ones here; real ones in `xen_makers.py`, see conftest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from saverestore.guest.ports import Channels, RestoreGuest, SaveGuest
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemoryRestore, MemorySave, empty_like


@dataclass
class EmptyDomain:
    """A domain fit to take an image of what `running` gives, and its event channels."""

    guest: RestoreGuest
    channels: Channels

    def reopened(self) -> AbstractContextManager[SaveGuest]:
        """The same domain, restored and still paused, to be read from. Only after `guest.complete`."""
        raise NotImplementedError


class GuestMaker(Protocol):
    """One kind of domain. All that is given must be closed and destroyed at the end of the block."""

    name: str

    def running(self) -> AbstractContextManager[SaveGuest]:
        """A running domain that is able to suspend."""

    def is_running(self) -> bool:
        """Whether the domain that `running` gave runs now: asked of whoever runs it, not of the port."""

    def empty(self) -> AbstractContextManager[EmptyDomain]:
        """A fresh domain. Called inside the block of `running`."""


class KeepingMaker(GuestMaker, Protocol):
    """One that keeps a domain from test to test."""

    def close(self) -> None:
        """Destroy what was kept."""


class EmptyMemoryDomain(EmptyDomain):
    @contextmanager
    def reopened(self) -> Iterator[SaveGuest]:
        assert isinstance(self.guest, MemoryRestore)
        yield MemorySave(self.guest.domain)


class MemoryMaker:
    """In-memory domains. At the end of a block, a buffer still held by anybody is a failure (BufferError)."""

    def __init__(self, name: str, *, log_dirty: bool = True) -> None:
        self.name = name
        self._log_dirty = log_dirty

    @contextmanager
    def running(self) -> Iterator[SaveGuest]:
        domain = self._domain()
        guest = MemorySave(domain, log_dirty=self._log_dirty)
        self._running = domain
        yield guest
        guest.close()
        assert guest.buffers.nr_open == 0
        domain.close()

    def _domain(self) -> MemoryDomain:
        if not self.name.startswith("memory-pvh"):
            domain = MemoryDomain.pv(3000, run_pages=512 if "runs" in self.name else 1)
        else:
            domain = MemoryDomain.pvh(3000, hole=range(1000, 1600))
        domain.balloon_out(domain.data_pfns()[-300:-100])
        return domain

    def is_running(self) -> bool:
        return not self._running.suspended

    @contextmanager
    def empty(self) -> Iterator[EmptyDomain]:
        guest = MemoryRestore(empty_like(self._running))
        yield EmptyMemoryDomain(guest, Channels(store_port=3, console_port=4))
        guest.close()
        assert guest.buffers.nr_open == 0
        guest.domain.close()


MEMORY_MAKERS: list[GuestMaker] = [
    MemoryMaker("memory-pvh"),
    MemoryMaker("memory-pv"),
    MemoryMaker("memory-pv-runs"),
    MemoryMaker("memory-pv-without-log-dirty", log_dirty=False),
]
