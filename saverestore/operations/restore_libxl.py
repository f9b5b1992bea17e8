"""Restoring by libxl: it creates the domain with its devices and runs our helper, which fills it."""

from __future__ import annotations

import time
from contextlib import suppress

from saverestore import interrupts
from saverestore.engine.progress import Progress, RestoreReport
from saverestore.errors import XenRefused
from saverestore.guest.x86.common import XenError
from saverestore.interrupts import shield
from saverestore.toolstack.config import GuestConfig
from saverestore.toolstack.libxl import LibxlToolstack
from saverestore.transport.fd import FdSource


def restore(
    toolstack: LibxlToolstack,
    source: FdSource,
    guest_config: GuestConfig,
    progress: Progress,
    *,
    paused: bool,
    force: bool,
) -> tuple[int, RestoreReport]:
    """Create a domain from what follows in `source`, libxl's stream: its domid. On any error there is none."""
    started = time.monotonic()
    progress.phase(f"creating {guest_config.name}")
    told_at = source.position()

    def tick() -> None:
        nonlocal told_at
        if (now := source.position()) != told_at:  # else libxl is at work on devices
            told_at = now
            progress.pages(0, now)

    domid, told = toolstack.restore(guest_config, source, tick, force=force)
    try:
        with shield():
            if not paused:
                toolstack.unpause(domid)
            interrupts.too_late()
    except BaseException as error:
        with suppress(XenError):
            toolstack.destroy_restored(domid)
            error.add_note("no domain was left behind")
        if isinstance(error, XenError):
            raise XenRefused(
                f"{guest_config.name} was restored, but could not be started: {error}"
            ) from error
        raise
    return domid, RestoreReport(time.monotonic() - started, told.stream_bytes, told.pages, told.records)
