"""What an operation needs of a toolstack: who knows a domain's devices, and takes them away with it; who makes one.

Two there are: `bare`, libxenctrl and xenstore alone, for domains without devices; and `libxl`, for whatever
`xl create` made. `choice` chooses.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Protocol

from saverestore.guest.ports import Channels, RestoredPages
from saverestore.toolstack.config import GuestConfig
from saverestore.toolstack.device_model import DeviceModel
from saverestore.toolstack.domains import Domain


class Toolstack(Protocol):
    """See above. Opened on a host, closed by whoever opened it."""

    @property
    def name(self) -> str:
        """ "bare" or "libxl"."""

    def config_of(self, domain: Domain) -> GuestConfig:
        """The domain's configuration as an image carries it, up to date. DomainError when there is none to be had."""

    def unsupported_devices(self, domain: Domain) -> list[str]:
        """Devices of the domain that this toolstack could not bring back, for people."""

    def device_model_of(self, domain: Domain) -> DeviceModel | None:
        """The domain's device model, if it has one. DomainError when it has one that cannot be saved."""

    def destroy(self, domain: Domain) -> None:
        """Destroy the domain and all that belongs to it. XenError when that fails."""

    def close(self) -> None:
        """Twice is fine."""


@dataclass(frozen=True)
class FreshDomain:
    """A domain just created, paused. `is_built`: it has memory and its rings already; else it is empty."""

    domid: int
    channels: Channels
    is_built: bool = False


class Maker(Protocol):
    """Makes domains that this process fills."""

    def check_host(self) -> None:
        """DomainError when this host is none that it can make domains on."""

    def create(self, config: GuestConfig) -> FreshDomain:
        """On any error there is none."""

    def connect(self, fresh: FreshDomain, config: GuestConfig, pages: RestoredPages) -> None:
        """It is filled: connect it with all that is not yet. It stays paused."""

    def unpause(self, domid: int) -> None:
        """Let it run."""

    def destroy(self, domid: int, domain_uuid: uuid.UUID) -> None:
        """Destroy it after all, and what belongs to it."""
