"""Journals on the disk: a file for each migration and side, in a folder that only root may enter.

    /var/lib/xen/pymigrate/identity                   what names this folder to other hosts
    /var/lib/xen/pymigrate/ROLE-MIGRATION.journal     see `records`

A journal appears whole, with its first state, or not at all. Whoever appends to it holds its lock, which the kernel
gives back when the holder dies; so a lock that can be had means that no process works on the migration.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import itertools
import os
import secrets
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from saverestore.errors import ErrorName, SaveRestoreError, TransportError, name_of_errno
from saverestore.migrate import records
from saverestore.migrate.handover import NOT_WRITTEN, OVER, Role, State
from saverestore.migrate.records import ROOM_BYTES, Entry, Head, JournalError, JournalUnread, Log

DIRECTORY = Path("/var/lib/xen/pymigrate")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
LOCKS = Path("/proc/locks")
IDENTITY = "identity"
SUFFIX = ".journal"


class JournalBusy(SaveRestoreError):
    """Another process of this host works on the migration. `pid`: its number, where it is known."""

    name = ErrorName.MIGRATION_BUSY

    def __init__(self, what: str, pid: int | None) -> None:
        self.pid = pid
        super().__init__(f"{what} is being worked on by process {pid or '?'}")


class JournalExists(SaveRestoreError):
    """There is a journal of this migration already."""

    name = ErrorName.MIGRATION_BUSY


class Journal:
    """One migration's journal, open and locked by this process. A context manager.

    `log`: what it surely says. `state`: where this side is; after `enter` failed, the state that was to be written.
    That may be on the disk or not, until the next entry takes its place.
    """

    def __init__(self, path: Path, descriptor: int, log: Log) -> None:
        self.path = path
        self.log = log
        self.state = log.state
        self._descriptor = descriptor
        self._touched_bytes = log.length_bytes
        """Behind `log`: as far as an entry that failed may have come."""

    def enter(self, state: State, **notes: str | int) -> None:
        """Be in this state. It is on the disk when this returns, unless it is one that is not written at all.

        TransportError when it cannot be written. The next entry then takes its place.
        """
        self.state = state
        if state in NOT_WRITTEN:
            return
        entry = Entry(state, now(), notes)
        log = self.log
        line = records.pack_entry(len(log.entries) + 1, entry)
        end = log.length_bytes + len(line)
        self._touched_bytes = max(self._touched_bytes, end)
        try:
            # Over an entry that failed, and all of it: behind it, this one would stand behind a gap where the disk
            # lacks that. Over GRANTED it is ABORTED, once the destination has given up. A crash amid it leaves one of
            # the two, or what was before: by each of them the domain may run here, at once or when it has been asked.
            _write_all(
                self._descriptor, line.ljust(self._touched_bytes - log.length_bytes, b"\0"), log.length_bytes
            )
            os.fsync(self._descriptor)
        except OSError as error:
            raise _failed(self.path, error) from error
        self.log = Log(log.head, (*log.entries, entry), end)

    def close(self) -> None:
        """Give the lock back. A second time does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Journals:
    """The journals of this host. The folder is made when first something is written."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self.directory = directory

    def identity(self) -> str:
        """What names this folder, and so this host. Made when there is none. TransportError when it cannot be."""
        path = self.directory / IDENTITY
        try:
            return self._read_identity(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _failed(path, error) from error
        self._make_directory()
        with contextlib.suppress(FileExistsError):
            self._publish(path, secrets.token_hex(16).encode())
        return self._read_identity(path)

    def _read_identity(self, path: Path) -> str:
        text = path.read_text(errors="replace").strip()
        if not text:
            raise JournalError(f"{path} is empty")
        return text

    def create(self, head: Head, state: State, **notes: str | int) -> Journal:
        """Make a migration's journal, on the disk, and lock it. JournalExists when there is one."""
        self._make_directory()
        path = self._path(head.role, head.migration)
        data = records.pack_head(head) + records.pack_entry(1, Entry(state, now(), notes))
        try:
            # Locked by its temporary name: nobody finds it unlocked by the other.
            descriptor = self._publish(path, data, room=True)
        except FileExistsError as error:
            raise JournalExists(f"there is a journal of this migration already: {path}") from error
        return Journal(path, descriptor, records.unpack(data, str(path)))

    def open(self, role: Role, migration: uuid.UUID) -> Journal | None:
        """Lock a migration's journal, to append to it; None when there is none.

        JournalBusy when another process has it, JournalError when it cannot be read.
        """
        path = self._path(role, migration)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failed(path, error) from error
        try:
            _lock(descriptor, path)
            data = _read_all(descriptor)
            log = records.unpack(data, str(path))
            # A torn line would show behind a shorter one. And what is relied on from now on is written once more:
            # after an fsync that failed, Linux shows pages that are not on the disk.
            _write_all(descriptor, data[: log.length_bytes].ljust(ROOM_BYTES, b"\0"), 0)
            os.fsync(descriptor)
            return Journal(path, descriptor, log)
        except OSError as error:
            os.close(descriptor)
            raise _failed(path, error) from error
        except BaseException:
            os.close(descriptor)
            raise

    def all(self) -> Iterator[Log | JournalError]:
        """What each journal says, unlocked, the oldest first; of one that cannot be read, why.

        TransportError when the folder cannot be read.
        """
        found: list[tuple[str, Log | JournalError]] = []
        try:
            for path in sorted(self.directory.iterdir()):  # glob is silent about a folder that it cannot read
                if path.suffix != SUFFIX:
                    continue
                try:
                    log = records.unpack(path.read_bytes(), str(path))
                    found.append((log.head.began, log))
                except JournalError as error:
                    found.append(("", error))
                except FileNotFoundError:
                    continue
                except IsADirectoryError:
                    found.append(("", JournalError(f"{path} is a directory, and no journal")))
                except OSError as error:
                    found.append(("", _unread(path, error)))
        except FileNotFoundError:
            return
        except OSError as error:
            raise _failed(self.directory, error) from error
        yield from (one for _, one in sorted(found, key=lambda pair: pair[0]))

    def holder(self, role: Role, migration: uuid.UUID) -> int | None:
        """The process that works on this migration, if there is one."""
        path = self._path(role, migration)
        try:
            found = path.stat()
            lines = LOCKS.read_text().splitlines()
        except OSError:
            return None
        device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
        for line in lines:
            words = line.split()
            if "FLOCK" not in words or "->" in words:
                continue
            for pid, where in itertools.pairwise(words):
                of, _, inode = where.rpartition(":")
                # On btrfs and overlayfs the kernel has another device there than stat tells.
                if inode == str(found.st_ino) and (of == device or (of and _has_open(pid, found))):
                    return int(pid)
        return None

    def _path(self, role: Role, migration: uuid.UUID) -> Path:
        return self.directory / f"{role}-{migration}{SUFFIX}"

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(mode=0o700, exist_ok=True)
            _sync_directory(self.directory.parent)
        except OSError as error:
            raise _failed(self.directory, error) from error

    def _publish(self, path: Path, data: bytes, *, room: bool = False) -> int:
        """Let a file appear under its name, whole and on the disk. With `room`: locked, its descriptor; else -1."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
        descriptor = -1
        try:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                if room:
                    _lock(descriptor, path)
                _write_all(descriptor, data.ljust(ROOM_BYTES, b"\0") if room else data, 0)
                os.fsync(descriptor)
                os.link(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_directory(path.parent)
        except BaseException as error:
            if descriptor >= 0:
                os.close(descriptor)
            if isinstance(error, OSError) and not isinstance(error, FileExistsError):
                raise _failed(path, error) from error
            raise
        if room:
            return descriptor
        os.close(descriptor)
        return -1


def is_over(log: Log) -> bool:
    """Whether nothing is left to be done, but by a person where it is LOST."""
    return log.state in OVER


def boot_id() -> str:
    """Names this boot of the host: copies of domains do not outlive it."""
    return BOOT_ID.read_text().strip()


def now() -> str:
    """The time, as journals have it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        role, _, migration = path.name.removesuffix(SUFFIX).partition("-")
        pid = Journals(path.parent).holder(Role(role), uuid.UUID(migration))
        raise JournalBusy(f"migration {migration}", pid) from error


def _has_open(pid: str, file: os.stat_result) -> bool:
    """Whether that process has this file open."""
    with contextlib.suppress(OSError):  # it has ended
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.path.samestat(descriptor.stat(), file):
                    return True
    return False


def _write_all(descriptor: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written


def _read_all(descriptor: int) -> bytes:
    data = b""
    while part := os.pread(descriptor, 1 << 16, len(data)):
        data += part
    return data


def _sync_directory(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _unread(path: Path, error: OSError) -> JournalUnread:
    return JournalUnread(
        f"{path}: {error.strerror}: the journal of a migration cannot be read",
        name=name_of_errno(error.errno),
    )


def _failed(path: Path, error: OSError) -> TransportError:
    return TransportError(
        f"{path}: {error.strerror}: the journal of a migration cannot be read or written",
        name=name_of_errno(error.errno),
    )
