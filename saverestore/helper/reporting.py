"""Log lines and progress, reported to libxl, which has `xl` print them."""

from __future__ import annotations

import contextlib
import logging
import time

from saverestore.engine.policy import RoundStats
from saverestore.helper.channel import Channel, LibxlGone
from saverestore.helper.messages import Level
from saverestore.words import counted

PROGRESS_EVERY_S = 0.5

LEVELS = ((logging.ERROR, Level.ERROR), (logging.WARNING, Level.WARN), (logging.INFO, Level.INFO))


def log_to(channel: Channel, log_level: str) -> None:
    """Send this process's log records to libxl, and nowhere else, from the level of that name on."""
    level = {"debug": logging.DEBUG, "info": logging.INFO}.get(log_level, logging.WARNING)
    logging.basicConfig(handlers=[ChannelHandler(channel)], format="%(message)s", level=level, force=True)
    if level > logging.DEBUG:
        # libxc also logs what is no error for us, such as pages that cannot be mapped just now.
        logging.getLogger("pyxc.libxc").setLevel(logging.WARNING)


class ChannelHandler(logging.Handler):
    """Sends log records to libxl. That nobody takes them is no failure of the work."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """One record as one LOG message."""
        level = next((ours for least, ours in LEVELS if record.levelno >= least), Level.DEBUG)
        with contextlib.suppress(LibxlGone):
            self._channel.log(level, self.format(record))


class ChannelProgress:
    """Phases as log lines, pages as PROGRESS messages, two a second at most. See Progress."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._what = "pages"
        self._done = 0
        self._total = 0
        self._reported_at = 0.0

    def phase(self, text: str) -> None:
        """A line."""
        self._channel.log(Level.INFO, text)

    def round(self, number: int, pages: int, *, final: bool) -> None:
        """Count anew."""
        self._what = "last round" if final else f"round {number}"
        self._done, self._total = 0, pages
        self._report()

    def round_done(self, stats: RoundStats) -> None:
        """A line."""
        dirty = "" if stats.dirty_pages is None else f", {stats.dirty_pages} dirty"
        sent = counted(stats.sent_pages, "page")
        self._channel.log(Level.INFO, f"round {stats.number}: {sent} sent{dirty}")

    def pages(self, done: int, written_bytes: int) -> None:
        """Reported when all are done, and otherwise every half second at most."""
        self._done += done
        if time.monotonic() - self._reported_at >= PROGRESS_EVERY_S or self._done == self._total:
            self._report()

    def _report(self) -> None:
        self._reported_at = time.monotonic()
        if self._total:
            self._channel.progress(self._what, self._done, self._total)

    def close(self) -> None:
        """Nothing is kept."""
