"""What a guest with devices does without a break: a log on its disk, and lines over one TCP connection."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

from xen_lab import must, run

LISTEN = "10.0.9.1"
QUIET_S = 60  # TCP's own pauses between retries grow while the guest is away


class Listener:
    """Takes the one connection of a guest and every line that comes over it."""

    def __init__(self) -> None:
        self._server = socket.create_server((LISTEN, 0))
        self.port: int = self._server.getsockname()[1]
        self.connections = 0
        self._text = b""
        self._ended = False
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self.connections += 1
                with connection:
                    while data := connection.recv(4096):
                        self._text += data
                self._ended = True

    def numbers(self) -> list[int]:
        """What has come so far."""
        return [int(line) for line in self._text.rpartition(b"\n")[0].split()]

    def goes_on(self) -> None:
        """Wait for new lines: over the same connection, none missing, none twice."""
        before = len(self.numbers())
        deadline = time.monotonic() + QUIET_S
        while len(self.numbers()) < before + 3:
            assert time.monotonic() < deadline, f"nothing came after {before} lines"
            time.sleep(0.1)
        assert self.connections == 1
        assert not self._ended, "the connection was closed"
        is_numbered(self.numbers())

    def close(self) -> None:
        self._server.close()


def is_numbered(numbers: list[int]) -> None:
    """1, 2, 3 …: no gap, no repeat."""
    assert numbers == list(range(1, len(numbers) + 1)), "lines are missing or doubled"


def log_on_disk(disk: Path, mount_point: Path) -> list[int]:
    """The numbers in the log on the disk of a guest that is gone; the file system must be sound."""
    replayed = run("fsck.ext4", "-p", "-E", "journal_only", str(disk))
    assert replayed.returncode in (0, 1), replayed.stdout  # 1: there was something in the journal
    must("fsck.ext4", "-n", "-f", str(disk))
    mount_point.mkdir(exist_ok=True)
    must("mount", "-o", "loop,ro", str(disk), str(mount_point))
    try:
        return [int(line) for line in (mount_point / "log").read_text().split()]
    finally:
        must("umount", str(mount_point))
