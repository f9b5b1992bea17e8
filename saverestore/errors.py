"""Every failure a user can meet, and the exit code it ends with.

The class says whose fault it is; the text names the thing (domain, file, offset, phase), the state
it is in now, and what to do. The commands print `str(error)` as it is and exit with `exit_code`.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the commands exit with; README and `--help` carry this table."""

    DONE = 0
    USAGE = 2
    DOMAIN = 3
    IMAGE = 4
    IO = 5
    XEN = 6
    INTERRUPTED = 130


class SaveRestoreError(Exception):
    """Base of all failures this package raises on purpose."""

    exit_code: ExitCode = ExitCode.XEN


class UsageError(SaveRestoreError):
    """The request itself cannot be carried out as asked: options or file names."""

    exit_code = ExitCode.USAGE


class DomainError(SaveRestoreError):
    """The domain is not there, not in a state to be saved, or has what we cannot carry."""

    exit_code = ExitCode.DOMAIN


class ImageError(SaveRestoreError):
    """The image is not one, is broken, or is of a kind that this host cannot take.

    `offset` counts bytes from the start of the source, and is part of the text.
    """

    exit_code = ExitCode.IMAGE

    def __init__(self, message: str, *, offset: int | None = None) -> None:
        self.offset = offset
        super().__init__(message if offset is None else f"{message} (at byte {offset:#x} = {offset})")


class TransportError(SaveRestoreError):
    """Reading or writing failed: disk full, reader gone, file system errors."""

    exit_code = ExitCode.IO


class XenRefused(SaveRestoreError):
    """Xen, or one of its libraries, refused a call."""

    exit_code = ExitCode.XEN


class Interrupted(SaveRestoreError):
    """Ctrl-C or SIGTERM; what was begun has been undone by the time this is printed."""

    exit_code = ExitCode.INTERRUPTED
