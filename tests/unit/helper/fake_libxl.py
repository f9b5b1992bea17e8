"""The other end of the helper's pipes: takes its messages on a thread, and answers as libxl would."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from saverestore.helper.channel import Channel
from saverestore.helper.messages import FRAME_LENGTH, QUESTIONS, REPLY, MessageType, unpack

SAVE_CALLBACKS = 1 << MessageType.SUSPEND | 1 << MessageType.SWITCH_QEMU_LOGDIRTY
RESTORE_CALLBACKS = 1 << MessageType.STATIC_DATA_DONE | 1 << MessageType.RESTORE_RESULTS


class FakeLibxl:
    """`messages` are (type, values) as they came, LOG and PROGRESS left out; `logged` the texts of LOG.

    `answers`: what to say to a question, or what to call for it; 0 to others. `before`: called when a message of
    a type has come, before it is answered. At `dies_at` it ends
    without a word, as `xl` does when it is killed. With `dripping` an answer comes a byte at a time.
    """

    def __init__(self, callbacks: int, *, dripping: bool = False) -> None:
        self.callbacks = callbacks
        self.dripping = dripping
        self.messages: list[tuple[MessageType, tuple[Any, ...]]] = []
        self.logged: list[tuple[int, str]] = []
        self.answers: dict[MessageType, int | Callable[..., int]] = {}
        self.before: dict[MessageType, Callable[[], None]] = {}
        self.dies_at: MessageType | None = None
        self.helper_reads, self._replies = os.pipe()
        self._messages, self.helper_writes = os.pipe()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def channel(self) -> Channel:
        """For a helper in this process."""
        return Channel(replies_fd=self.helper_reads, messages_fd=self.helper_writes, callbacks=self.callbacks)

    def types(self) -> list[MessageType]:
        """The types of the messages, in order."""
        return [type for type, _ in self.messages]

    def said(self, type: MessageType) -> list[tuple[Any, ...]]:
        """The arguments of all messages of a type."""
        return [values for one, values in self.messages if one == type]

    def _serve(self) -> None:
        while head := self._read(FRAME_LENGTH.size):
            body = self._read(FRAME_LENGTH.unpack(head)[0])
            type, values = unpack(body)
            if type == MessageType.LOG:
                self.logged.append((values[0], values[3]))
            elif type != MessageType.PROGRESS:
                self.messages.append((type, values))
            if type in self.before:
                self.before[type]()
            if type == self.dies_at:
                os.close(self._replies)
                os.close(self._messages)
                return
            if type in QUESTIONS and (type == MessageType.COMPLETE or self.callbacks >> type & 1):
                answer = self.answers.get(type, 0)
                self._answer(answer(*values) if callable(answer) else answer)

    def _read(self, length: int) -> bytes:
        found = b""
        while len(found) < length and (more := os.read(self._messages, length - len(found))):
            found += more
        return found

    def _answer(self, answer: int) -> None:
        data = REPLY.pack(answer)
        for piece in [data[i : i + 1] for i in range(len(data))] if self.dripping else [data]:
            os.write(self._replies, piece)

    def close(self) -> None:
        """The helper is done: everything it said has been taken."""
        os.close(self.helper_writes)
        self._thread.join(timeout=10)
        assert not self._thread.is_alive()
        ours = () if self.dies_at else (self._messages, self._replies)
        for fd in (*ours, self.helper_reads):
            os.close(fd)
