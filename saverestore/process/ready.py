"""A save helper that waits: a process forked before libxl is asked, so that no Python starts while an image is read.

libxl runs a program for the memory. Ours would load Python and its packages for a second time, while the stream
stands still. Here that program is a stand-in of a few lines, which hands its descriptors and words to a process that
has everything loaded:

    pyrestore ──fork──► helper that waits ◄──descriptors, words── stand-in ◄──fork, exec── libxl
                             │                                       │
                             └── talks to libxl by its pipes         └── ends with the helper's exit code

What the helper does is its caller's: a function that loads, and one that takes libxl's words and works.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from saverestore.errors import SaveRestoreError, fact_of
from saverestore.interrupts import SIGNALS, shield
from saverestore.process import ending, stand_in
from saverestore.toolstack.helper_link import HELPER_VARIABLE, TASK_VARIABLE
from saverestore.toolstack.programs import HELPER

MOST_WORDS = 1 << 16
LONGEST_INTERPRETER = 100
"""Bytes; kernels before 5.1 cut the first line of a program at 127."""

KILLED_S = 10.0
REAP_POLL_S = 0.002

MOST_DESCRIPTORS = 5
"""Standard input, output and error; the stream, and where libxl wants to be answered."""

Preload = Callable[[], None]
Main = Callable[[Sequence[str]], int]


@contextmanager
def ready_helper(main: Main, preload: Preload) -> Iterator[Mapping[str, str]]:
    """Inside this block a process waits to run `main`, once, with the words that libxl has for its helper.

    `preload` runs in that process before it waits: it imports what `main` will need. What `main` returns is the
    helper's exit code; a SaveRestoreError is printed, and its exit code is taken.

    Yields the variables with which libxl finds that process; none where the system does not let the stand-in run.
    The process is gone at the end of the block. Must be entered before there are threads.
    """
    program = _program()
    if program is None:
        yield {}
        return
    try:
        path = _path_of(program)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            address = f"pysave-ready-helper-{os.getpid()}-{os.urandom(8).hex()}"
            listening.bind("\0" + address)
            listening.listen(1)
            with _forked(listening, main, preload):
                yield {HELPER_VARIABLE: path, stand_in.ADDRESS_VARIABLE: address}
    finally:
        os.close(program)


def _program() -> int | None:
    """The stand-in as a file in memory that can be run; None where that may not be, or cannot name this Python."""
    if not sys.executable or " " in sys.executable or len(sys.executable) > LONGEST_INTERPRETER:
        return None
    try:
        program = os.memfd_create(HELPER)
    except PermissionError:  # sysctl vm.memfd_noexec
        return None
    os.write(program, f"#!{sys.executable} -IS\n".encode() + Path(stand_in.__file__).read_bytes())
    if os.access(_path_of(program), os.X_OK):
        return program
    os.close(program)
    return None


def _path_of(program: int) -> str:
    """As others can name it, while this process has it open."""
    return f"/proc/{os.getpid()}/fd/{program}"


@contextmanager
def _forked(listening: socket.socket, main: Main, preload: Preload) -> Iterator[None]:
    """Inside this block there is the process that waits."""
    ours, its = os.pipe()  # the reading end comes to its end when this process is gone, whatever it died of
    # Until it is clear who is who, no signal may raise: in the new process that would go on as this one would.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    pid: int | None = None
    try:
        pid = os.fork()
        if pid == 0:
            os.close(its)
            _be_helper(listening, ours, main, preload, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield
    finally:
        with shield():
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(ours)
            os.close(its)
            if pid is not None:
                # It has ended by now, or waits in vain; or works on for a stand-in that was killed.
                os.kill(pid, signal.SIGKILL)
                _reap(pid)


def _reap(pid: int) -> None:
    """Until it has ended, or for KILLED_S: the kernel cannot kill one that waits for a disk which does not answer."""
    end = time.monotonic() + KILLED_S
    while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < end:
        time.sleep(REAP_POLL_S)


def _be_helper(
    listening: socket.socket,
    lifeline: int,
    main: Main,
    preload: Preload,
    unblocked: Iterable[signal.Signals | int],
) -> None:
    """The forked process, which never returns; it begins with signals blocked, and ends by them while it waits."""
    code = stand_in.FAILED
    try:
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1):  # neither keep open what others wait to see closed
            os.dup2(nothing, fd)
        preload()
        with _called(listening, lifeline) as connection:
            words = _taken_over(connection)
            try:
                code = main(words)
            except SaveRestoreError as error:
                code = error.exit_code
                _report(f"{HELPER}: {fact_of(error)}\n")
            with suppress(OSError):
                connection.send(str(code).encode())
    except BaseException:
        _report(traceback.format_exc())
    finally:
        try:
            ending.end(code)
        finally:
            os._exit(code)


def _report(text: str) -> None:
    """Write to standard error. If nobody reads there, that is no failure of the work."""
    with suppress(OSError):
        os.write(2, text.encode())


@contextmanager
def _called(listening: socket.socket, lifeline: int) -> Iterator[socket.socket]:
    """The connection of a stand-in of this user's, which has our pid. The process ends when nobody needs it."""
    waited_for: list[socket.socket | int] = [listening, lifeline]
    while True:
        arrived, _, _ = select.select(waited_for, [], [])
        if lifeline in arrived:
            os._exit(stand_in.FAILED)
        connection, _ = listening.accept()
        with connection:
            if _is_ours(connection):
                connection.send(str(os.getpid()).encode())
                yield connection
                return


def _is_ours(connection: socket.socket) -> bool:
    """Abstract sockets have no owner: whoever is on this host may call."""
    uid_at = 4  # struct ucred: pid, uid, gid
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[uid_at : uid_at + 4], sys.byteorder) == os.geteuid()


def _taken_over(connection: socket.socket) -> list[str]:
    """libxl's words to the stand-in, with descriptors as they are. Its streams and task are this process's now."""
    data, fds, _, _ = socket.recv_fds(connection, MOST_WORDS, MOST_DESCRIPTORS)
    os.environ[TASK_VARIABLE], *words = data.decode().split("\0")
    for fd, standard in zip(fds, range(3), strict=False):
        os.dup2(fd, standard)
        os.close(fd)
    left = iter(fds[3:])
    for at in (1, 2):
        if int(words[at]) != stand_in.NO_DESCRIPTOR:
            words[at] = str(next(left))
    return words
