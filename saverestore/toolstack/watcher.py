"""Starting `pysave-watch`: for a domain that has just been restored, or one that may suspend late."""

from __future__ import annotations

import os
import select
import subprocess
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


def start(domid: int, name: str) -> None:
    """Start a process that watches a domain, and outlives this one; returns when it watches.

    XenRefused, with what it said, when it could not.
    """
    try:
        read_fd, write_fd = os.pipe()
        try:
            try:
                pid = _start(name, ["--ready-fd", str(write_fd), str(domid)], keep=write_fd)
            finally:
                os.close(write_fd)
            answer = _answer(read_fd, pid)
        finally:
            os.close(read_fd)
    except OSError as error:
        raise XenRefused(f"{WATCHER} could not be started: {error}") from error
    if answer != READY:
        raise XenRefused(f"{WATCHER}: {answer or 'it ended without a word'} (see {log_path(name)})")


def start_for_late(domain: Domain) -> str:
    """Start a process that resumes a domain should it suspend in the next minutes: what it is, for people.

    It is not waited for: its log says how it fared. XenRefused when it could not be started.
    """
    try:
        pid = _start(domain.name, [LATE_OPTION, str(domain.info.uuid), str(domain.domid)])
    except OSError as error:
        raise XenRefused(f"{WATCHER} could not be started: {error}") from error
    return f"process {pid}"


def _start(name: str, words: list[str], *, keep: int | None = None) -> int:
    """The watcher, with nothing of this process but its log and a descriptor to keep: its pid."""
    log = log_path(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        return subprocess.Popen(
            [str(path_of(WATCHER)), *words],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            cwd="/",
            start_new_session=True,
            pass_fds=[] if keep is None else [keep],
        ).pid


def _answer(fd: int, pid: int) -> str:
    readable, _, _ = select.select([fd], [], [], READY_TIMEOUT_S)
    return (
        os.read(fd, 4096).decode(errors="replace")
        if readable
        else f"process {pid} has not begun to watch within {READY_TIMEOUT_S:.0f} s, but it may still"
    )
