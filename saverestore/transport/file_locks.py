"""Locks on files that another host may have open: what both a server of NFS and its clients heed.

Locks of an open file description (`F_OFD_SETLK`, fcntl(2)): given back when the last descriptor of it is closed, and
when the process dies. flock(2) is as good on one host; but NFS turns it into such a lock at the server, where nobody
who uses flock(2) himself sees it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

FLOCK = struct.Struct("@hhqqi4x")
"""struct flock (fcntl.h) where off_t has 64 bits: type, whence, start, length (0: all of it), pid (0 for these)."""

HELD = frozenset({errno.EAGAIN, errno.EACCES})


def try_lock(descriptor: int, *, shared: bool = False) -> bool | None:
    """Lock a whole file for as long as it is open: whether it is ours now, None where the file system has no locks.

    `shared`: others may have a shared one, too. That needs a descriptor to read from, the other one to write to.
    """
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        return False if error.errno in HELD else None
    return True
