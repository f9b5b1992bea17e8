"""Log lines and progress, on their way to `xl`."""

from __future__ import annotations

import contextlib
import logging
import time

from saverestore.engine.policy import RoundStats
from saverestore.helper.channel import Channel, LibxlGone
from saverestore.helper.messages import Level

PROGRESS_EVERY_S = 0.5

LEVELS = ((logging.ERROR, Level.ERROR), (logging.WARNING, Level.WARN), (logging.INFO, Level.INFO))


class ChannelHandler(logging.Handler):
    """Gives log records to libxl. That nobody takes them is no failure of the work."""

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
        self._told_at = 0.0

    def phase(self, text: str) -> None:
        """A line."""
        self._channel.log(Level.INFO, text)

    def round(self, number: int, pages: int, *, final: bool) -> None:
        """Count anew."""
        self._what = "last round" if final else f"round {number}"
        self._done, self._total = 0, pages
        self._tell()

    def round_done(self, stats: RoundStats) -> None:
        """A line."""
        dirty = "" if stats.dirty_pages is None else f", {stats.dirty_pages} written meanwhile"
        self._channel.log(Level.INFO, f"round {stats.number}: {stats.sent_pages} pages sent{dirty}")

    def pages(self, done: int, written_bytes: int) -> None:
        """Told when all are done, or when the last telling is a while ago."""
        self._done += done
        if time.monotonic() - self._told_at >= PROGRESS_EVERY_S or self._done == self._total:
            self._tell()

    def _tell(self) -> None:
        self._told_at = time.monotonic()
        if self._total:
            self._channel.progress(self._what, self._done, self._total)

    def close(self) -> None:
        """Nothing is kept."""
