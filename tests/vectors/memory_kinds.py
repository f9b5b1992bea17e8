"""A host whose every domain is one in memory: what restores it is given there, all else is as of the real kinds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from saverestore.guest.kinds import X86
from saverestore.guest.ports import RestoreGuest


class MemoryHost(X86):
    """See above. `guest`: the fresh domain that is to be filled, of whatever kind."""

    def __init__(self, guest: RestoreGuest) -> None:
        self.guest = guest

    def of_config(self, libxl_type: str) -> Any:
        kind = super().of_config(libxl_type)
        return SimpleNamespace(
            domain_type=kind.domain_type,
            libxl_types=kind.libxl_types,
            has_device_model=kind.has_device_model,
            last_pfn=kind.last_pfn,
            restore_guest=lambda *_, **__: self.guest,
        )
