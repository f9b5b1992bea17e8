"""A file that appears whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from saverestore.errors import Advice, ErrorName, Remedy, TransportError, UsageError, name_of_errno
from saverestore.transport.cache import Cache, no_direct
from saverestore.transport.direct import BUFFER_BYTES, file_sink
from saverestore.transport.fd import FdSink, remedies_of_errno
from saverestore.transport.file_locks import try_lock
from saverestore.transport.pipe import sink_of
from saverestore.transport.safety import (
    LARGEST_OFFSET,
    allowed_file_bytes,
    bring_to_disk,
    free_bytes,
    largest_file_bytes,
    sync_folder,
)
from saverestore.transport.sparse import SparseFileSink

LOG = logging.getLogger(__name__)

PARTIAL = ".partial"
TOKEN_BYTES = 4
NAME_MAX = 255
"""Bytes of a file's name, on most file systems (limits.h). Fewer where the file system says so."""

HOLES_FROM = 1 << 32
"""File systems that do not take a file of this size, such as vfat, have no holes either."""

ATTEMPTS = 16
"""At a temporary file of our own. One is lost when another writer of the same name cleans up at that very moment."""


def _temporary_prefix(final: Path) -> str:
    """How the names of temporary files for this one begin: with its own name, or a digest where that is too long."""
    try:
        longest = os.pathconf(final.parent, "PC_NAME_MAX")
    except (OSError, ValueError):
        longest = NAME_MAX
    room = min(longest, NAME_MAX) if longest > 0 else NAME_MAX
    name = os.fsencode(final.name)
    if len(name) + len(f"..{PARTIAL}") + 2 * TOKEN_BYTES <= room:
        return f".{final.name}."
    return f".{hashlib.sha256(name).hexdigest()[:16]}."


def remove_abandoned(folder: Path, is_meant: Callable[[str], bool]) -> None:
    """Remove temporary files that nobody writes any more: `kill -9`, or the power failed.

    Those are meant whose name begins so: ".NAME." for a file NAME, see `_temporary_prefix`. What cannot be looked at
    is left alone.
    """
    ending = re.compile(rf"[0-9a-f]{{{2 * TOKEN_BYTES}}}{re.escape(PARTIAL)}\Z")
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            found = ending.search(entry.name)
            if found is not None and is_meant(entry.name[: found.start()]):
                with contextlib.suppress(OSError):
                    _remove_if_abandoned(Path(entry.path))


def _remove_if_abandoned(path: Path) -> None:
    # Should it be a pipe, opening it must not wait for a reader.
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if try_lock(descriptor):
            LOG.warning("%s, left by a save that was killed, is removed", path)
            path.unlink()
    finally:
        os.close(descriptor)


def _is_there(path: Path) -> bool:
    """Whether the name exists, as far as can be told. Link counts say less: some file systems have none."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _identity_of(path: Path) -> tuple[int, int] | None:
    """Which file has this name; None where none has."""
    try:
        return _identity(path.lstat())
    except OSError:
        return None


class NewFile:
    """A file being written under a temporary name beside its final one, mode 0600.

    It is made at the beginning of the `with` block, for `sink` to be written to. `sync()` brings it to the disk,
    `publish()` gives it its name; leaving the block without that removes it.
    An existing file is only replaced with `overwrite`, and only by `publish()`. A symbolic link is followed: what it
    points to is made or replaced. A device or named pipe is written directly, as there is nothing to rename; a block
    device, which has content to lose, only with `overwrite`.

    The temporary file is locked, so that one whose writer was killed can be told from one being written: it is
    removed when a file of the same name is next written. Blocks that are all zero become holes in it.

    `cache`: whether it is written through the page cache, or directly (`transport.direct`); then what was given is
    there when `sink.finish` or `sync` has returned, no sooner. `Cache.AUTO` asks for the second, where it can be had.
    `buffer_bytes`: of each of the three buffers that this takes.

    Nothing here is shielded from signals, but for direct writes that have begun, which `sink.close` waits for:
    whatever a file system answers, and however slowly, a signal ends it. Only where the kernel itself waits, no
    signal does: NFS that is mounted `hard`, and its server gone.
    """

    def __init__(
        self,
        path: Path,
        *,
        overwrite: bool = False,
        cache: Cache = Cache.PAGE,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        self.path = path
        self._cache, self._buffer_bytes = cache, buffer_bytes
        self._own_sink: SparseFileSink | None = None
        self._overwrite = overwrite
        self._final = path
        self._temporary: Path | None = None
        self._folder = -1
        """Where the temporary file is, also when the folder is moved, unmounted or covered meanwhile."""
        self._largest_bytes = LARGEST_OFFSET
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
            if cache is Cache.DIRECT:
                raise no_direct(str(path), "it is no regular file")
            return
        if mode is not None and not overwrite:
            raise UsageError(
                f"{path} exists already",
                name=ErrorName.FILE_EXISTS,
                remedies=[Advice(Remedy.OVERWRITE, str(path))],
            )
        self._final = Path(os.path.realpath(path))

    def _open_temporary(self) -> int:
        """Make a fresh one, which is `_temporary` from now on, and lock it: its descriptor."""
        begin = _temporary_prefix(self._final)
        self._folder = self._open(self._final.parent, os.O_PATH | os.O_DIRECTORY)
        for _ in range(ATTEMPTS):
            path = self._final.with_name(f"{begin}{os.urandom(TOKEN_BYTES).hex()}{PARTIAL}")
            # Known before it is there, so that a signal at any moment leaves none; the name is nobody else's.
            self._temporary = path
            try:
                descriptor = self._open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            except TransportError:
                self._temporary = None  # there is none, or it is somebody else's
                raise
            try:
                # Another process may have taken it for abandoned before it was locked.
                if try_lock(descriptor) is not False and _is_there(path):
                    return descriptor
            except BaseException:  # a signal
                os.close(descriptor)
                raise
            os.close(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
        raise TransportError(
            f"cannot write {self.path}: {ATTEMPTS} temporary files beside it were each locked or removed by another "
            "program at once"
        )

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

    @property
    def has_holes(self) -> bool:
        """Whether what is marked as zeroes takes no room."""
        return self._is_file and self._largest_bytes >= HOLES_FROM

    @property
    def cache(self) -> Cache:
        """How it is written, in the block: `Cache.DIRECT` or `Cache.PAGE`."""
        return Cache.PAGE if self._own_sink is None else self._own_sink.cache

    def use_page_cache(self) -> None:
        """Write through the page cache from now on: whoever waits for the next writes need not wait for the disk."""
        if self._own_sink is not None:
            self._own_sink.use_page_cache()

    def free_bytes(self) -> int | None:
        """Room left for the file, or on the block device; None where that means nothing or is not known.

        For the file: no more than the file system has left, and than one file may become larger.
        """
        if not self._has_disk:
            return None
        if self._temporary is None:
            at = os.lseek(self.sink.fileno(), 0, os.SEEK_CUR)
            size = os.lseek(self.sink.fileno(), 0, os.SEEK_END)
            os.lseek(self.sink.fileno(), at, os.SEEK_SET)
            return size - at
        free = free_bytes(self.sink.fileno())
        if free is None:
            return None
        largest = min(self._largest_bytes, allowed_file_bytes())
        return max(0, min(free - self.sink.held_bytes, largest - self.sink.offset))

    def sync(self) -> None:
        """Everything has been written: bring it to the disk, still without its name. May take long."""
        self.sink.finish()
        if not self._has_disk:
            return
        try:
            bring_to_disk(self.sink.fileno())
        except OSError as error:
            raise TransportError(
                f"{self.path} could not be brought to the disk: {error.strerror}",
                name=name_of_errno(error.errno),
                remedies=remedies_of_errno(error.errno),
            ) from error

    def publish(self) -> None:
        """Give the file its name, for good: after `sync` the last step, and a short one.

        TransportError when it cannot be; the temporary file is then still removed by the end of the block.
        """
        temporary = self._temporary
        self.sink.finish()  # nothing, after `sync`
        try:
            if temporary is None:
                self.sink.close()
            else:
                # The lock belongs to the open file: until that has its name, another writer must find it locked.
                locked = os.dup(self.sink.fileno())
                try:
                    self.sink.close()  # before it has its name: this may report that earlier writes failed
                    self._name(temporary, _identity(os.fstat(locked)))
                finally:
                    with contextlib.suppress(OSError):  # what there was to report, the first one has
                        os.close(locked)
                sync_folder(self._final.parent)
        except FileExistsError as error:
            raise TransportError(
                f"{self.path} was created by somebody else during the save; it was not changed",
                name=ErrorName.FILE_EXISTS,
            ) from error
        except OSError as error:
            raise TransportError(
                f"{self.path} could not be given its name: {error.strerror}",
                name=name_of_errno(error.errno),
                remedies=remedies_of_errno(error.errno),
            ) from error
        self._published = True

    def _name(self, temporary: Path, identity: tuple[int, int]) -> None:
        """By link() where there is one: it fails when another file took the name meanwhile; rename() replaces that.

        Over a network a call may be carried out although it fails, as its first answer was lost: what counts is
        whether the file has its name.
        """
        if not self._overwrite:
            try:
                os.link(temporary, self._final)
            except OSError as error:
                there = _identity_of(self._final)
                if there is not None and there != identity:
                    raise FileExistsError(error.errno, "the name is taken", str(self._final)) from error
                if there is None:  # no hard links here, in whatever words
                    self._rename(temporary, identity)
            # The image has its name: from here on nothing is a failure.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            return
        self._rename(temporary, identity)

    def _rename(self, temporary: Path, identity: tuple[int, int]) -> None:
        try:
            temporary.rename(self._final)
        except OSError:
            if _identity_of(self._final) != identity:
                raise

    def __enter__(self) -> Self:
        if not self._is_file:
            self.sink = sink_of(self._open(self.path, os.O_WRONLY), str(self.path))
            return self
        begin = _temporary_prefix(self._final)
        remove_abandoned(self._final.parent, lambda others: others == begin)
        try:
            self.sink = self._sink()
        except BaseException as error:
            if self._temporary is not None:
                self._remove(self._temporary, error)
            self._close_folder()
            raise
        return self

    def _sink(self) -> FdSink:
        """Over a temporary file."""
        descriptor = self._open_temporary()
        try:
            assert self._temporary is not None
            self._largest_bytes = largest_file_bytes(descriptor)
            os.lseek(descriptor, 0, os.SEEK_SET)
            if not self.has_holes:
                if self._cache is Cache.DIRECT:
                    raise no_direct(str(self.path), "its file system has no holes")
                return FdSink(descriptor, str(self.path))
            self._own_sink = file_sink(
                descriptor, self._temporary, str(self.path), self._cache, buffer_bytes=self._buffer_bytes
            )
            return self._own_sink
        except BaseException as error:  # a signal, too
            if self._own_sink is None:
                os.close(descriptor)
            else:
                self._own_sink.close()
            if not isinstance(error, OSError):
                raise
            raise TransportError(
                f"cannot write {self.path}: {error.strerror}", name=name_of_errno(error.errno)
            ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.sink.__exit__(kind, error, trace)
        finally:
            if not self._published and self._temporary is not None:
                self._remove(self._temporary, error)
            self._close_folder()

    def _close_folder(self) -> None:
        folder, self._folder = self._folder, -1
        if folder >= 0:
            os.close(folder)

    def _remove(self, temporary: Path, error: BaseException | None) -> None:
        """That it cannot be removed must not hide `error`, which may well have the same cause."""
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary.name, dir_fd=self._folder)
        except OSError as second:
            left = f"{temporary} could not be removed: {second.strerror}"
            if error is None:
                LOG.warning("%s", left)
            else:
                error.add_note(left)
