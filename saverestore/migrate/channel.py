"""Messages over a connection: whole, in order, with keepalives both ways, and no wait without an end.

The source has a thread that reads what the destination says while the main thread writes the image. The destination
reads on the thread that needs what comes.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import saverestore
from saverestore.errors import ErrorName, ExitCode, SaveRestoreError
from saverestore.interrupts import waited_for
from saverestore.migrate import protocol
from saverestore.migrate.messages import (
    Abort,
    Aborted,
    Acknowledged,
    Busy,
    Hello,
    KeepAlive,
    Lost,
    Message,
    MessageType,
    ProtocolError,
    Refused,
    Unknown,
    for_people,
)
from saverestore.transport.base import EndOfStream
from saverestore.transport.connection import BrokenPeer, Connection, PeerTimeout
from saverestore.transport.fd import nbytes_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

SILENCE_S = 30.0
"""A peer that sends nothing for so long is given up."""

KEEPALIVE_S = 5.0
LAST_WORD_S = 2.0
"""So long it is looked for after a write has failed; it has been sent by then."""

GREETING_S = 120.0
"""Until the first message has come: a person may have to type a password for ssh."""

MessageT = TypeVar("MessageT", bound=Message)
OTHERWISE = (Abort, Aborted, Refused, Lost, Busy, Unknown)
"""What a peer may say instead of what was expected."""


class SaidOtherwise(SaveRestoreError):
    """The peer said something else than was hoped for: that it gives up, refuses, does not know. See `message`."""

    exit_code = ExitCode.IO
    name = ErrorName.MIGRATION_ABORTED

    def __init__(self, peer: str, message: Message) -> None:
        self.message = message
        reason = for_people(str(getattr(message, "reason", "")))
        super().__init__(f"{peer} said {message.type.name}" + (f": {reason}" if reason else ""))


class Channel:
    """See above. A context manager, which closes the connection.

    Every wait ends with `PeerTimeout` when nothing comes for the connection's `timeout_s`, and with `BrokenPeer` when
    the peer is gone. `ProtocolError` when it says what is not valid. After any of them only `close` is of use.
    """

    def __init__(self, connection: Connection, *, keepalive_s: float = KEEPALIVE_S) -> None:
        self.connection = connection
        self.peer = connection.peer
        self._keepalive_s = keepalive_s
        self._writing = threading.Lock()
        self._is_cut = False
        self._is_closing = False
        self._pausing = threading.Condition()
        """What ends the wait for the next keepalive: notified when `_keepalive_s` or `_is_closing` changes."""
        self._is_looked_after = False
        self._threads: list[threading.Thread] = []
        self._heard: queue.SimpleQueue[Message | BaseException] | None = None
        self._taken: list[Message | BaseException] = []
        """One of them for which nobody waits any more, as a signal came with it: it is heard next."""
        self._failure: BaseException | None = None
        self._has_failed = threading.Event()
        self._acknowledging = threading.Condition()
        self.when_asked: Callable[[], None] | None = None
        """What answers a keepalive that is read; None: nothing does."""

    # ---- writing -----------------------------------------------------------------------------------

    def say(self, message: Message) -> None:
        """Send a message."""
        self._write([protocol.pack(message)])

    def say_data(self, buffers: Sequence[ReadableBuffer]) -> None:
        """Send bytes of the image, as one message or more."""
        part: list[Any] = []
        length = 0
        for buffer in buffers:
            view = memoryview(buffer).cast("B") if nbytes_of(buffer) > protocol.MAX_DATA_BYTES else None
            pieces = [buffer] if view is None else _pieces(view, protocol.MAX_DATA_BYTES)
            for piece in pieces:
                size = nbytes_of(piece)
                if length + size > protocol.MAX_DATA_BYTES:
                    self._write([protocol.pack_header(MessageType.DATA, length), *part])
                    part, length = [], 0
                part.append(piece)
                length += size
        if length:
            self._write([protocol.pack_header(MessageType.DATA, length), *part])

    def _write(self, buffers: Sequence[ReadableBuffer]) -> None:
        if self._failure is not None:
            raise self._failure
        is_held = False

        def look(seconds: float) -> bool:
            nonlocal is_held
            is_held = self._writing.acquire(timeout=seconds)
            return is_held

        try:
            # Without a limit: who writes is given up by the connection, and no sooner than the peer is.
            waited_for(look)  # inside: a signal that came meanwhile is raised when it is held
            if self._is_cut:
                raise BrokenPeer(self.peer, "cannot be written to any more: a message was cut short")
            self._is_cut = True
            self.connection.outgoing.writev(buffers)
            self._is_cut = False
        except BrokenPeer:
            self._raise_last_word()
            raise
        finally:
            if is_held:
                self._writing.release()

    def _raise_last_word(self) -> None:
        """A peer that gives up says why and closes: what it said may come to be read after a write has failed."""
        if self._heard is None or not waited_for(self._has_failed.wait, LAST_WORD_S):
            return
        if isinstance(self._failure, SaidOtherwise):
            raise self._failure

    def _keep_alive(self) -> None:
        frame = protocol.pack(KeepAlive())
        while self._keepalive_is_due():
            if not self._writing.acquire(timeout=self._keepalive_s):
                continue  # something is being written, which is as good
            try:
                if self._is_looked_after or self._is_cut:
                    return
                self._is_cut = True
                self.connection.outgoing.write(frame)
                self._is_cut = False
            except (SaveRestoreError, OSError, ValueError):
                return  # whoever writes or reads next finds out
            finally:
                self._writing.release()

    def _keepalive_is_due(self) -> bool:
        """Wait until it is, from the last one on; false when the channel is closed."""
        begun = time.monotonic()
        with self._pausing:
            while not self._is_closing:
                # Looked at again after each change: the wait has begun before both sides agree how long it may be.
                left = begun + self._keepalive_s - time.monotonic()
                if left <= 0:
                    return True
                self._pausing.wait(left)
        return False

    # ---- reading -----------------------------------------------------------------------------------

    def hear(self, *wanted: type[MessageT]) -> MessageT:
        """The next message, of one of these classes. SaidOtherwise when the peer refuses, or gives up."""
        message = self._hear_any()
        if isinstance(message, wanted):
            return message
        if isinstance(message, OTHERWISE):
            raise SaidOtherwise(self.peer, message)
        names = " or ".join(one.type.name for one in wanted)
        raise ProtocolError(f"{self.peer} said {message.type.name} where {names} belongs")

    def _hear_any(self) -> Message:
        if self._heard is None:
            return self.next_message()
        heard, got = self._heard, self._taken

        def look(seconds: float) -> bool:
            with contextlib.suppress(queue.Empty):
                if not got:
                    got.append(heard.get(timeout=seconds) if seconds else heard.get_nowait())
            return bool(got)

        if self._failure is not None and heard.empty() and not got:
            raise self._failure
        waited_for(look)
        found = got.pop()
        if isinstance(found, BaseException):
            raise found
        return found

    def next_header(self) -> protocol.Header:
        """The head of the next message that is not a keepalive or acknowledgement; its body is to be read next."""
        while True:
            header = protocol.unpack_header(self.read(protocol.HEADER.size))
            if header.type is MessageType.KEEPALIVE:
                self.message_of(header)
                if self.when_asked is not None:
                    self.when_asked()
            elif header.type is MessageType.ACKNOWLEDGED:
                message = self.message_of(header)
                assert isinstance(message, Acknowledged)
                with self._acknowledging:
                    self.connection.note_acknowledged(message.position)
                    self._acknowledging.notify_all()
            else:
                return header

    def message_of(self, header: protocol.Header) -> Message:
        """Read a body."""
        return protocol.unpack(header, self.read(header.length_bytes))

    def next_message(self) -> Message:
        """Read the next message, on this thread."""
        return self.message_of(self.next_header())

    def read(self, n: int) -> bytes:
        """The next `n` bytes. BrokenPeer when the peer has ended before."""
        try:
            return self.connection.incoming.read(n, "a message")
        except EndOfStream as error:
            raise BrokenPeer(self.peer, "has closed the connection") from error

    def listen(self) -> None:
        """From now on a thread of its own reads; `hear` waits for it. Both `hear` and `say` raise what it met."""
        self._heard = queue.SimpleQueue()
        self._start(self._listen, "migration-listener")

    def _listen(self) -> None:
        assert self._heard is not None
        try:
            while True:
                message = self.next_message()
                self._heard.put(message)
                if isinstance(message, OTHERWISE):
                    self._fail(SaidOtherwise(self.peer, message))
        except BaseException as error:  # for whoever waits
            self._fail(self._failure or error)
            self._heard.put(error)

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._has_failed.set()
        with self._acknowledging:
            self._acknowledging.notify_all()

    def await_acknowledged(self, position: int, within_s: float) -> bool:
        """Wait until the peer, which reads an image, has acknowledged so much of it: false when it takes longer.

        It says so when it has read KEEPALIVE behind that. Once `listen` was called. Raises what `listen` has met.
        """

        def look(seconds: float) -> bool:
            with self._acknowledging:
                return self._acknowledging.wait_for(
                    lambda: self.connection.acknowledged >= position or self._failure is not None, seconds
                )

        has_come = waited_for(look, within_s)
        if self._failure is not None:
            raise self._failure
        return has_come

    # ---- beginning and end -------------------------------------------------------------------------

    def greet(self, journals: str, boot: str, host: str) -> Hello:
        """Send HELLO and read the peer's; from now on keepalives are sent. VersionMismatch, or as `hear`."""
        program = f"pymigrate/{saverestore.__version__}"
        self.say(Hello(protocol.LOWEST_VERSION, protocol.HIGHEST_VERSION, journals, boot, program, host))
        before, self.connection.timeout_s = self.connection.timeout_s, GREETING_S
        try:
            hello = self.hear(Hello)
        finally:
            self.connection.timeout_s = before
        protocol.agreed_version(hello)
        self._start(self._keep_alive, "migration-keepalive")
        return hello

    def expect_within(self, silence_s: float) -> None:
        """Give up a peer that is silent for so long, and be heard often enough by one that does the same.

        It holds at once, also for waits that have begun.
        """
        self.connection.timeout_s = silence_s
        with self._pausing:
            self._keepalive_s = min(self._keepalive_s, silence_s / 3)
            self._pausing.notify_all()

    def continue_over(
        self, make: Callable[[Connection], Connection], say: Message, answer: type[Message] | None = None
    ) -> None:
        """Say this, hear the answer if there is to be one; from then on use what `make` makes of the connection.

        That looks after itself: no keepalives are sent any more. Before `listen`.
        """
        with self._writing:
            self._is_looked_after = True
            self.connection.outgoing.write(protocol.pack(say))
            if answer is not None:
                self.hear(answer)
            self.connection = make(self.connection)

    def _start(self, work: Any, name: str) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def close(self) -> None:
        """Close the connection. A second time does nothing."""
        with self._pausing:
            self._is_closing = True
            self._pausing.notify_all()
        self.connection.close()
        for thread in self._threads:
            thread.join(1.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _pieces(view: memoryview, size: int) -> list[memoryview]:
    return [view[at : at + size] for at in range(0, len(view), size)]


__all__ = ["BrokenPeer", "Channel", "PeerTimeout", "SaidOtherwise"]
