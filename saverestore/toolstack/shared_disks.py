"""Disks that two hosts see, for a domain that moves between them.

Both hosts open a disk by the same path. That it is the same disk there cannot be proved from outside; what can be
compared is its length and the identity of what is on it: the UUID of a file system or partition table, as blkid(8)
finds it. And what one host has written must be on the disk before the other one reads.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from saverestore.errors import DomainError, ErrorName
from saverestore.toolstack import disks
from saverestore.toolstack.config import DEVICE_LISTS, GuestConfig
from saverestore.toolstack.disks import SYS_BLOCK

MOVED = ("disks", "nics", "vfbs", "vkbs", "channels")
"""Kinds of devices that are attached anew at the other host, from the configuration alone."""

BLKID = ("blkid", "-p", "-s", "UUID", "-s", "PTUUID", "-o", "value")
BLKID_TIMEOUT_S = 20.0
IN_FLIGHT_TIMEOUT_S = 30.0
LOOK_S = 0.01


@dataclass(frozen=True)
class SharedDisk:
    """`name`: in the guest, such as xvda. `bytes`: -1 where it cannot be looked at. `mark`: "" where it has none."""

    name: str
    path: str
    bytes: int
    mark: str


def unmovable(config: GuestConfig) -> list[str]:
    """What of a domain's devices cannot move to another host: a line each, for people."""
    found = [
        f"a {name}" for key, name in DEVICE_LISTS.items() if key not in MOVED and (config.raw.get(key) or [])
    ]
    for number, disk in enumerate(config.raw.get("disks") or []):
        form = str(disk.get("format") or "raw")
        if form not in ("raw", "empty", "unknown"):
            # The source's device model writes to such a file when it closes it, and the other one runs already.
            found.append(f"disk {disk.get('vdev') or number} of the format {form}")
    return found


def check_movable(config: GuestConfig) -> None:
    """DomainError, with all of it, where a domain has devices that cannot move. See `unmovable`."""
    if found := unmovable(config):
        raise DomainError(
            f"{config.name} has {', '.join(found)}, which cannot be migrated; no changes were made",
            name=ErrorName.MIGRATION_UNSUPPORTED,
        )


def of_config(config: GuestConfig) -> list[SharedDisk]:
    """The disks that this host would serve, from a file or block device, as they are seen here."""
    return [
        SharedDisk(name, path, _length(path), _mark(path))
        for name, path, disk in disks.served(config)
        if not disk.get("script")
    ]


def different(
    config: GuestConfig, names: Sequence[str], lengths: Sequence[int], marks: Sequence[str]
) -> list[str]:
    """Which of the disks that the other host described are something else here: a line each, for people.

    A disk that one of the hosts cannot look at, or that has no mark, is not taken for another one.
    """
    there = {name: (length, mark) for name, length, mark in zip(names, lengths, marks, strict=True)}
    found = []
    for disk in of_config(config):
        length, mark = there.get(disk.name, (-1, ""))
        if -1 not in (length, disk.bytes) and length != disk.bytes:
            found.append(
                f"disk {disk.name}: {disk.path} has {disk.bytes} bytes here, and {length} at the source"
            )
        elif mark and disk.mark and mark != disk.mark:
            found.append(f"disk {disk.name}: {disk.path} holds {disk.mark} here, and {mark} at the source")
    return found


def flush(config: GuestConfig) -> None:
    """All that was written to the disks is on them, when this returns. The domain must be suspended.

    DomainError, naming the disk, when that fails or takes longer than IN_FLIGHT_TIMEOUT_S.
    """
    for name, path in disks.written(config):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
                _await_writes(os.fstat(descriptor))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DomainError(
                f"disk {name}: what was written to {path} cannot be flushed: {error.strerror or error}",
                name=ErrorName.DISKS_UNFLUSHED,
            ) from error


def _await_writes(status: os.stat_result) -> None:
    """Until a block device has done what a backend of Xen has asked it for, past the page cache.

    The counters are those of reads and of writes under way (kernel, Documentation/block/stat.rst).
    """
    if not stat.S_ISBLK(status.st_mode):
        return
    counters = SYS_BLOCK / f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}" / "inflight"
    deadline = time.monotonic() + IN_FLIGHT_TIMEOUT_S
    while int(counters.read_text().split()[1]):
        if time.monotonic() > deadline:
            raise OSError(f"writes are still under way after {IN_FLIGHT_TIMEOUT_S:g} s")
        time.sleep(LOOK_S)


def _length(path: str) -> int:
    try:
        return disks.length_of(path)
    except OSError:
        return -1


def _mark(path: str) -> str:
    """The UUID of what is on it. Empty where there is none, or where it cannot be had."""
    environment: dict[str, Any] = {**os.environ, "LC_ALL": "C"}
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            [*BLKID, path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=BLKID_TIMEOUT_S,
            check=False,
            env=environment,
        )
        return " ".join(done.stdout.decode("ascii", "replace").split())
    return ""
