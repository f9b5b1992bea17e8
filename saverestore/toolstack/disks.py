"""What a domain's disks are, noted when it is suspended and compared before it runs again.

A guest keeps parts of its file systems in memory. Restored over disks that were written to meanwhile, it writes what
it remembers over what is there. What can be seen of a disk from outside:

    a file           its length, and when it was last written
    a block device   its length, and how much has been written to it since this host booted; its first part, where a
                     file system notes that it was mounted, for when the host has booted again, or is another
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import logging
import mmap
import os
import stat
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from saverestore.errors import Advice, DomainError, ErrorName, Remedy
from saverestore.toolstack.config import GuestConfig
from saverestore.toolstack.host_fit import is_served_here

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SYS_BLOCK = Path("/sys/dev/block")
SETTLED_DIR = Path("/var/lib/pysave")
SECTORS_WRITTEN = 6
"""The field of a block device's `stat` (kernel, Documentation/block/stat.rst)."""

LOG = logging.getLogger(__name__)

Disk = dict[str, Any]
COMPARED = ("bytes", "mtime_ns", "sectors_written")
COMPARED_LATER = ("bytes", "start")
"""The same when the host has booted since, or is another one."""

START_BYTES = 2 << 20
"""The first partition begins at 1 MiB."""


def served(config: GuestConfig) -> Iterator[tuple[str, str, Disk]]:
    """Its disks that this host serves from a file or block device: name in the guest, path, and libxl's fields."""
    for number, disk in enumerate(config.raw.get("disks") or []):
        path = str(disk.get("pdev_path") or "")
        if path.startswith("/") and is_served_here(disk):
            yield str(disk.get("vdev") or number), path, disk


def written(config: GuestConfig) -> list[tuple[str, str]]:
    """Name and path of those that can be written to."""
    return [(name, path) for name, path, disk in served(config) if is_written(disk)]


def is_written(disk: Disk) -> bool:
    """Whether the domain can write to it."""
    return str(disk.get("readwrite", 1)) != "0" and str(disk.get("is_cdrom", 0)) in ("0", "False")


def noted(config: GuestConfig) -> list[Disk]:
    """Its disks that can be written to, as they are now."""
    return [{"vdev": name, "path": path, **_facts(path)} for name, path in written(config)]


def _facts(path: str) -> Disk:
    """Empty where it cannot be looked at."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        # What NFS has in its cache may be a minute old, and is compared with the server's when a file is opened.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if stat.S_ISREG(status.st_mode):
            written = datetime.datetime.fromtimestamp(status.st_mtime, datetime.UTC)
            return {
                "bytes": status.st_size,
                "mtime_ns": status.st_mtime_ns,
                "written": written.isoformat(timespec="seconds"),
            }
        if stat.S_ISBLK(status.st_mode):
            return _facts_of_device(path, status.st_rdev)
    return {}


def _facts_of_device(path: str, number: int) -> Disk:
    length = length_of(path)
    counters = SYS_BLOCK / f"{os.major(number)}:{os.minor(number)}" / "stat"
    return {
        "bytes": length,
        "device": f"{os.major(number)}:{os.minor(number)}",
        "sectors_written": int(counters.read_text().split()[SECTORS_WRITTEN]),
        "boot": BOOT_ID.read_text().strip(),
        **start_of(path),
    }


def start_of(path: str) -> Disk:
    """SHA-256 of the first part of a block device. Empty where it cannot be read past the page cache.

    Xen's backend writes past it, too: what the cache has may be old.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            with mmap.mmap(-1, START_BYTES) as buffer:
                length = os.readv(descriptor, [buffer])
                return {"start": hashlib.sha256(buffer[:length]).hexdigest()}
        finally:
            os.close(descriptor)
    return {}


def length_of(path: str) -> int:
    """Of a file or block device, in bytes. OSError when it cannot be opened."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


def settle(domain_uuid: uuid.UUID, before: Sequence[Disk], *, folder: Path | None = None) -> None:
    """The domain is destroyed: note what its disks are now, as who served them may have written when it closed them.

    OSError when that cannot be written; then such a disk is taken for changed.
    """
    after = [{**disk, **_facts(str(disk.get("path")))} for disk in before]
    if after == list(before):
        return
    folder = folder or SETTLED_DIR
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"disks-{domain_uuid}.json"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"before": list(before), "after": after}))
    temporary.rename(path)


def changed(disks: Iterable[Disk], domain_uuid: uuid.UUID, *, folder: Path | None = None) -> list[str]:
    """Those of an image's disks that are not what they were when it was saved, for people; none: all are.

    A disk that is not there is not for here to find, nor one of which nothing is known that could be compared.
    """
    settled = _settled(domain_uuid, folder or SETTLED_DIR)
    found = []
    for disk in disks:
        now = _facts(str(disk.get("path")))
        as_saved = [disk, *(after for before, after in settled if before == disk)]
        differences = [_difference(one, now) for one in as_saved]
        if now and all(differences):
            found.append(f"disk {disk.get('vdev')}: {disk.get('path')} {differences[-1]}")
    return found


def used_by(config: GuestConfig, found: Iterable[Disk]) -> list[Disk]:
    """Those of an image's disks that a domain with this configuration has, by their paths."""
    paths = {path for _, path, _ in served(config)}
    return [disk for disk in found if disk.get("path") in paths]


def check(found: Iterable[Disk], domain_uuid: uuid.UUID, *, force: bool) -> None:
    """DomainError, naming them, when disks of an image have changed; with `force` a warning. See `changed`."""
    different = changed(found, domain_uuid)
    if not different:
        return
    fact = f"disks are not what they were when the domain was saved: {'; '.join(different)}"
    if not force:
        raise DomainError(
            fact,
            name=ErrorName.DISKS_CHANGED,
            remedies=[Advice(Remedy.RESTORE_OVER_CHANGED_DISKS)],
        )
    LOG.warning("%s; restored all the same, because of the request", fact)


def _settled(domain_uuid: uuid.UUID, folder: Path) -> list[tuple[Disk, Disk]]:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        both = json.loads((folder / f"disks-{domain_uuid}.json").read_text())
        return list(zip(both["before"], both["after"], strict=True))
    return []


def _difference(then: Disk, now: Disk) -> str:
    """What is different, to follow the disk's name; empty where nothing is."""
    compared = COMPARED if then.get("boot") == now.get("boot") else COMPARED_LATER
    for name in compared:
        if name not in then or name not in now or then[name] == now[name]:
            continue
        if name == "bytes":
            return f"has {now[name]} bytes, and had {then[name]} when the domain was saved"
        if name == "mtime_ns":
            return (
                f"was written at {now['written']}; when the domain was saved, last at {then.get('written')}"
            )
        if name == "start":
            return f"has other content in its first {START_BYTES >> 20} MiB than when the domain was saved"
        return "has been written to since the domain was saved"
    return ""
