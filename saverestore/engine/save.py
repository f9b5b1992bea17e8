"""Saving a domain's memory and state as one libxc stream: the story of one image, phase by phase."""

from __future__ import annotations

from saverestore.engine.progress import Progress, SaveReport
from saverestore.engine.session import SaveSession
from saverestore.engine.settings import SaveSettings
from saverestore.guest.ports import SaveGuest
from saverestore.stream.trailer import TrailerBuffer
from saverestore.transport.base import ByteSink


def save(
    guest: SaveGuest,
    sink: ByteSink,
    settings: SaveSettings,
    progress: Progress | None = None,
    report: SaveReport | None = None,
    *,
    trailer: TrailerBuffer | None = None,
) -> SaveReport:
    """Write `guest` to `sink` as one libxc stream, from image header to END, and then `trailer`.

    When it returns, the guest is suspended, log-dirty is off, and nothing slows it down: the caller decides what
    becomes of it. When it raises, log-dirty is off and the guest runs as before.
    What was done goes into `report` while it is done, so it is known of a save that fails, too.
    """
    with SaveSession(guest, sink, settings, progress, report) as session:
        write_up_to_end(session, live=settings.live)
        session.end(trailer)
    return session.report


def write_up_to_end(session: SaveSession, *, live: bool) -> None:
    """Everything of an image but its end: the guest is suspended afterwards, and its state is written."""
    session.begin()
    if live:
        session.send_rounds()
    session.suspend()
    session.send_last_round()
    session.write_state()
