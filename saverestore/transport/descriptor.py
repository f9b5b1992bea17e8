"""A descriptor that somebody else opened as the place of an image: standard output, or another."""

from __future__ import annotations

import os
import stat

from saverestore.errors import TransportError, name_of_errno
from saverestore.transport.fd import remedies_of_errno
from saverestore.transport.pipe import sink_of
from saverestore.transport.safety import bring_to_disk, free_bytes


class Descriptor:
    """A pipe, or a file that the shell opened. The same methods as `NewFile`; it has its name already."""

    def __init__(self, fd: int = 1, name: str = "standard output") -> None:
        self.sink = sink_of(fd, name, close_fd=False)
        self.left_behind = f"what was written to {name} is not a complete image"
        self._fd = fd

    has_holes = False
    cache = None

    def use_page_cache(self) -> None:
        """Nothing: a file that somebody else opened is written so in any case."""

    def free_bytes(self) -> int | None:
        """Room on the file system of a regular file; None where that means nothing."""
        return free_bytes(self._fd) if stat.S_ISREG(os.fstat(self._fd).st_mode) else None

    def sync(self) -> None:
        """Bring a file or block device to the disk. Of a pipe one can only know that all was taken."""
        try:
            bring_to_disk(self._fd)
        except OSError as error:
            raise TransportError(
                f"{self.sink.name} could not be brought to the disk: {error.strerror}",
                name=name_of_errno(error.errno),
                remedies=remedies_of_errno(error.errno),
            ) from error

    def publish(self) -> None:
        """Nothing: whoever opened it has named it."""
