"""The helper's end of the two pipes to libxl."""

from __future__ import annotations

import os
import select
import threading
from typing import Self

from saverestore.errors import ErrorName, TransportError
from saverestore.helper.messages import ALWAYS_TAKEN, NO_ERRNO, QUESTIONS, REPLY, Level, MessageType, pack
from saverestore.interrupts import shield
from saverestore.toolstack.programs import HELPER

CONTEXT = HELPER
"""What our messages begin with in `xl`'s output."""


class LibxlGone(TransportError):
    """libxl has closed its ends of the pipes: there is nobody left to work for."""

    name = ErrorName.LIBXL_GONE


class Channel:
    """Messages to libxl, from any thread, and its answers, on the main thread.

    A signal may end the wait for an answer. The answer still comes, and must not be taken for that to the next
    question: it is read, and dropped, first. `questions` are the types of all so far.
    """

    def __init__(self, *, replies_fd: int, messages_fd: int, callbacks: int = 0) -> None:
        """Take the two descriptors. `callbacks`: bit 1 << type for each message that libxl has a callback for."""
        self._replies_fd = replies_fd
        self._messages_fd = messages_fd
        self._callbacks = callbacks
        self._writing = threading.RLock()
        self._owed = 0
        self.questions: set[MessageType] = set()
        self._partial = b""

    @classmethod
    def on_standard_streams(cls, callbacks: int) -> Self:
        """Take libxl's pipes from standard input and output, as libxl starts its helper.

        Afterwards standard input is empty and standard output goes where errors go: whatever reads or prints by
        mistake must not meet the protocol.
        """
        replies_fd, messages_fd = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        return cls(replies_fd=replies_fd, messages_fd=messages_fd, callbacks=callbacks)

    def takes(self, type: MessageType) -> bool:
        """Whether libxl does something with such a message."""
        return type in ALWAYS_TAKEN or bool(self._callbacks >> type & 1)

    def send(self, type: MessageType, *values: int | str) -> None:
        """Send a message. LibxlGone when nobody is there."""
        message = memoryview(pack(type, *values))
        # Whole messages only, whatever signal comes and whichever thread logs: libxl could not find its way back.
        with self._writing, shield():
            while message:
                try:
                    message = message[os.write(self._messages_fd, message) :]
                except OSError as error:
                    raise LibxlGone(f"libxl accepts no more messages: {error.strerror}") from error

    def ask(self, type: MessageType, *values: int | str) -> int:
        """Ask something and wait for the answer. LibxlGone when none comes.

        ValueError for a message that libxl would not answer: waiting for it would take forever.
        """
        if type not in QUESTIONS or not self.takes(type):
            raise ValueError(f"libxl has no answer to {type.name}")
        with shield():
            self.questions.add(type)
            self.send(type, *values)
            self._owed += 1
        while True:
            answer = self._next_reply()
            if not self._owed:
                return answer

    def _next_reply(self) -> int:
        """The next answer that comes, whichever question it is to."""
        arrival = select.poll()
        arrival.register(self._replies_fd, select.POLLIN)
        while True:
            arrival.poll()  # here a signal may end the wait
            with shield():  # but not between taking bytes from the pipe and noting them
                self._read_more()
                if len(self._partial) == REPLY.size:
                    (answer,) = REPLY.unpack(self._partial)
                    self._partial = b""
                    self._owed -= 1
                    break
        return int(answer)

    def _read_more(self) -> None:
        try:
            more = os.read(self._replies_fd, REPLY.size - len(self._partial))
        except OSError as error:
            raise LibxlGone(f"libxl's answer cannot be read: {error.strerror}") from error
        if not more:
            raise LibxlGone("libxl went away without an answer")
        self._partial += more

    # ---- messages with words of their own ----------------------------------------------------------

    def log(self, level: Level, text: str, *, errnoval: int = NO_ERRNO) -> None:
        """One line for `xl` to print."""
        self.send(MessageType.LOG, level, errnoval, CONTEXT, text)

    def progress(self, what: str, done: int, total: int) -> None:
        """So much of that is done."""
        self.send(MessageType.PROGRESS, CONTEXT, what, done, total)
