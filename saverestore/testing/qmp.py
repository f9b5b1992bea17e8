"""A device model without QEMU: it answers over socket pairs as QEMU's QMP monitor does (qemu docs/interop/qmp-spec).

    >>> from saverestore.testing.qmp import FakeQemu
    >>> with FakeQemu(state=b"registers") as qemu:
    ...     monitor = qemu.connect()
    ...     greeting = monitor.recv(4096)
    ...     _ = monitor.send(b'{"execute": "qmp_capabilities"}')
    ...     answer = monitor.recv(4096)
    ...     monitor.close()
    >>> greeting[:8], answer, qemu.commands
    (b'{"QMP": ', b'{"return": {}}\\r\\n', ['qmp_capabilities'])

What a device model can do wrong is for the test to say (`FakeQemu.instead_of`): an answer that is an error or no
JSON, events without end, silence, an end in the middle. Nothing here needs QEMU or Xen.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import threading
from collections.abc import Callable
from typing import Any, Self

GREETING = {
    "QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}
}
MOST_FDS = 4
FDSET = re.compile(r"/dev/fdset/(\d+)")


class CommandFailed(Exception):
    """What a command answers when it fails; `kind` is QMP's class of the error."""

    def __init__(self, desc: str, kind: str = "GenericError") -> None:
        super().__init__(desc)
        self.kind = kind


class Conversation:
    """One client's connection, as a test's own answers see it."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def send(self, data: bytes) -> None:
        """Send these bytes as they are. A client that is gone is no error."""
        with contextlib.suppress(OSError):
            self._end.sendall(data)

    def send_message(self, message: dict[str, Any]) -> None:
        """Send a line of JSON."""
        self.send(json.dumps(message).encode() + b"\r\n")

    def event(self, name: str) -> None:
        """Send an event."""
        self.send_message({"timestamp": {"seconds": 0, "microseconds": 0}, "event": name})

    def fail(self, desc: str, kind: str = "GenericError") -> None:
        """Answer that the command failed."""
        self.send_message({"error": {"class": kind, "desc": desc}})

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)


class FakeQemu:
    """The device model of one domain: `running`, `dirty_log` and `state`, what it would save of its devices.

    `blocked`: reasons why it could not be migrated. `commands` are the names of the commands that came, in order;
    `nr_fds` counts descriptors that it was given and still holds. It serves one client at a time, as QEMU does: the
    next gets its greeting when the first has hung up. A context manager: at the end all conversations are over.
    """

    def __init__(self, state: bytes = b"state of devices") -> None:
        self.state = state
        self.running = True
        self.dirty_log = False
        self.blocked: list[str] = []
        self.alive = True
        self.commands: list[str] = []
        self._fdsets: dict[int, list[int]] = {}
        self._instead: dict[str, Callable[[Conversation], None]] = {}
        self._turn = threading.Lock()
        self._conversations: list[tuple[socket.socket, threading.Thread]] = []

    @property
    def nr_fds(self) -> int:
        """How many descriptors its fdsets hold."""
        return sum(map(len, self._fdsets.values()))

    def connect(self) -> socket.socket:
        """A client's end of a new conversation; ConnectionRefusedError when the device model has ended."""
        if not self.alive:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        clients, ours = socket.socketpair(socket.AF_UNIX)
        thread = threading.Thread(target=self._serve, args=(ours,), daemon=True)
        self._conversations.append((ours, thread))
        thread.start()
        return clients

    def instead_of(self, command: str, do: Callable[[Conversation], None]) -> None:
        """Call `do` rather than carry out `command`, or send the greeting ("greeting"). To do nothing is silence."""
        self._instead[command] = do

    def close(self) -> None:
        """End all conversations. Twice is fine."""
        self.alive = False
        for ours, _ in self._conversations:
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
        for _, thread in self._conversations:
            thread.join()
        self._conversations.clear()
        for number in [*self._fdsets]:
            self._remove_fd({"fdset-id": number})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- a conversation ----------------------------------------------------------------------------

    def _serve(self, ours: socket.socket) -> None:
        with ours, self._turn, contextlib.suppress(OSError):
            conversation = Conversation(ours)
            if (greet := self._instead.get("greeting")) is not None:
                greet(conversation)
            else:
                conversation.send_message(GREETING)
            self._answer_all(ours, conversation)

    def _answer_all(self, ours: socket.socket, conversation: Conversation) -> None:
        negotiated, text = False, ""
        while self.alive:
            data, fds, _, _ = socket.recv_fds(ours, 1 << 16, MOST_FDS)
            if not data:
                return
            text += data.decode()
            while text := text.lstrip():
                try:
                    message, end = json.JSONDecoder().raw_decode(text)
                except ValueError:
                    break  # not all of it is here yet
                text = text[end:]
                self._answer(message, fds, conversation, negotiated=negotiated)
                negotiated = negotiated or message["execute"] == "qmp_capabilities"
                fds = []
            for fd in fds:
                os.close(fd)

    def _answer(
        self, message: dict[str, Any], fds: list[int], conversation: Conversation, *, negotiated: bool
    ) -> None:
        name, arguments = message["execute"], message.get("arguments", {})
        self.commands.append(name)
        if (do := self._instead.get(name)) is not None:
            do(conversation)
            return
        try:
            if (name == "qmp_capabilities") == negotiated:
                raise CommandFailed(f"{name} at the wrong time of a conversation", "CommandNotFound")
            returned = self._execute(name, arguments, fds, conversation)
        except CommandFailed as error:
            conversation.fail(str(error), error.kind)
        else:
            conversation.send_message({"return": returned})

    # ---- commands ----------------------------------------------------------------------------------

    def _execute(
        self, name: str, arguments: dict[str, Any], fds: list[int], conversation: Conversation
    ) -> dict[str, Any]:
        match name:
            case "qmp_capabilities":
                return {}
            case "query-migrate":
                return {"blocked-reasons": self.blocked} if self.blocked else {}
            case "query-status":
                return {"status": "running" if self.running else "paused", "running": self.running}
            case "stop" | "cont":
                if self.running != (name == "cont"):
                    self.running = name == "cont"
                    conversation.event("RESUME" if self.running else "STOP")
                return {}
            case "xen-set-global-dirty-log":
                if not arguments["enable"] and not self.dirty_log:
                    self.alive = False  # QEMU aborts here
                    conversation.close()
                self.dirty_log = arguments["enable"]
                return {}
            case "add-fd":
                return self._add_fd(fds)
            case "remove-fd":
                return self._remove_fd(arguments)
            case "xen-save-devices-state":
                return self._save_state(arguments["filename"])
            case _:
                raise CommandFailed(f"The command {name} has not been found", "CommandNotFound")

    def _add_fd(self, fds: list[int]) -> dict[str, Any]:
        if not fds:
            raise CommandFailed("No file descriptor supplied via SCM_RIGHTS")
        number = max(self._fdsets, default=-1) + 1
        self._fdsets[number] = [fds.pop()]
        return {"fdset-id": number, "fd": self._fdsets[number][0]}

    def _remove_fd(self, arguments: dict[str, Any]) -> dict[str, Any]:
        number = arguments["fdset-id"]
        if number not in self._fdsets:
            raise CommandFailed(f"File descriptor named 'fdset-id:{number}' not found")
        for fd in self._fdsets.pop(number):
            os.close(fd)
        return {}

    def _save_state(self, filename: str) -> dict[str, Any]:
        """Into a descriptor that was opened for writing only: QEMU takes no other for this."""
        named = FDSET.fullmatch(filename)
        for fd in self._fdsets.get(int(named[1]), []) if named else []:
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                with os.fdopen(os.dup(fd), "wb") as file:
                    file.write(self.state)
                return {}
        raise CommandFailed(f"Unable to open {filename}: Permission denied")
