"""One save of a domain at a time: a lock file a domain, given back by the kernel when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from saverestore.errors import DomainError, ErrorName, TransportError, name_of_errno

if TYPE_CHECKING:
    from saverestore.toolstack.domains import Domain

LOCK_DIR = Path("/run/pysave")


@contextmanager
def locked(domain: Domain) -> Iterator[None]:
    """Hold the domain's lock inside this block. DomainError when another process has it, with its number."""
    with held(f"domain-{domain.domid}", f"{domain} is being saved, or recovered,"):
        yield


@contextmanager
def held(name: str, busy: str) -> Iterator[None]:
    """Hold the lock of this name inside this block. DomainError, "`busy` by process N", when another has it."""
    path = LOCK_DIR / f"{name}.lock"
    try:
        LOCK_DIR.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TransportError(
            f"{path}: {error.strerror}; are you root?", name=name_of_errno(error.errno)
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise TransportError(f"{path}: {error.strerror}") from error
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            raise DomainError(f"{busy} by process {holder or '?'}", name=ErrorName.DOMAIN_BUSY) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
        os.ftruncate(descriptor, 0)
    finally:
        # The file stays: removing it would let two processes hold locks on different files of this name.
        os.close(descriptor)
