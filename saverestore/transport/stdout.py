"""Standard output as the place of an image."""

from __future__ import annotations

import errno
import os
import stat

from saverestore.errors import TransportError, name_of_errno
from saverestore.transport.pipe import sink_of

HAS_NO_DISK = frozenset({errno.EINVAL, errno.EROFS, errno.ENOTSUP})
"""What fsync() says of pipes, sockets and terminals."""


class StandardOutput:
    """A pipe, or a file that the shell opened. The same methods as `NewFile`; it has its name already."""

    def __init__(self) -> None:
        self.sink = sink_of(1, "standard output", close_fd=False)

    left_behind = "what was written to standard output is not a complete image"

    def free_bytes(self) -> int | None:
        """Room on the file system of a regular file; None where that means nothing."""
        if not stat.S_ISREG(os.fstat(1).st_mode):
            return None
        room = os.fstatvfs(1)
        return room.f_bavail * room.f_frsize

    def sync(self) -> None:
        """Bring a file or block device to the disk. Of a pipe one can only know that all was taken."""
        try:
            os.fsync(1)
        except OSError as error:
            if error.errno not in HAS_NO_DISK:
                raise TransportError(
                    f"standard output could not be brought to the disk: {error.strerror}",
                    name=name_of_errno(error.errno),
                ) from error

    def publish(self) -> None:
        """Nothing: whoever opened it has named it."""
