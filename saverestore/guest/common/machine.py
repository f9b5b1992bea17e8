"""What a domain is built with, as its configuration says: all that creating one needs of it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """Memory in KiB; `paging_kib` is None where libxl would compute it.

    `timer_mode`, `tsc_mode`, `msr_relaxed`, `nested_virt`, `hap`: of x86. `gic_version`: of arm64, "v2", "v3", or
    None where libxl would take the host's.
    """

    uuid: uuid.UUID
    max_vcpus: int
    max_kib: int
    paging_kib: int | None
    hap: bool
    nested_virt: bool
    ssidref: int
    event_channels: int
    max_grant_frames: int
    max_maptrack_frames: int
    max_grant_version: int
    timer_mode: int
    tsc_mode: int
    msr_relaxed: bool
    gic_version: str | None
