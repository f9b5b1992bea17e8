"""Starting `pyxc-watch` for a domain that has just been restored."""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path

from saverestore.errors import XenRefused
from saverestore.toolstack.programs import WATCHER, path_of

LOG_DIR = Path("/var/log/xen")
READY = "ready"
"""What the watcher writes to its --ready-fd when it watches; anything else is an error's text."""

READY_TIMEOUT_S = 60.0


def log_path(name: str) -> Path:
    """Where the watcher of a domain with this name writes what it does."""
    return LOG_DIR / f"pyxc-watch-{name.replace('/', '_')}.log"


def start(domid: int, name: str) -> None:
    """Start a process that watches a domain, and outlives this one; returns when it watches.

    XenRefused, with what it said, when it could not.
    """
    log = log_path(name)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        read_fd, write_fd = os.pipe()
        try:
            try:
                with log.open("ab") as sink:
                    subprocess.Popen(
                        [str(path_of(WATCHER)), "--ready-fd", str(write_fd), str(domid)],
                        stdin=subprocess.DEVNULL,
                        stdout=sink,
                        stderr=sink,
                        cwd="/",
                        start_new_session=True,
                        pass_fds=[write_fd],
                    )
            finally:
                os.close(write_fd)
            answer = _answer(read_fd)
        finally:
            os.close(read_fd)
    except OSError as error:
        raise XenRefused(f"{WATCHER} could not be started: {error}") from error
    if answer != READY:
        raise XenRefused(f"{WATCHER}: {answer or 'it ended without a word'} (see {log})")


def _answer(fd: int) -> str:
    readable, _, _ = select.select([fd], [], [], READY_TIMEOUT_S)
    return (
        os.read(fd, 4096).decode(errors="replace")
        if readable
        else f"no word of it in {READY_TIMEOUT_S:.0f} s"
    )
