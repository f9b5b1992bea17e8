"""Our commands, started in an instant: by a process that has Python, numpy and all of the package loaded, and forks.

Under emulation Python takes seconds to load them, and the tests on real Xen start some thousand commands.

    tests ──argv, folder, environment, descriptors──► server ──fork──► in between ──fork──► the command

The process in between ends at once. As the tests are the "child subreaper" just then, the command becomes their
own child: its pid is the one that they signal and look up in /proc, and its status is theirs to wait for.
Descriptors, session, group, signal handlers, command line and name are as after exec(2).

Two things differ: what was loaded before, and the peak of memory that a process inherits. So a test marked `cold`
starts its commands as a user does, and so do other programs that start them, such as bash, xl or libxl.

    python3 launcher.py FD MODULE...    the server: listens on the socket FD, ends with its standard input
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import importlib
import inspect
import json
import os
import pkgutil
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGES = ("saverestore", "pyxc", "labline")
OURS = ("pysave", "pyrestore", "pyimage", "pymigrate", "pysave-watch", "pysave-helper", "lab-guest")

STARTING_TAKES_S = 300
LONGEST_REQUEST = 1 << 17
MOST_DESCRIPTORS = 16

_PR_SET_NAME, _PR_SET_MM, _PR_SET_CHILD_SUBREAPER = 15, 35, 36
_PR_SET_MM_MAP = 14
_libc = ctypes.CDLL(None, use_errno=True)
_prctl, _sbrk = _libc.prctl, _libc.sbrk
_sbrk.restype, _sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]

_server: str | None = None
"""Where the server listens; None: every command is started as usual."""


def script_of(argv: Sequence[str]) -> tuple[str, list[str]] | None:
    """The Python script that a command line runs, and its arguments; None where it runs something else."""
    if argv[0] == sys.executable and len(argv) > 1 and argv[1].endswith(".py"):
        return argv[1], list(argv[2:])
    if Path(argv[0]).name in OURS and (path := shutil.which(argv[0])):
        return path, list(argv[1:])
    return None


@contextmanager
def serving(packages: Sequence[str] = PACKAGES) -> Iterator[None]:
    """Inside this block there is a server, and `Popen` starts scripts by it."""
    global _server
    with tempfile.TemporaryDirectory(prefix="launcher-") as folder:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(f"{folder}/socket")
            listening.listen()
            server = subprocess.Popen(
                [sys.executable, __file__, str(listening.fileno()), *packages],
                stdin=subprocess.PIPE,
                pass_fds=[listening.fileno()],
            )
        _server = f"{folder}/socket"
        try:
            yield
        finally:
            _server = None
            server.communicate()


@contextmanager
def cold() -> Iterator[None]:
    """Inside this block commands are started as a user starts them."""
    global _server
    before, _server = _server, None
    try:
        yield
    finally:
        _server = before


_SIGNATURE = inspect.signature(subprocess.Popen._execute_child)  # type: ignore[attr-defined]


class Popen(subprocess.Popen):
    """`subprocess.Popen`, which lets the server start what is a script of ours."""

    def _execute_child(self, *given: Any) -> None:
        of = _SIGNATURE.bind(self, *given).arguments
        script = None
        if _server and not of["shell"] and not isinstance(of["args"], str | bytes):
            script = script_of([os.fsdecode(word) for word in of["args"]])
        if script is None or _server is None:
            super()._execute_child(*given)  # type: ignore[misc]
            return
        standard = zip((0, 1, 2), (of["p2cread"], of["c2pwrite"], of["errwrite"]), strict=True)
        descriptors = {target: (target if fd == -1 else fd) for target, fd in standard}
        descriptors |= {fd: fd for fd in of["pass_fds"]}
        request = {
            "script": script[0],
            "arguments": script[1],
            "folder": str(Path.cwd() / os.fsdecode(of["cwd"] or "")),
            "environment": dict(os.environ if of["env"] is None else of["env"]),
            "new_session": bool(of["start_new_session"]),
            "targets": list(descriptors),
        }
        try:
            self.pid = _ask(_server, request, list(descriptors.values()))
            self._child_created = True
        finally:
            self._close_pipe_fds(  # type: ignore[attr-defined]
                *(of[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"))
            )


def _ask(server: str, request: dict[str, Any], descriptors: list[int]) -> int:
    """Let the server start a command: its pid. It is a child of this process when this process started the server."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(STARTING_TAKES_S)
        connection.connect(server)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            socket.send_fds(connection, [json.dumps(request).encode()], descriptors)
            said = connection.recv(64)
        finally:
            # Only for that moment: other orphans, such as daemons, are init's.
            _prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    if not said:
        raise OSError("the launcher of commands is gone")
    return int(said)


# ---- the server --------------------------------------------------------------------------------------


def load(names: Sequence[str]) -> None:
    """Import packages with all their modules; what cannot be loaded is left to the command that wants it."""
    for name in names:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError):
            continue
        if hasattr(module, "__path__"):
            load(
                [
                    f"{name}.{found.name}"
                    for found in pkgutil.iter_modules(module.__path__)
                    if found.name != "__main__"
                ]
            )


def serve(listening: socket.socket) -> dict[str, Any] | None:
    """Start what is asked for until standard input ends.

    Returns None then; and in each command's own process, what it was asked to be.
    """
    while True:
        readable, _, _ = select.select([listening, 0], [], [])
        if listening not in readable:
            return None
        connection, _ = listening.accept()
        with connection:
            message, descriptors, _, _ = socket.recv_fds(connection, LONGEST_REQUEST, MOST_DESCRIPTORS)
            if not message:
                continue
            request = json.loads(message)
            pid = _forked()
            if pid == 0:
                for one in (connection, listening):
                    one.detach()  # closed with all that is not the command's
                become(request, descriptors)
                return request
            for fd in descriptors:
                os.close(fd)
            connection.send(str(pid).encode())


def _forked() -> int:
    """Fork a process that is nobody's child here: its pid, and 0 in it, once it has its new parent."""
    pid_read, pid_write = os.pipe()
    go_read, go_write = os.pipe()
    between = os.fork()
    if between == 0:
        os.close(go_write)
        pid = os.fork()
        if pid == 0:
            os.close(pid_write)
            os.close(pid_read)
            os.read(go_read, 1)  # until the server has closed it
            os.close(go_read)
            return 0
        os.write(pid_write, str(pid).encode())
        os._exit(0)
    os.close(pid_write)
    os.close(go_read)
    os.waitpid(between, 0)
    pid = int(os.read(pid_read, 64))
    os.close(pid_read)
    os.close(go_write)
    return pid


def become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Be as a process that has just been started with this request."""
    targets = request["targets"]
    above = max(max(targets) + 1, 64)
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, above) for fd in descriptors]
    for target, fd in zip(targets, moved, strict=True):
        os.dup2(fd, target)
    before = 2
    for target in sorted(target for target in targets if target > 2):
        os.closerange(before + 1, target)
        before = target
    os.closerange(before + 1, os.sysconf("SC_OPEN_MAX"))
    if request["new_session"]:
        os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    script = request["script"]
    sys.argv = [script, *request["arguments"]]
    sys.path[0] = str(Path(script).resolve().parent)
    _show_as([sys.executable, *sys.argv], Path(script).name)
    subprocess.Popen = Popen  # type: ignore[misc]  # a watcher that pyrestore starts


class _Places(ctypes.Structure):
    """struct prctl_mm_map (linux/prctl.h): where parts of a process lie, as /proc tells it."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in (
            "start_code", "end_code", "start_data", "end_data", "start_brk", "brk", "start_stack",
            "arg_start", "arg_end", "env_start", "env_end", "auxv",
        )),
        ("auxv_size", ctypes.c_uint32),
        ("exe_fd", ctypes.c_int32),
    )  # fmt: skip


_shown: Any = None
"""The command line that /proc shows, which must stay where it is."""


def _show_as(words: list[str], name: str) -> None:
    """Be seen in /proc with this command line and name."""
    global _shown
    line = b"".join(os.fsencode(word) + b"\0" for word in words)
    _shown = ctypes.create_string_buffer(line, len(line))
    address = ctypes.addressof(_shown)
    # proc(5): those from the third on, behind the name in brackets, which may hold anything.
    stat = [0, 0, *Path("/proc/self/stat").read_text().rpartition(")")[2].split()]
    field = {
        "start_code": 26, "end_code": 27, "start_stack": 28, "start_data": 45, "end_data": 46, "start_brk": 47,
        "env_start": 50, "env_end": 51,
    }  # fmt: skip
    places = _Places(
        **{what: int(stat[number - 1]) for what, number in field.items()},
        brk=_sbrk(0),
        arg_start=address,
        arg_end=address + len(line),
        exe_fd=-1,
    )
    size = ctypes.c_ulong(ctypes.sizeof(places))
    if _prctl(_PR_SET_MM, _PR_SET_MM_MAP, ctypes.byref(places), size, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_MM_MAP)")
    _prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def main() -> None:
    """Be the server; a command runs from here to its end, so that Python ends it as it ends any program."""
    global _server
    listening = socket.socket(fileno=int(sys.argv[1]))
    _server = listening.getsockname()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it ends with those who started it
    load(sys.argv[2:])
    gc.freeze()  # what is loaded is not looked through, and so not copied, in each command
    request = serve(listening)
    if request is not None:
        runpy.run_path(request["script"], run_name="__main__")


if __name__ == "__main__":
    main()
