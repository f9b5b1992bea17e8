"""Sources and sinks over a file descriptor: regular file, pipe, socket, terminal.

A batch of guest memory is one buffer of up to 16 MiB, or one for each of its parts between runs of zero pages. They
go to the kernel as they are; what is computed per call in Python is one list of sizes. A short transfer costs work
for the buffers it moved, never for their bytes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from saverestore.errors import Advice, ErrorName, Remedy, TransportError, UsageError, name_of_errno
from saverestore.transport.base import EndOfStream, RegularFile

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

IOV_MAX: int = os.sysconf("SC_IOV_MAX") if "SC_IOV_MAX" in os.sysconf_names else 1024
"""Most buffers that one readv or writev takes (limits.h; 1024 on Linux)."""

SMALLEST_WINDOW = 16
"""Fewest buffers handed to the kernel at once after a short transfer, see `_move_all`."""

SKIP_BUFFER_BYTES = 1 << 20
"""Size of the buffer into which bytes to be dropped are read, where the source cannot seek."""

PIPE_BYTES = 1 << 20
"""What a pipe is made to hold, if it may (Linux allows that much to anybody): a sixteenth of the switches."""

SPACE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""A full disk, a quota, and a file that may not become larger."""
PEER_ERRORS = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN})


def remedies_of_errno(number: int | None) -> list[Advice]:
    """What helps where bringing an image to its place failed like this."""
    return [Advice(Remedy.OTHER_PLACE)] if number in SPACE_ERRORS else []


def nbytes_of(buffer: ReadableBuffer) -> int:
    """Length of a buffer in bytes, whatever its item size and shape."""
    if isinstance(buffer, memoryview):
        return buffer.nbytes
    if isinstance(buffer, (bytes, bytearray)):
        return len(buffer)
    with memoryview(buffer) as view:
        return view.nbytes


def _move_all(move: Callable[[list[Any]], int], buffers: Sequence[Any]) -> int:
    """Call `move` (one readv or writev) until all buffers are done or it returns 0.

    Returns the number of bytes that were not moved. A pipe takes 64 KiB to 1 MiB of a 16 MiB batch at a time;
    giving the kernel all remaining buffers again each time would be quadratic, so after a short
    transfer only about twice as many buffers are offered as went through in the last.

    No view of the caller's memory survives this call, not even in a traceback: the caller must be
    able to unmap it while an exception is handled.
    """
    sizes = [nbytes_of(buffer) for buffer in buffers]
    pending = list(buffers)
    if 0 in sizes:
        pending = [buffer for buffer, size in zip(pending, sizes, strict=True) if size]
        sizes = [size for size in sizes if size]
    left = sum(sizes)
    first = 0
    window = IOV_MAX
    batch: list[Any] = []
    try:
        while left:
            batch = pending[first : first + window]
            moved = move(batch)
            if moved == 0:
                break
            left -= moved
            if left == 0:
                break
            begin = first
            while moved and moved >= sizes[first]:
                moved -= sizes[first]
                first += 1
            if moved:
                pending[first] = memoryview(pending[first]).cast("B")[moved:]
                sizes[first] -= moved
            window = min(IOV_MAX, max(SMALLEST_WINDOW, 2 * (first - begin)))
    finally:
        pending.clear()
        batch.clear()
    return left


def unless_blocked(move: Callable[[], int]) -> int | None:
    """What `move` returns; None where a non-blocking descriptor is not ready.

    So that nobody waits within the handler of an exception: signals are held back there.
    """
    try:
        return move()
    except BlockingIOError:
        return None


def widen(fd: int) -> None:
    """Let a pipe hold as much as is usually allowed. Whatever else `fd` is stays as it is."""
    with contextlib.suppress(OSError):  # no pipe, or not ours to enlarge
        if fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) < PIPE_BYTES:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


class _Fd:
    """A descriptor with a name and a count of the bytes that passed."""

    def __init__(self, fd: int, name: str, *, close_fd: bool = True) -> None:
        """Take `fd`; with `close_fd` it belongs to this object and is closed with it."""
        self._fd = fd
        self._close_fd = close_fd
        self.name = name
        self.offset = 0
        widen(fd)

    def fileno(self) -> int:
        """Return the descriptor; `ValueError` when closed."""
        if self._fd < 0:
            raise ValueError(f"{self.name} is closed")
        return self._fd

    def close(self) -> None:
        """Close the descriptor if it belongs to this object; a second time does nothing.

        `TransportError` if the kernel reports late that earlier writes failed.
        """
        fd, self._fd = self._fd, -1
        if fd >= 0 and self._close_fd:
            try:
                os.close(fd)
            except OSError as error:
                raise TransportError(
                    f"{self.name}: closing it failed: {error.strerror}",
                    name=name_of_errno(error.errno),
                    remedies=remedies_of_errno(error.errno),
                ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except TransportError:
            if error is None:  # what is on its way says more: a disk that fails does so at each call
                raise

    def _wait(self, event: int) -> None:
        """Wait until a non-blocking descriptor is ready."""
        poll = select.poll()
        poll.register(self.fileno(), event)
        poll.poll()


STDIN = "-"


class FdSource(_Fd):
    """An `ImageSource` over a descriptor. It starts wherever the descriptor stands."""

    @classmethod
    def open(cls, image: str) -> Self:
        """Open an image that a person named: a path, or "-" for standard input.

        UsageError when there is no such file, or nothing that could be one; TransportError when it cannot be read.
        """
        if image == STDIN:
            if sys.stdin is None or sys.stdin.isatty():
                closed = "it is closed" if sys.stdin is None else "it is a terminal"
                raise UsageError(f"no image on standard input: {closed}", name=ErrorName.FILE_UNSUITABLE)
            return cls(0, "standard input", close_fd=False)
        try:
            fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(f"{image}: no such file", name=ErrorName.FILE_NOT_FOUND) from error
        except OSError as error:
            raise TransportError(
                f"{image}: cannot be opened: {error.strerror}", name=name_of_errno(error.errno)
            ) from error
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.close(fd)
            raise UsageError(f"{image}: a directory, not an image", name=ErrorName.FILE_UNSUITABLE)
        return cls(fd, image)

    def __init__(self, fd: int, name: str, *, close_fd: bool = True) -> None:
        """Take `fd` as it is; nothing is read."""
        super().__init__(fd, name, close_fd=close_fd)
        self._dropped: bytearray | None = None
        self._held = b""
        found = os.fstat(fd)
        # Only a regular file tells its size, without which a seek past the end would go unnoticed.
        self._is_file = stat.S_ISREG(found.st_mode)
        self.total_bytes = found.st_size if self._is_file else None
        """Length of a regular file, when it was opened; None for anything else."""
        self.may_continue = not (self._is_file or stat.S_ISFIFO(found.st_mode))
        """Whether anything may follow an image: a device is longer than what was written to it, a socket may be
        kept open by who waits for an answer."""
        self.may_stay_open = not self._is_file
        """See ImageSource."""

    @property
    def regular_file(self) -> RegularFile | None:
        """This source, where it is a regular file."""
        return self if self._is_file else None

    def position(self) -> int:
        """See RegularFile."""
        return os.lseek(self.fileno(), 0, os.SEEK_CUR)

    def readinto(self, view: WriteableBuffer, what: str = "data") -> None:
        """Fill `view` completely."""
        self.readv((view,), what)

    def readv(self, views: Sequence[WriteableBuffer], what: str = "data") -> None:
        """Fill all of `views` completely, in their order; any number of them."""
        missing = _move_all(self._readv, views)
        if missing:
            raise EndOfStream(self.name, offset=self.offset, missing_bytes=missing, what=what)

    def peek(self, n: int) -> bytes:
        """Look at the next `n` bytes, fewer at the end, which are then read as if nobody had looked.

        Those of a pipe are taken from it: somebody else who reads the descriptor will not get them.
        """
        if self._is_file:
            fd = self.fileno()
            try:
                return os.pread(fd, n, os.lseek(fd, 0, os.SEEK_CUR))
            except OSError as error:
                raise self._failure(error) from error
        while len(self._held) < n:
            part = bytearray(n - len(self._held))
            more = self._waited_for(self._receive, [part])
            if more == 0:
                break
            self._held += part[:more]
        return self._held[:n]

    def read_some(self, n: int) -> bytes:
        """Return the next bytes, as many as come at once and at most `n`; none at the end only."""
        part = bytearray(n)
        got = self.read_some_into(part)
        return bytes(memoryview(part)[:got])

    def read_some_into(self, view: WriteableBuffer) -> int:
        """Put the next bytes into `view`, as many as come at once: how many; 0 at the end only."""
        return self._readv([view])

    def read(self, n: int, what: str = "data") -> bytes:
        """Return exactly `n` bytes."""
        if n == 0:
            return b""
        data = bytearray(n)
        self.readv((data,), what)
        return bytes(data)

    def skip(self, n: int, what: str = "data") -> None:
        """Pass over `n` bytes: by a seek in a regular file, else by reading into one kept buffer."""
        if self._is_file:
            left = max(0, self._bytes_to_end())
            self._seek(min(n, left))
            if n > left:
                raise EndOfStream(self.name, offset=self.offset, missing_bytes=n - left, what=what)
            return
        if self._dropped is None:
            self._dropped = bytearray(min(n, SKIP_BUFFER_BYTES))
        elif len(self._dropped) < min(n, SKIP_BUFFER_BYTES):
            self._dropped = bytearray(SKIP_BUFFER_BYTES)
        while n:
            part = memoryview(self._dropped)[:n]
            moved = self._readv([part])
            if moved == 0:
                raise EndOfStream(self.name, offset=self.offset, missing_bytes=n, what=what)
            n -= moved

    def splice(self, pipe: int, n: int) -> int:
        """See Spliceable. Fewer also where `peek` has taken them already."""
        left = n
        while left and not self._held:
            try:
                moved = unless_blocked(partial(os.splice, self.fileno(), pipe, left))
            except BrokenPipeError:
                raise
            except OSError as error:
                if error.errno == errno.EINVAL:
                    break
                raise self._failure(error) from error
            if moved is None:
                self._wait(select.POLLIN)
                continue
            if not moved:
                break
            self.offset += moved
            left -= moved
        return n - left

    def look_ahead(self, n: int) -> Iterator[bytes]:
        """See RegularFile."""
        return self._parts(self.offset, n)

    def read_again(self, begin: int, length: int) -> Iterator[bytes]:
        """See RegularFile. TransportError also for a file that has become shorter."""
        for part in self._parts(begin, length):
            yield part
            length -= len(part)
        if length:
            raise TransportError(f"{self.name} has become shorter while it was read")

    def _parts(self, begin: int, length: int) -> Iterator[bytes]:
        """Up to `length` bytes of a regular file from `begin` on, in terms of `offset`."""
        at = os.lseek(self.fileno(), 0, os.SEEK_CUR) - self.offset + begin
        while length:
            try:
                part = os.pread(self.fileno(), min(length, SKIP_BUFFER_BYTES), at)
            except OSError as error:
                raise self._failure(error) from error
            if not part:
                return
            yield part
            at += len(part)
            length -= len(part)

    def skip_to_end(self) -> int:
        """Pass over everything that is left, and return how many bytes that was."""
        before = self.offset
        if self._is_file:
            self._seek(max(0, self._bytes_to_end()))
        else:
            self._dropped = bytearray(SKIP_BUFFER_BYTES)
            while self._readv([self._dropped]):
                pass
        return self.offset - before

    def at_end(self) -> bool:
        """Whether nothing follows.

        Reads one byte, and counts it when there is one: for a check after the last record, where
        whatever follows is wrong anyway. A pipe or socket whose writer is still there waits.
        """
        return self._readv([bytearray(1)]) == 0

    def _bytes_to_end(self) -> int:
        """How far a regular file goes on from here; it may have been cut meanwhile."""
        fd = self.fileno()
        try:
            return os.fstat(fd).st_size - os.lseek(fd, 0, os.SEEK_CUR)
        except OSError as error:
            raise self._failure(error) from error

    def _seek(self, n: int) -> None:
        try:
            os.lseek(self.fileno(), n, os.SEEK_CUR)
        except OSError as error:
            raise self._failure(error) from error
        self.offset += n

    def _readv(self, views: list[Any]) -> int:
        """One readv, of bytes that `peek` took first; 0 at the end."""
        if self._held:
            view = memoryview(views[0]).cast("B")
            moved = min(len(view), len(self._held))
            view[:moved] = self._held[:moved]
            self._held = self._held[moved:]
            self.offset += moved
            return moved
        return self._waited_for(self._take, views)

    def _take(self, views: list[Any]) -> int:
        """Receive once, and count what came."""
        moved = self._receive(views)
        self.offset += moved
        return moved

    def _receive(self, views: list[Any]) -> int:
        """One readv. BlockingIOError where a non-blocking descriptor has nothing."""
        return os.readv(self.fileno(), views)

    def _waited_for(self, read: Callable[[list[Any]], int], views: list[Any]) -> int:
        """What `read` returns, when a non-blocking descriptor has something; 0 at the end."""
        while True:
            try:
                moved = unless_blocked(partial(read, views))
            except OSError as error:
                raise self._failure(error) from error
            if moved is not None:
                return moved
            self._wait(select.POLLIN)

    def _failure(self, error: OSError) -> TransportError:
        place = f"at byte {self.offset:#x} = {self.offset}"
        if error.errno in PEER_ERRORS:
            return TransportError(
                f"{self.name}: the sender has gone, {place}: {error.strerror}", name=ErrorName.PEER_CLOSED
            )
        return TransportError(
            f"{self.name}: reading failed {place}: {error.strerror}", name=name_of_errno(error.errno)
        )


class FdSink(_Fd):
    """An `ImageSink` over a descriptor. Every byte is with the kernel when a call returns."""

    @property
    def leaves_holes(self) -> bool:
        """See ImageSink."""
        return False

    @property
    def stored_bytes(self) -> int:
        """How many bytes had to be written."""
        return self.offset

    @property
    def held_bytes(self) -> int:
        """How many of the bytes that were given are not with the kernel yet."""
        return 0

    def finish(self) -> None:
        """Everything has been given. Nothing is held back here that would still have to be written."""

    def write(self, data: ReadableBuffer) -> None:
        """Write all of `data`."""
        self.writev((data,))

    def writev(self, buffers: Sequence[ReadableBuffer]) -> None:
        """Write all of `buffers`, in their order; any number of them, none is copied."""
        missing = _move_all(self._writev, buffers)
        if missing:
            raise TransportError(f"{self.name}: takes no more data at byte {self.offset:#x} = {self.offset}")

    def _writev(self, buffers: list[Any]) -> int:
        """One writev, waited for when the descriptor is non-blocking."""
        while True:
            try:
                moved = unless_blocked(partial(self._put, buffers))
            except OSError as error:
                raise self._failure(error) from error
            if moved is not None:
                return moved
            self._wait(select.POLLOUT)

    def _put(self, buffers: list[Any]) -> int:
        """Send once, and count what went."""
        moved = self._send(buffers)
        self.offset += moved
        return moved

    def _send(self, buffers: list[Any]) -> int:
        """One writev. BlockingIOError where a non-blocking descriptor takes nothing."""
        return os.writev(self.fileno(), buffers)

    def _failure(self, error: OSError) -> TransportError:
        return self._failure_at(error, self.offset)

    def _failure_at(self, error: OSError, at: int) -> TransportError:
        """In words. `at`: the byte that could not be written."""
        place = f"at byte {at:#x} = {at}"
        if error.errno in SPACE_ERRORS:
            return TransportError(
                f"{self.name}: {error.strerror}, {place}",
                name=ErrorName.DISK_FULL,
                remedies=remedies_of_errno(error.errno),
            )
        if error.errno in PEER_ERRORS:
            return TransportError(
                f"the reader of {self.name} has gone, {place}: {error.strerror}", name=ErrorName.PEER_CLOSED
            )
        if error.errno == errno.EIO:
            return TransportError(
                f"{self.name}: the device failed, {place}: {error.strerror}; see the kernel log "
                "and write to another place"
            )
        return TransportError(
            f"{self.name}: writing failed {place}: {error.strerror}", name=name_of_errno(error.errno)
        )
