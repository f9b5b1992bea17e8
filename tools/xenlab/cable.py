"""The Ethernet cable between the two hosts of a pair: a process that carries bytes between their QEMUs.

Each QEMU listens on a Unix socket for its card (`-netdev stream,server=on`), and this process connects to both.
Without it one QEMU would listen and the other one connect, and the one that connects would have no cable once the
other one was switched off and on: QEMU 7.2 connects once. Frames are not looked at. When one host goes, the
other's connection is closed as well, so that both start with a whole frame later. What is sent meanwhile is lost, as
on a cable.

    python3 -m xenlab.cable A.sock B.sock        until it is ended
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from xenlab import boot, runstate
from xenlab.errors import LabError

RETRY_S = 0.2
CHUNK_BYTES = 256 << 10


def carry(ends: tuple[Path, Path]) -> None:
    """Connect both ends and carry bytes until one of them closes; raises OSError while one cannot be connected."""
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        for one, path in zip((first, second), ends, strict=True):
            one.connect(str(path))
        there = threading.Thread(target=_one_way, args=(first, second))
        there.start()
        _one_way(second, first)
        there.join()


def _one_way(source: socket.socket, target: socket.socket) -> None:
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with contextlib.suppress(OSError):
        while length := source.recv_into(buffer):
            target.sendall(buffer[:length])
    for one in (source, target):  # ends the other direction as well
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def _main(ends: tuple[Path, Path]) -> None:
    while ends[0].parent.is_dir():
        with contextlib.suppress(OSError):
            carry(ends)
        time.sleep(RETRY_S)


def ensure(place: str, ends: tuple[Path, Path]) -> None:
    """Start the process unless it runs; it is recorded in the run folder of `place`."""
    if runstate.read_process(place) is not None:
        return
    with (runstate.run_folder(place) / "cable.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "xenlab.cable", *map(str, ends)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=Path(__file__).resolve().parents[1],
            start_new_session=True,
        )
    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.setpriority(os.PRIO_PROCESS, process.pid, boot.DEVICES_NICE)
    runstate.write_process(place, process.pid)


def end(place: str) -> None:
    """End the process, if it runs."""
    pid = runstate.read_process(place)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while runstate.read_process(place) is not None:
            if time.monotonic() > deadline:
                raise LabError(f"the pair's cable (pid {pid}) does not end: look at what it waits for")
            time.sleep(0.02)
    runstate.forget(place)


if __name__ == "__main__":
    _main((Path(sys.argv[1]), Path(sys.argv[2])))
