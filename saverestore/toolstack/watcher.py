"""Starting `pysave-watch`: for a domain that is being restored, or one that may suspend late."""

from __future__ import annotations

import os
import select
import subprocess
from contextlib import suppress
from pathlib import Path

from saverestore.errors import XenRefused
from saverestore.toolstack.domains import Domain
from saverestore.toolstack.programs import WATCHER, path_of

LOG_DIR = Path("/var/log/xen")
READY = "ready"
"""What the watcher writes to its --ready-fd when it watches; anything else is an error's text."""

READY_TIMEOUT_S = 60.0

LATE_OPTION = "--late"
"""Of the watcher: DOMAIN is to be resumed should it suspend, if it still has this UUID."""


def log_path(name: str) -> Path:
    """Where the watcher of a domain with this name writes what it does."""
    return LOG_DIR / f"pysave-watch-{name.replace('/', '_')}.log"


class Watcher:
    """A process that will watch a domain of this name, and outlive this one.

    It is started before there is a domain, as it takes as long to start as some domains take to fill: `watch` hands
    it the domain's number. Where that does not come to be, `close` ends it, and so does the end of this process.
    """

    def __init__(self, name: str) -> None:
        """Start it; what prevents that is raised by `watch`."""
        self._name = name
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: int | None = None
        self._refused: OSError | None = None
        try:
            self._answers, write_fd = os.pipe()
            try:
                words = ["--ready-fd", str(write_fd), "--", name]
                self._process = _start(name, words, stdin=subprocess.PIPE, keep=write_fd)
            finally:
                os.close(write_fd)
        except OSError as error:
            self._refused = error

    def watch(self, domid: int) -> None:
        """Let it watch this domain; returns when it does. XenRefused, with what it said, when it could not."""
        try:
            answer = self._hand_over(domid)
        except OSError as error:
            raise XenRefused(f"{WATCHER} could not be started: {error}") from error
        if answer != READY:
            raise XenRefused(
                f"{WATCHER}: {answer or 'it ended without a message'} (see {log_path(self._name)})"
            )

    def _hand_over(self, domid: int) -> str:
        if self._process is None or self._answers is None:
            raise self._refused or OSError("it was closed")
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as pipe:  # its answer says why it has ended
            pipe.write(b"%d\n" % domid)
        return _answer(self._answers, self._process.pid)

    def close(self) -> None:
        """End it, unless it was given a domain."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        if self._answers is not None:
            os.close(self._answers)
        self._process, self._answers = None, None


def start_for_late(domain: Domain) -> str:
    """Start a process that resumes a domain should it suspend in the next minutes: what it is, for people.

    It is not waited for: its log says how it fared. XenRefused when it could not be started.
    """
    try:
        pid = _start(domain.name, [LATE_OPTION, str(domain.info.uuid), str(domain.domid)]).pid
    except OSError as error:
        raise XenRefused(f"{WATCHER} could not be started: {error}") from error
    return f"process {pid}"


def _start(
    name: str, words: list[str], *, stdin: int = subprocess.DEVNULL, keep: int | None = None
) -> subprocess.Popen[bytes]:
    """The watcher, with nothing of this process but its log, its input and a descriptor to keep."""
    log = log_path(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        return subprocess.Popen(
            [str(path_of(WATCHER)), *words],
            stdin=stdin,
            stdout=sink,
            stderr=sink,
            cwd="/",
            start_new_session=True,
            pass_fds=[] if keep is None else [keep],
        )


def _answer(fd: int, pid: int) -> str:
    readable, _, _ = select.select([fd], [], [], READY_TIMEOUT_S)
    return (
        os.read(fd, 4096).decode(errors="replace")
        if readable
        else f"process {pid} has not begun to watch within {READY_TIMEOUT_S:.0f} s, but it may still"
    )
