"""One save of a domain at a time, one restore of a UUID or name: lock files, given back when their holder dies."""

from __future__ import annotations

import contextlib
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
HELD = (errno.EWOULDBLOCK, errno.EACCES)
"""What flock(2) says of a lock that another process holds."""


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
    with held(_of_uuid(domain_uuid), busy, wait_s=wait_s):
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


def restored_by(domain_uuid: uuid.UUID) -> str | None:
    """The process, for people, that restores a domain with this UUID; None when none does, as far as can be seen."""
    try:
        descriptor = os.open(_path(_of_uuid(domain_uuid)), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # Shared, so that two who look do not see each other.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return _holder(descriptor) if error.errno in HELD else None
    else:
        return None
    finally:
        os.close(descriptor)


@contextmanager
def held(name: str, busy: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of this name inside this block. DomainError, "`busy` by process N", when another has it.

    `wait_s`: how long it is waited for.
    """
    path = _path(name)
    try:
        LOCK_DIR.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TransportError(
            f"{path}: {error.strerror}; are you root?", name=name_of_errno(error.errno)
        ) from error
    try:
        _lock(descriptor, path, busy, time.monotonic() + wait_s)
        with contextlib.suppress(OSError):  # /run may be full, and the number is for messages alone
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        yield
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
    finally:
        # The file stays: removing it would let two processes hold locks on different files of this name.
        os.close(descriptor)


def _path(name: str) -> Path:
    return LOCK_DIR / f"{name}.lock"


def _of_uuid(domain_uuid: uuid.UUID) -> str:
    return f"restore-{domain_uuid}"


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "?"


def _lock(descriptor: int, path: Path, busy: str, until: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in HELD:
                raise TransportError(f"{path}: {error.strerror}") from error
            if time.monotonic() >= until:
                raise DomainError(
                    f"{busy} by process {_holder(descriptor)}", name=ErrorName.DOMAIN_BUSY
                ) from error
        else:
            return
        time.sleep(LOOK_S)
