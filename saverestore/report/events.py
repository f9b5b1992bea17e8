"""What happens, while it happens, as lines of JSON for programs: into a file, a pipe or a descriptor.

docs/reference/report.md has the events. Who reads slowly or goes away never holds the work up: what cannot be written
at once is left out, and the next line says how many were.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import select
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from saverestore.engine.policy import RoundStats
from saverestore.engine.progress import Progress
from saverestore.errors import TransportError, UsageError, name_of_errno
from saverestore.report.facts import Facts

EVERY_S = 1.0
"""How often an event says how far a round is."""

LONGEST_LINE = select.PIPE_BUF
"""A pipe takes a line of that length as a whole, or not at all."""

TEXT_BYTES, NAME_BYTES = 2500, 400
"""How long a text, and a name, may be in a line, as JSON."""


class Events:
    """A `Progress` that writes lines, and passes everything on to another. `close` closes what it opened."""

    def __init__(self, fd: int, *, close_fd: bool) -> None:
        self._fd = fd
        self._close_fd = close_fd
        self._left_out = 0
        self._is_gone = False
        self._inner: Progress | None = None
        self._round: int | None = None
        self._pages: int | None = None
        self._done = 0
        self._printed_at = self._began_at = time.monotonic()

    @classmethod
    def open(cls, where: str) -> Events:
        """A file, to which lines are added and which is made with mode 0600; or the number of a descriptor.

        UsageError for a number that is none, or cannot be written to; TransportError when the file cannot be opened.
        """
        if where.isdecimal():
            try:
                flags = fcntl.fcntl(int(where), fcntl.F_GETFL)
            except (OSError, OverflowError) as error:
                raise UsageError(f"{where}: there is no such descriptor") from error
            if flags & os.O_ACCMODE == os.O_RDONLY:
                raise UsageError(f"{where}: this descriptor is not open for writing")
            return cls(int(where), close_fd=False)
        try:
            # A named pipe that is opened for writing only waits for its reader.
            how = os.O_RDWR | os.O_NONBLOCK if Path(where).is_fifo() else os.O_WRONLY
            fd = os.open(where, how | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TransportError(
                f"{where}: cannot be opened: {error.strerror}", name=name_of_errno(error.errno)
            ) from error
        return cls(fd, close_fd=True)

    def over(self, inner: Progress) -> Progress:
        """This, passing on to `inner`."""
        self._inner = inner
        return self

    def say(self, event: str, **more: Any) -> None:
        """One line, if it can be written at once."""
        if self._is_gone:
            return
        fields: dict[str, Any] = {"event": event, "at": _now(), **more}
        for key, room in (("domain", NAME_BYTES), ("text", TEXT_BYTES), ("error", TEXT_BYTES)):
            if isinstance(text := fields.get(key), str):
                fields[key] = _cut(text, room)
        if self._left_out:
            fields["left_out"] = self._left_out
        line = (json.dumps(fields) + "\n").encode()
        if len(line) > LONGEST_LINE or not self._takes_a_line():
            self._left_out += 1
            return
        try:
            os.write(self._fd, line)
            self._left_out = 0
        except BlockingIOError:
            self._left_out += 1
        except OSError:  # nobody reads any more, or the disk is full: no reason to give the work up
            self._is_gone = True

    def _takes_a_line(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(0))

    def end(self, facts: Facts) -> None:
        """The last event: how it ended. `facts`: those of a report."""
        keys = ("tool", "domain", "result", "exit_code", "error_name", "domain_state")
        downtime = facts.get("downtime")
        self.say(
            "end",
            **{key: facts[key] for key in keys},
            error=facts["error"],
            seconds=facts["seconds"]["total"],
            bytes=facts["bytes"]["stream"],
            downtime=downtime,
        )

    # ---- Progress

    def phase(self, text: str) -> None:
        """See Progress."""
        self.say("phase", text=text)
        if self._inner is not None:
            self._inner.phase(text)

    def round(self, number: int, pages: int, *, final: bool) -> None:
        """See Progress."""
        self._round, self._pages, self._done = number, pages, 0
        self.say("round", number=number, pages=pages, final=final)
        if self._inner is not None:
            self._inner.round(number, pages, final=final)

    def round_done(self, stats: RoundStats) -> None:
        """See Progress."""
        self.say(
            "round_done",
            number=stats.number,
            sent_pages=stats.sent_pages,
            dirty_pages=stats.dirty_pages,
            sent_bytes=stats.sent_bytes,
            seconds=stats.seconds,
            codecs={name: asdict(one) for name, one in stats.coded.items()},
        )
        if self._inner is not None:
            self._inner.round_done(stats)

    def pages(self, done: int, written_bytes: int) -> None:
        """See Progress."""
        self._done += done
        now = time.monotonic()
        if now - self._printed_at >= EVERY_S:
            self._printed_at = now
            self.say(
                "progress",
                round=self._round,
                done_pages=self._done,
                round_pages=self._pages,
                bytes=written_bytes,
                bytes_per_s=written_bytes / (now - self._began_at),
            )
        if self._inner is not None:
            self._inner.pages(done, written_bytes)

    def close(self) -> None:
        """See Progress: of who is passed on to. The last event may follow."""
        if self._inner is not None:
            self._inner.close()

    def close_file(self) -> None:
        """Nothing follows."""
        fd, self._fd, self._is_gone = self._fd, -1, True
        if fd >= 0 and self._close_fd:
            with contextlib.suppress(OSError):
                os.close(fd)


def _cut(text: str, room: int) -> str:
    """As much of its start as takes no more bytes than this in JSON: beyond ASCII a letter takes six or twelve."""
    if len(text) * 12 <= room:
        return text
    length = 0
    for at, letter in enumerate(text):
        length += len(json.dumps(letter)) - 2
        if length > room:
            return text[:at]
    return text


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
