"""One save of a domain at a time, one restore of a UUID or name: lock files, given back when their holder dies."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from saverestore.errors import DomainError, ErrorName, TransportError, name_of_errno

if TYPE_CHECKING:
    from saverestore.toolstack.domains import Domain

LOCK_DIR = Path("/run/pysave")
LOOK_S = 0.2


@contextmanager
def locked(domain: Domain) -> Iterator[None]:
    """Hold the domain's lock inside this block. DomainError when another process has it, with its number."""
    with held(f"domain-{domain.domid}", f"{domain} is being saved, or recovered,"):
        yield


@contextmanager
def restoring(domain_uuid: uuid.UUID, name: str | None, *, wait_s: float = 0.0) -> Iterator[None]:
    """Inside this block no other restore makes a domain with this UUID or name. DomainError when one does.

    From before it is looked whether they are free until the domain can be found: or two restores of one image find
    both free, and make two domains of one. `name`: None where somebody else sees to that. `wait_s`: see `held`.
    """
    busy = f"a domain with the UUID {domain_uuid} is being restored"
    with held(f"restore-{domain_uuid}", busy, wait_s=wait_s):
        if name is None:
            yield
            return
        # A name may have any characters and any length.
        with held(
            f"restore-name-{hashlib.sha256(name.encode()).hexdigest()[:32]}",
            f"a domain called {name!r} is being restored",
            wait_s=wait_s,
        ):
            yield


@contextmanager
def held(name: str, busy: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of this name inside this block. DomainError, "`busy` by process N", when another has it.

    `wait_s`: how long it is waited for.
    """
    path = LOCK_DIR / f"{name}.lock"
    try:
        LOCK_DIR.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TransportError(
            f"{path}: {error.strerror}; are you root?", name=name_of_errno(error.errno)
        ) from error
    try:
        _lock(descriptor, path, busy, time.monotonic() + wait_s)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
        os.ftruncate(descriptor, 0)
    finally:
        # The file stays: removing it would let two processes hold locks on different files of this name.
        os.close(descriptor)


def _lock(descriptor: int, path: Path, busy: str, until: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise TransportError(f"{path}: {error.strerror}") from error
            if time.monotonic() >= until:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
                raise DomainError(f"{busy} by process {holder or '?'}", name=ErrorName.DOMAIN_BUSY) from error
        else:
            return
        time.sleep(LOOK_S)
