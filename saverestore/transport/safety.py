"""What a file system answers when it is asked for room, sizes, or to bring a file to the disk; some answer oddly.

An answer that means nothing (no statfs, no fsync) is not taken for bad news; one that means that data are lost is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from pathlib import Path

HAS_NO_FSYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})
"""What fsync() says of pipes, sockets and terminals, and on file systems that have none."""

IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs", "rootfs"})
"""File systems without a disk. tmpfs takes O_DIRECT since Linux 6.6, for the sake of programs that insist on it."""


def free_bytes(descriptor: int) -> int | None:
    """Room on the file system of this file; None where that is not known.

    A file system without blocks (ramfs, tmpfs of no limit, FUSE without statfs) keeps no account of its room.
    """
    try:
        room = os.fstatvfs(descriptor)
    except OSError:
        return None
    return room.f_bavail * room.f_frsize if room.f_blocks and room.f_frsize else None


LARGEST_OFFSET = (1 << 63) - 1


def largest_file_bytes(descriptor: int) -> int:
    """How large a file of this file system can be. The descriptor is positioned anew.

    By where it lets one seek to: Linux refuses what lies beyond the largest file. `statfs` does not say, and making
    the file longer may take as long as writing it.
    """
    fits, too_large = 0, LARGEST_OFFSET + 1
    at = LARGEST_OFFSET
    while fits + 1 < too_large:
        try:
            os.lseek(descriptor, at, os.SEEK_SET)
            fits = at
        except OSError as error:
            if error.errno != errno.EINVAL:
                return LARGEST_OFFSET  # it cannot be told
            too_large = at
        at = (fits + too_large) // 2
    return fits


def allowed_file_bytes() -> int:
    """How large a file this process may make (`ulimit -f`)."""
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return LARGEST_OFFSET if allowed == resource.RLIM_INFINITY else allowed


def file_system_of(descriptor: int) -> str:
    """The kind of file system that this file is on, as mount(8) calls it; empty where that is not known."""
    # By the mount's number: btrfs shows other device numbers to stat() than it has in the table of mounts.
    try:
        facts = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    numbers = [line.split()[1] for line in facts if line.startswith("mnt_id:")]
    for line in mounts:
        head, _, tail = line.partition(" - ")  # proc(5): its optional fields end so
        if numbers and head.split()[:1] == numbers:
            return tail.split()[0] if tail.split() else ""
    return ""


def is_in_memory(descriptor: int) -> bool:
    """Whether this file is in memory and has no disk, as far as is known."""
    return file_system_of(descriptor) in IN_MEMORY


def bring_to_disk(descriptor: int) -> None:
    """Return once the data are on the disk, or where there is no disk. OSError when they are lost."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        # EROFS of a file is no such answer: the file system failed while it was written, and was made read-only.
        if error.errno in HAS_NO_FSYNC:
            return
        if error.errno == errno.EROFS and not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return
        raise


def sync_folder(folder: Path) -> None:
    """Bring the names in it to the disk, where that can be done."""
    with contextlib.suppress(OSError):  # not readable for us, or a file system without fsync for folders
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
