"""Standard output as the place of an image."""

from __future__ import annotations

import os
import stat

from saverestore.errors import TransportError, name_of_errno
from saverestore.transport.pipe import sink_of
from saverestore.transport.safety import bring_to_disk, free_bytes


class StandardOutput:
    """A pipe, or a file that the shell opened. The same methods as `NewFile`; it has its name already."""

    def __init__(self) -> None:
        self.sink = sink_of(1, "standard output", close_fd=False)

    left_behind = "what was written to standard output is not a complete image"

    def free_bytes(self) -> int | None:
        """Room on the file system of a regular file; None where that means nothing."""
        return free_bytes(1) if stat.S_ISREG(os.fstat(1).st_mode) else None

    def sync(self) -> None:
        """Bring a file or block device to the disk. Of a pipe one can only know that all was taken."""
        try:
            bring_to_disk(1)
        except OSError as error:
            raise TransportError(
                f"standard output could not be brought to the disk: {error.strerror}",
                name=name_of_errno(error.errno),
            ) from error

    def publish(self) -> None:
        """Nothing: whoever opened it has named it."""
