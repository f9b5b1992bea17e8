"""What a kind of domain is to those who save, restore and recover one. `guest/kinds.py` selects it.

save      suspender() ─► save_guest() ─► the engine
restore   check_static_records() ─► [bare: paging_pool_kib(), creation(), set_up()] ─► restore_guest() ─► the engine
recover   recover()
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from pyxc import DomainInfo
from pyxc.control import DomainConfig
from saverestore.guest.common.handles import Handles
from saverestore.guest.common.machine import Machine
from saverestore.guest.common.suspend import Suspender, Suspending
from saverestore.guest.ports import RestoreGuest, SaveGuest
from saverestore.kernels.page import PAGE_SIZE
from saverestore.stream.layout import DomainType
from saverestore.stream.records import Record


class Emulator(Protocol):
    """What is needed of a device model, which writes to the domain's memory behind the processors' backs."""

    def log_dirty(self, *, on: bool) -> None:
        """Have it mark the pages that it writes in the hypervisor's log-dirty, or no longer.

        DomainError when it does not.
        """


class Kind(ABC):
    """One kind of domain. It has no state: there is one instance of each."""

    domain_type: ClassVar[DomainType]
    """What the stream's domain header says."""

    libxl_types: tuple[str, ...]
    """What libxl's configuration calls it; the first is what it is called in a new one."""

    has_device_model: bool = False
    """Whether a QEMU runs beside it, whose state belongs to the domain."""

    # ---- saving ------------------------------------------------------------------------------------

    @abstractmethod
    def suspender(self, handles: Handles, domid: int, *, timeout_s: float | None = None) -> Suspender:
        """Who suspends such a domain, and resumes it in the way of its kind. Nothing is changed yet."""

    @abstractmethod
    def save_guest(
        self,
        handles: Handles,
        info: DomainInfo,
        suspending: Suspending,
        emulator: Emulator | None = None,
        *,
        gic_version: str | None = None,
    ) -> SaveGuest:
        """A domain to be saved. DomainError where it cannot be; it is as it was.

        `suspending`: of `suspender`, or whoever else suspends it. `emulator`: its device model; kinds that have none
        leave it alone. `gic_version`: see Machine.
        """

    @abstractmethod
    def has_log_dirty(self, *, shadow: bool) -> bool:
        """Whether the hypervisor can record which pages are written. `shadow`: this Xen has shadow paging."""

    def unsupported(self, configuration: Callable[[], Mapping[str, Any]]) -> list[str]:
        """Devices and state that are in no image although libxl restores the domain, for people.

        `configuration`: libxl's JSON, asked for only by kinds for which it matters.
        """
        return []

    # ---- restoring ---------------------------------------------------------------------------------

    @abstractmethod
    def check_static_records(
        self, handles: Handles, records: Sequence[Record], machine: Machine, *, check_cpu: bool
    ) -> None:
        """Compare an image's static records with this host: ImageError, naming what it lacks. No domain is needed.

        `check_cpu` False: another kind of processor will do, and is a warning.
        """

    @abstractmethod
    def paging_pool_kib(self, machine: Machine) -> int:
        """What Xen needs for such a domain's page tables besides its memory."""

    def set_up_paging_pool(self, handles: Handles, domid: int, machine: Machine) -> None:
        """Give a domain just created that, in whole pages. XenError when that fails."""
        pool_bytes = self.paging_pool_kib(machine) * 1024
        handles.xen.set_paging_pool_bytes(domid, -(-pool_bytes // PAGE_SIZE) * PAGE_SIZE)

    @abstractmethod
    def creation(self, machine: Machine) -> DomainConfig:
        """What the hypervisor is told when it creates such a domain."""

    @abstractmethod
    def set_up(self, handles: Handles, domid: int, machine: Machine) -> None:
        """Give a domain just created what its kind has, before it has any memory. XenError when that fails."""

    @abstractmethod
    def last_pfn(self, max_pages: int) -> int | None:
        """The last pfn that a domain of so many pages may have; None: a record of the image says it."""

    @abstractmethod
    def restore_guest(
        self,
        handles: Handles,
        info: DomainInfo,
        *,
        max_pages: int,
        gic_version: str | None = None,
        check_cpu: bool = True,
        is_built: bool = False,
    ) -> RestoreGuest:
        """A fresh domain to be filled.

        `check_cpu`: see `check_static_records`. `is_built`: whoever made it gave it memory and rings as to one that
        is to boot; only where libxl makes domains for us to fill.
        """

    # ---- after a save that was killed --------------------------------------------------------------

    @abstractmethod
    def recover(self, handles: Handles, info: DomainInfo) -> list[str]:
        """Make a domain run again whose saver died at any point: what was done, for people.

        Nothing for one that runs as it should. Twice is fine.
        """
