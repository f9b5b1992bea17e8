"""What this host has promised to work that is under way: memory of domains that are being restored, room for images.

Who needs it looks whether it is there, and takes it much later, bit by bit. Two who look at once would both find the
last of it. So what one is promised stands in a file of its own until it has it:

    /run/pysave/memory-XXXXXXXX.promise    {"pid": 4711, …}    locked (flock) for as long as the promise holds

The kernel gives the lock back when its holder dies, so the promise ends with it; the next who looks removes the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saverestore.errors import TransportError, name_of_errno
from saverestore.toolstack import lock

WAIT_S = 10.0
"""For others who look and enter what they need: that takes them milliseconds."""

SUFFIX = ".promise"

Promise = dict[str, Any]


@contextmanager
def promised(kind: str, wanted: Promise, check: Callable[[list[Promise]], None]) -> Iterator[None]:
    """Inside this block `wanted` is promised. `check` gets what is promised to others, with their "pid", and raises
    where too little is left for it: then nothing is promised.

    `kind`: of what. Others of this kind neither look nor enter meanwhile. Also raises DomainError when that takes
    them longer than WAIT_S, and TransportError when /run/pysave cannot be written.
    """
    with lock.held(f"promises-{kind}", f"what is promised of {kind} is being looked at", wait_s=WAIT_S):
        check(_others(kind))
        path, descriptor = _entered(kind, wanted)
    try:
        yield
    finally:
        # The file first: a child that has inherited the descriptor holds the lock, too.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _entered(kind: str, wanted: Promise) -> tuple[Path, int]:
    try:
        path = lock.LOCK_DIR / f"{kind}-{os.urandom(8).hex()}{SUFFIX}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TransportError(f"{lock.LOCK_DIR}: {error.strerror}", name=name_of_errno(error.errno)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, json.dumps(wanted | {"pid": os.getpid()}).encode())
    except BaseException as error:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        if isinstance(error, OSError):
            raise TransportError(f"{path}: {error.strerror}", name=name_of_errno(error.errno)) from error
        raise
    return path, descriptor


def _others(kind: str) -> list[Promise]:
    """What is promised, without what was promised to the dead. The lock of this kind is held."""
    found = []
    try:
        paths = list(lock.LOCK_DIR.iterdir())  # glob is silent about a folder that it cannot read
    except OSError as error:
        raise TransportError(f"{lock.LOCK_DIR}: {error.strerror}", name=name_of_errno(error.errno)) from error
    for path in paths:
        if not (path.name.startswith(f"{kind}-") and path.suffix == SUFFIX):
            continue
        with contextlib.suppress(FileNotFoundError, ValueError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(json.load(file))
            else:
                path.unlink(missing_ok=True)
    return found
