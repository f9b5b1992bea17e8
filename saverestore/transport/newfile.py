"""A file that appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from saverestore.errors import Advice, ErrorName, Remedy, TransportError, UsageError, name_of_errno
from saverestore.interrupts import shield
from saverestore.transport.fd import FdSink
from saverestore.transport.pipe import sink_of
from saverestore.transport.sparse import SparseFileSink

LOG = logging.getLogger(__name__)

NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK})
"""What link() says on file systems that have none."""


PARTIAL = ".partial"
TOKEN_BYTES = 4


def _lock(descriptor: int) -> bool | None:
    """Lock a file for as long as it is open: whether it is ours now, None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


class NewFile:
    """A file being written under a temporary name beside its final one, mode 0600.

    It is made at the beginning of the `with` block, for `sink` to be written to. `sync()` brings it to the disk,
    `publish()` gives it its name; leaving the block without that removes it.
    An existing file is only replaced with `overwrite`, and only by `publish()`. A symbolic link is followed: what it
    points to is made or replaced. A device or named pipe is written directly, as there is nothing to rename; a block
    device, which has content to lose, only with `overwrite`.

    The temporary file is locked, so that one whose writer was killed can be told from one being written: it is
    removed when a file of the same name is next written. Blocks that are all zero become holes in it.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path
        self._overwrite = overwrite
        self._final = path
        self._temporary: Path | None = None
        self._published = False
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            mode = None
        except OSError as error:
            raise TransportError(f"{path}: {error.strerror}", name=name_of_errno(error.errno)) from error
        if mode is not None and stat.S_ISDIR(mode):
            raise UsageError(f"{path} is a directory; give a file name in it", name=ErrorName.FILE_UNSUITABLE)
        if mode is not None and stat.S_ISBLK(mode) and not overwrite:
            raise UsageError(
                f"{path} is a block device, and the image would overwrite what is on it",
                name=ErrorName.FILE_EXISTS,
                remedies=[Advice(Remedy.OVERWRITE, str(path))],
            )
        self._has_disk = mode is None or stat.S_ISREG(mode) or stat.S_ISBLK(mode)
        self._is_file = mode is None or stat.S_ISREG(mode)
        self.sink: FdSink
        if not self._is_file:
            return
        if mode is not None and not overwrite:
            raise UsageError(
                f"{path} exists already",
                name=ErrorName.FILE_EXISTS,
                remedies=[Advice(Remedy.OVERWRITE, str(path))],
            )
        self._final = Path(os.path.realpath(path))

    def _remove_abandoned(self) -> None:
        """Temporary files for this name that nobody writes any more: `kill -9`, or the power failed."""
        with contextlib.suppress(OSError):  # what cannot be looked at is left alone
            begin = f".{self._final.name}."
            for entry in os.scandir(self._final.parent):
                token = entry.name.removeprefix(begin).removesuffix(PARTIAL)
                if entry.name != f"{begin}{token}{PARTIAL}" or len(token) != 2 * TOKEN_BYTES:
                    continue
                descriptor = os.open(entry.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    if _lock(descriptor):
                        LOG.warning("%s, left by a save that was killed, is removed", entry.path)
                        Path(entry.path).unlink()
                finally:
                    os.close(descriptor)

    def _new_temporary(self) -> tuple[Path, int]:
        """A fresh one and its descriptor, locked."""
        while True:
            path = self._final.with_name(f".{self._final.name}.{secrets.token_hex(TOKEN_BYTES)}{PARTIAL}")
            descriptor = self._open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            # Another process may have taken it for abandoned before it was locked.
            if _lock(descriptor) is not False and os.fstat(descriptor).st_nlink:
                return path, descriptor
            os.close(descriptor)

    def _open(self, path: Path, flags: int) -> int:
        try:
            return os.open(path, flags | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TransportError(
                f"cannot write {self.path}: {error.strerror}", name=name_of_errno(error.errno)
            ) from error

    @property
    def left_behind(self) -> str:
        """What is there if writing ends before `publish`, in words."""
        return f"{self.path} holds no whole image now" if self._temporary is None else "no image was left"

    def free_bytes(self) -> int | None:
        """Room on the file system, or on the block device; None where that means nothing."""
        if not self._has_disk:
            return None
        if self._temporary is None:
            size = os.lseek(self.sink.fileno(), 0, os.SEEK_END)
            os.lseek(self.sink.fileno(), 0, os.SEEK_SET)
            return size
        room = os.statvfs(self._temporary)
        return room.f_bavail * room.f_frsize

    def sync(self) -> None:
        """Everything has been written: bring it to the disk, still without its name. May take long."""
        if not self._has_disk:
            return
        try:
            os.fsync(self.sink.fileno())
        except OSError as error:
            raise TransportError(
                f"{self.path} could not be brought to the disk: {error.strerror}",
                name=name_of_errno(error.errno),
            ) from error

    def publish(self) -> None:
        """Give the file its name, for good: after `sync` the last step, and a short one.

        TransportError when it cannot be; the temporary file is then still removed by the end of the block.
        """
        temporary = self._temporary
        self.sink.close()
        try:
            if temporary is not None:
                self._name(temporary)
                self._sync_folder()
        except FileExistsError as error:
            raise TransportError(
                f"{self.path} was created by somebody else during the save; it was not changed",
                name=ErrorName.FILE_EXISTS,
            ) from error
        except OSError as error:
            raise TransportError(
                f"{self.path} could not be given its name: {error.strerror}", name=name_of_errno(error.errno)
            ) from error
        self._published = True

    def _name(self, temporary: Path) -> None:
        if not self._overwrite:
            try:
                # link() instead of rename(): it fails when another file took the name meanwhile.
                os.link(temporary, self._final)
            except OSError as error:
                if error.errno not in NO_HARD_LINKS:
                    raise
            else:
                # The image has its name: from here on nothing is a failure.
                with contextlib.suppress(OSError):
                    temporary.unlink()
                return
        temporary.rename(self._final)

    def _sync_folder(self) -> None:
        with contextlib.suppress(OSError):  # not readable for us, or a file system without fsync for folders
            folder = os.open(self._final.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def __enter__(self) -> Self:
        if not self._is_file:
            self.sink = sink_of(self._open(self.path, os.O_WRONLY), str(self.path))
            return self
        self._remove_abandoned()
        try:
            with shield():  # a file that has been made must be known to whoever removes it
                temporary, descriptor = self._new_temporary()
                self.sink = SparseFileSink(descriptor, str(self.path))
                self._temporary = temporary
        except BaseException:
            if self._temporary is not None:
                self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.sink.close()
        finally:
            if not self._published and self._temporary is not None:
                self._temporary.unlink(missing_ok=True)
