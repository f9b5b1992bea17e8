"""The one place that knows which kind a domain or an image is, and what this host is for all of them.

    this_host() ─┬─► of_domain(), of_config(), of_image() ─► Kind: saves, restores and recovers one domain
                 └─► what every domain of this host has in common

Nobody else imports `guest.x86` or `guest.arm64`, or asks for the architecture. The modules of a kind are loaded when
it is asked for: those of the other architecture never are, as that would be a tenth of what a save takes to start.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from typing import ClassVar

import pyxc
from pyxc import DomainInfo
from saverestore.errors import ErrorName, ImageError
from saverestore.guest.common.handles import Handles
from saverestore.guest.common.kind import Emulator as Emulator
from saverestore.guest.common.kind import Kind as Kind
from saverestore.stream.layout import DomainType


class Architecture(ABC):
    """What the architecture of a host decides about saving and restoring domains."""

    name: ClassVar[str]
    """For people."""

    domain_types: ClassVar[frozenset[DomainType]]
    """What can run here."""

    libxl_restores: ClassVar[bool]
    """Whether libxl itself restores domains here: it then runs a save helper, and `xl restore` exists."""

    wall_clock_stops: ClassVar[bool]
    """Whether a restored guest's wall clock stands where it was saved: Linux asks Xen for the time on x86 only."""

    # ---- which kind --------------------------------------------------------------------------------

    @abstractmethod
    def of_domain(self, handles: Handles, info: DomainInfo) -> Kind:
        """The kind of a domain that exists."""

    @abstractmethod
    def of_config(self, libxl_type: str) -> Kind:
        """The kind of domain that a configuration with this type ("pv", "pvh", "hvm") makes here."""

    def of_image(self, domain_type: DomainType, libxl_type: str) -> Kind:
        """The kind of an image's domain. ImageError when it cannot run here, or its two halves contradict each other.

        `domain_type`: as the stream says; `libxl_type`: as the configuration says.
        """
        self.check_architecture(domain_type)
        kind = self.of_config(libxl_type)
        if domain_type != kind.domain_type or libxl_type not in kind.libxl_types:
            raise ImageError(
                f"the configuration says {libxl_type}, the stream holds an {domain_type.name} domain"
            )
        return kind

    def check_architecture(self, domain_type: DomainType) -> None:
        """ImageError when the image's domain ran on another architecture than this host's."""
        if domain_type not in self.domain_types:
            its_own = next(host.name for host in HOSTS if domain_type in host.domain_types)
            raise ImageError(
                f"the image holds an {its_own} domain, and this is an {self.name} host; no changes were made",
                name=ErrorName.HOST_INCOMPATIBLE,
            )

    # ---- what a killed save leaves besides the domain ----------------------------------------------

    @abstractmethod
    def needs_recovery(self, domid: int, domain_uuid: uuid.UUID) -> bool:
        """Whether a save was killed that had changed the domain's processors: it must not be unpaused as it is."""

    @abstractmethod
    def forget(self, domid: int, domain_uuid: uuid.UUID) -> None:
        """The domain is destroyed: remove what was written down for its recovery."""


class X86(Architecture):
    """PV, PVH and HVM domains."""

    name = "x86"
    domain_types = frozenset({DomainType.X86_PV, DomainType.X86_HVM})
    libxl_restores = True
    wall_clock_stops = False

    def of_domain(self, handles: Handles, info: DomainInfo) -> Kind:
        """By what Xen says, and whether it has a device model: by libxl's word, or by xenstore's nodes for one."""
        if not info.hvm:
            return self.of_config("pv")
        if recorded := handles.store.read(f"/libxl/{info.domid}/type"):
            has_device_model = recorded == "hvm"
        else:
            has_device_model = bool(handles.store.list(f"/local/domain/0/device-model/{info.domid}"))
        return self.of_config("hvm" if has_device_model else "pvh")

    def of_config(self, libxl_type: str) -> Kind:
        """See Architecture."""
        from saverestore.guest.x86 import kinds

        return {"pv": kinds.PV, "hvm": kinds.HVM}.get(libxl_type, kinds.PVH)

    def needs_recovery(self, domid: int, domain_uuid: uuid.UUID) -> bool:
        """No: a save changes nothing of one."""
        return False

    def forget(self, domid: int, domain_uuid: uuid.UUID) -> None:
        """Nothing is written down."""


class Arm64(Architecture):
    """One kind of domain, and a journal of what saves change of its processors."""

    name = "arm64"
    domain_types = frozenset({DomainType.ARM64})
    libxl_restores = False
    wall_clock_stops = True

    def of_domain(self, handles: Handles, info: DomainInfo) -> Kind:
        """There is one."""
        return self.of_config("")

    def of_config(self, libxl_type: str) -> Kind:
        """There is one."""
        from saverestore.guest.arm64.kind import ARM64

        return ARM64

    def needs_recovery(self, domid: int, domain_uuid: uuid.UUID) -> bool:
        """Whether there is a journal."""
        from saverestore.guest.arm64 import journal

        return journal.is_there(domid, domain_uuid)

    def forget(self, domid: int, domain_uuid: uuid.UUID) -> None:
        """The journal."""
        from saverestore.guest.arm64 import journal

        journal.remove(domid, domain_uuid)


X86_HOST = X86()
ARM64_HOST = Arm64()
HOSTS: tuple[Architecture, ...] = (X86_HOST, ARM64_HOST)


def this_host() -> Architecture:
    """The one that the running Xen is for."""
    return ARM64_HOST if pyxc.ARCHITECTURE == pyxc.ARM64 else X86_HOST
