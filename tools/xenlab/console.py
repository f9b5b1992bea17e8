"""The serial console of a lab machine, on this terminal."""

from __future__ import annotations

import os
import select
import socket
import sys
import termios
import tty
from pathlib import Path

from xenlab.errors import LabError

_LEAVE = b"\x1d"  # Ctrl-]


def attach(path: Path) -> None:
    """Connect the terminal with the console's socket until Ctrl-] or until the machine goes down.

    The terminal is as before afterwards. With no terminal on stdin, its bytes go to the console and this
    returns at their end. One user at a time: a second one waits for the first to leave.
    """
    try:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(path))
    except OSError as error:
        raise LabError(f"cannot reach the console {path}: {error.strerror}: is somebody attached?") from error
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard) if os.isatty(keyboard) else None
    if before is not None:
        print("lab: connected; Ctrl-] leaves, Ctrl-a three times turns to Xen itself", file=sys.stderr)
        tty.setraw(keyboard)
    try:
        _relay(connection, keyboard)
    finally:
        if before is not None:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
            print("\nlab: left the console", file=sys.stderr)
        connection.close()


def _relay(connection: socket.socket, keyboard: int) -> None:
    while True:
        ready, _, _ = select.select([connection.fileno(), keyboard], [], [])
        if connection.fileno() in ready:
            data = connection.recv(65536)
            if not data:
                return
            os.write(sys.stdout.fileno(), data)
        if keyboard in ready:
            data = os.read(keyboard, 4096)
            if not data:
                return
            before, leave, _ = data.partition(_LEAVE)
            connection.sendall(before)
            if leave:
                return
