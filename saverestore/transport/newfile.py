"""A file that appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from saverestore.errors import TransportError, UsageError
from saverestore.transport.fd import FdSink


class NewFile:
    """A file being written under a temporary name beside its final one, mode 0600.

    `commit()` brings it to the disk and gives it its name; leaving the block without that removes it. An
    existing file is only replaced with `overwrite`, and only by `commit()`. A device (/dev/null) or named pipe
    is written directly, as there is nothing to rename.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path
        self._overwrite = overwrite
        self._temporary: Path | None = None
        self._committed = False
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            mode = None
        except OSError as error:
            raise TransportError(f"{path}: {error.strerror}") from error
        if mode is not None and stat.S_ISDIR(mode):
            raise UsageError(f"{path} is a directory; give a file name in it")
        if mode is not None and not stat.S_ISREG(mode):
            self.sink = FdSink(self._open(path, os.O_WRONLY), str(path))
            return
        if mode is not None and not overwrite:
            raise UsageError(f"{path} exists already; --overwrite replaces it")
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        self.sink = FdSink(self._open(self._temporary, flags), str(path))

    def _open(self, path: Path, flags: int) -> int:
        try:
            return os.open(path, flags | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TransportError(f"cannot write {self.path}: {error.strerror}") from error

    def free_bytes(self) -> int | None:
        """Room on the file system for this process; None where that means nothing."""
        if self._temporary is None:
            return None
        room = os.statvfs(self._temporary)
        return room.f_bavail * room.f_frsize

    def commit(self) -> None:
        """Everything has been written: after this the image is on the disk under its name.

        TransportError when it cannot be; the temporary file is then still removed by the end of the block.
        """
        if self._temporary is None:
            self._committed = True
            self.sink.close()
            return
        try:
            os.fsync(self.sink.fileno())
            self.sink.close()
            if self._overwrite:
                self._temporary.rename(self.path)
            else:
                # link() instead of rename(): it fails when another file took the name meanwhile.
                os.link(self._temporary, self.path)
                self._temporary.unlink()
            self._committed = True
            self._sync_folder()
        except FileExistsError as error:
            raise TransportError(f"{self.path} has come into being meanwhile; it was left alone") from error
        except OSError as error:
            if not self._committed and error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                self._temporary.rename(self.path)  # a file system without hard links
                self._committed = True
                return
            raise TransportError(f"{self.path} could not be finished: {error.strerror}") from error

    def _sync_folder(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with contextlib.suppress(OSError):  # some file systems have no fsync for folders
                os.fsync(folder)
        finally:
            os.close(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.sink.close()
        finally:
            if not self._committed and self._temporary is not None:
                self._temporary.unlink(missing_ok=True)
