"""One connection over several links: what breaks is made good, and the order is kept.

    writer ─► Outbox ─┬─► sender ═ link 1 ═ reader ─┬─► Inbox ─► reader      each link has both threads on both sides
                      └─► sender ═ link 2 ═ reader ─┘
    each link:  CONSUMED, ARRIVED …, SYNCED │ DATA, ARRIVED, PING … │ END

A link is a `Connection` of any kind. What was on its way over one that breaks goes over the others; a link that joins
says first what is here already. With no link left the connection waits for one, `resume_for_s` long. Half-dead links
are noticed, as each side sends something on each link three times in `timeout_s`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from saverestore.errors import SaveRestoreError, TransportError, fact_of
from saverestore.interrupts import HEED_S, shield, waited_for
from saverestore.transport.connection import BadAcknowledgement, BrokenPeer, Connection, PeerTimeout
from saverestore.transport.link import Breaks, Link, Opened, broken, delivery_rate, share_rate, started
from saverestore.transport.link_keeper import Keeper, Open
from saverestore.transport.linked_streams import FrameSink, FrameSource
from saverestore.transport.paced import piece_bytes
from saverestore.transport.window import FRAME_BYTES, HEADER, WINDOW_BYTES, BadFrame, Inbox, Kind, Outbox

LOG = logging.getLogger(__name__)

BACKLOG = 2
"""Frames that may wait beside one for each link: what is said behind them should not come late."""

END_S = 2.0
"""How long the peer may take to close a link behind END."""


class LinkedConnection:
    """See above, and `Connection`. It is open until it is closed; closing it a second time does nothing.

    `resume_for_s`: how long it waits for a link when the last has broken; 0: not at all. `may_resume`: whether it
    does so now. BrokenPeer when the peer has closed it, or when there is no link any more.

    Here `timeout_s` is for each link. Closing `outgoing` is no half close: the peer finds the end when all is closed.
    """

    def __init__(
        self,
        first: Connection,
        *,
        timeout_s: float,
        resume_for_s: float = 0.0,
        may_resume: Callable[[], bool] = lambda: True,
        open_link: Open | None = None,
        wanted: int = 1,
        window_bytes: int = WINDOW_BYTES,
        frame_bytes: int = FRAME_BYTES,
    ) -> None:
        """`first` becomes a link, and belongs to this object.

        `open_link`: how this side comes to have `wanted` links; None: the other side opens them, and `add` is called.
        """
        self.peer = first.peer
        self.local_host, self.remote_host = first.local_host, first.remote_host
        self.congestion = first.congestion
        self.cipher = first.cipher
        self.kernel_encrypts = first.kernel_encrypts
        self.timeout_s = timeout_s
        self.deadline: float | None = None
        self.resume_for_s = resume_for_s
        self.may_resume = may_resume
        self.most_links = 0
        self._lock = threading.Lock()
        self.breaks = Breaks(self._lock)
        self._room = threading.Condition(self._lock)
        self._arrived = threading.Condition(self._lock)
        self._outbox = Outbox(window_bytes, frame_bytes)
        self._inbox = Inbox(window_bytes, frame_bytes)
        self._say_consumed_every = window_bytes // 8
        self._said_consumed = -1
        self._most_frame_bytes = self.frame_bytes = frame_bytes
        self._links: list[Link] = []
        self._idle: dict[Link, None] = {}  # in order
        self._rate: int | None = None
        self._paces = True
        self._failure: BaseException | None = None  # of the last link, or of all
        self._is_invalid = False
        self._is_closing = False
        self._is_closed = False
        self._acknowledged = 0
        self._threads: list[threading.Thread] = []
        self.incoming = FrameSource(self)
        self.outgoing = FrameSink(self)
        self._keeper = None if open_link is None else Keeper(self, open_link, wanted)
        self.add(contextlib.nullcontext(first), 0)
        if self._keeper is not None:
            try:
                self._start(self._keeper.run, "link-keeper")
            except TransportError:
                self.deadline = time.monotonic()
                self.close()
                raise

    # ---- what is asked of a connection -------------------------------------------------------------

    @property
    def acknowledged(self) -> int:
        """See Connection."""
        return self._acknowledged

    def note_acknowledged(self, position: int) -> None:
        """See Connection."""
        if position > self.outgoing.offset:
            raise BadAcknowledgement(
                f"{self.peer} acknowledges {position} bytes, and {self.outgoing.offset} were sent to it"
            )
        self._acknowledged = max(self._acknowledged, position)

    @property
    def resent_bytes(self) -> int:
        """How many bytes were sent more than once, as a link broke."""
        return self._outbox.resent_bytes

    @property
    def nr_links(self) -> int:
        """See Kept."""
        return len(self._links)

    def pace(self, rate: int | None) -> bool:
        """See Connection: each link has its share. False where one of the links cannot."""
        with shield(), self._lock:
            self._rate = rate
            most = self._most_frame_bytes
            self.frame_bytes = most if rate is None else min(most, piece_bytes(rate))
            self._share_rate()
            return self._paces

    def delivery_rate(self) -> int | None:
        """See Connection: of all links together; None where one of them does not know."""
        with shield(), self._lock:
            return delivery_rate(self._links)

    def passed(self) -> None:
        """See Connection."""
        return

    def _share_rate(self) -> None:
        self._paces = share_rate(self._links, self._rate)

    # ---- links come and go -------------------------------------------------------------------------

    def free_number(self) -> int:
        """See Kept."""
        with self._lock:
            taken = {link.number for link in self._links}
        return next(number for number in itertools.count() if number not in taken)

    def add(self, opened: Opened, number: int) -> None:
        """One more link, which belongs to this object from now on; it is entered here. From any thread.

        It takes the place of the one of the same `number`: that has broken for the peer, which may not show here yet.
        It is closed at once where this object is, and when no thread can be started for it: TransportError.
        """
        connection = opened.__enter__()
        connection.timeout_s = self.timeout_s
        link = Link(opened, connection, number, self._lock)
        failure: BaseException | None = None
        with shield():
            with self._lock:
                link.is_over = self._is_closed or self._is_invalid
                try:
                    if not link.is_over:
                        self._begin(link)
                except BaseException as error:
                    link.is_over = True
                    failure = error
                is_unused = not link.threads  # else the last of them closes it
            if is_unused:
                connection.deadline = time.monotonic() + END_S
                link.close()
        if failure is not None:
            raise failure

    def _begin(self, link: Link) -> None:
        link.to_say = [HEADER.pack(Kind.CONSUMED, 0, self._inbox.next)]
        link.to_say += [HEADER.pack(Kind.ARRIVED, length, at) for at, length in self._inbox.held()]
        link.to_say.append(HEADER.pack(Kind.SYNCED, 0, 0))
        # Before it counts as a link. They wait for the lock before they change anything.
        for work, name in ((self._send, "link-sender"), (self._receive, "link-receiver")):
            self._start(functools.partial(work, link), name)
            link.threads += 1
        if not self._links and self.breaks.since:
            LOG.warning("the link to %s is back after %.1f s", self.peer, self.breaks.mend())
        self._links.append(link)
        for one in self._links[:-1]:
            if one.number == link.number:
                self._end_link(one)
        self.most_links = max(self.most_links, len(self._links))
        self._share_rate()

    def _start(self, work: Callable[[], None], name: str) -> None:
        self._threads = [one for one in self._threads if one.is_alive()]
        self._threads.append(started(work, name))

    def _lose(self, link: Link, error: BaseException) -> None:
        """A link has broken, or its peer has ended."""
        with self._lock:
            if link.is_over:  # its other thread was first
                return
            self._end_link(link)
            if self._is_closing:
                return
            if not isinstance(error, (SaveRestoreError, OSError, ValueError)):
                LOG.warning("a link to %s ended by an error of this program: %s", self.peer, fact_of(error))
            if isinstance(error, BadFrame):
                self._is_invalid = True
                for one in list(self._links):
                    self._end_link(one)
            if self._inbox.end is None or self._is_invalid:
                self._failure = error
            if not self._links:
                self.breaks.begin()
                if self.waits_for_links():
                    self.breaks.wait(self.resume_for_s, self.peer, error)
        if self._keeper is not None:
            self._keeper.missing.set()

    def _end_link(self, link: Link) -> None:
        if link.is_over:
            return
        link.is_over = True
        link.connection.deadline = time.monotonic()  # both threads find that out
        self._links.remove(link)
        self._idle.pop(link, None)
        self._outbox.lost(link)
        self._said_consumed = -1  # it may have been lost with the link
        self._share_rate()
        for one in self._links:
            one.wake.notify()
        link.wake.notify()
        self._room.notify_all()
        self._arrived.notify_all()

    def _leave(self, link: Link) -> None:
        """The last of a link's threads closes it."""
        with self._lock:
            link.threads -= 1
            is_last = link.threads == 0
        if is_last:
            link.close()

    def waits_for_links(self) -> bool:
        """See Kept."""
        if self.is_over():
            return False
        return self.may_resume() and time.monotonic() - self.breaks.since < self.resume_for_s

    def _is_broken(self) -> bool:
        return self._is_invalid or (not self._links and not self.waits_for_links())

    def _raise_broken(self) -> None:
        self.breaks.give_up()
        if self._inbox.end is not None and not self._is_invalid:
            raise BrokenPeer(self.peer, "has closed the connection")
        raise broken(self.peer, self._failure) from self._failure

    def is_over(self) -> bool:
        """See Kept."""
        return self._is_closing or self._is_invalid or self._inbox.end is not None

    # ---- a link's threads --------------------------------------------------------------------------

    def _send(self, link: Link) -> None:
        frame = None
        try:
            while (found := self._next(link)) is not None:
                parts, frame = found
                link.is_sending_data = frame is not None
                link.connection.outgoing.writev(parts)
                if frame is not None:
                    link.sent_data()
                    with self._lock:
                        self._outbox.sent(frame)
                    frame = None
            if link.has_ended:
                link.connection.outgoing.close()
        except BaseException as error:  # whatever it is: a link with one thread would ping and carry nothing
            self._lose(link, error)
            if frame is not None:
                with self._lock:
                    self._outbox.sent(frame)
        finally:
            self._leave(link)

    def _next(self, link: Link) -> tuple[list[Any], Any] | None:
        """What this link sends next; None when it ends."""
        with self._lock:
            while not link.is_over and not link.has_ended:
                parts: list[Any] = link.to_say
                link.to_say = []
                if self._inbox.next - self._said_consumed >= self._say_consumed_every and self._inbox.next:
                    self._said_consumed = self._inbox.next
                    parts.append(HEADER.pack(Kind.CONSUMED, 0, self._inbox.next))
                frame = self._outbox.take(link) if link.is_synced else None
                if frame is not None:
                    parts += frame.parts()
                    self._room.notify()
                elif self._is_closing and self._outbox.is_empty:
                    link.has_ended = True
                    parts.append(HEADER.pack(Kind.END, 0, self._outbox.end))
                if parts:
                    return parts, frame
                self._idle[link] = None
                if not link.wake.wait(self.timeout_s / 3):
                    parts = [HEADER.pack(Kind.PING, 0, 0)]
                self._idle.pop(link, None)
                if parts:
                    return parts, None
            return None

    def _receive(self, link: Link) -> None:
        incoming = link.connection.incoming
        try:
            while not link.is_over:
                kind, length, position = HEADER.unpack(incoming.read(HEADER.size, "a frame"))
                if kind == Kind.DATA:
                    self._receive_data(link, position, length)
                    continue
                with self._lock:
                    self._heard(link, kind, length, position)
                if kind == Kind.END:
                    self._lose(link, BrokenPeer(self.peer, "has closed the connection"))
        except BaseException as error:  # as above
            self._lose(link, error)
        finally:
            self._leave(link)

    def _receive_data(self, link: Link, position: int, length: int) -> None:
        with self._lock:
            wants = self._inbox.wants(position, length)
            buffer = self._inbox.spares.take(length) if wants else None
        if buffer is None:
            link.connection.incoming.skip(length, "a frame")
        else:
            with memoryview(buffer) as view, view[:length] as part:
                link.connection.incoming.readinto(part, "a frame")
        with self._lock:
            if buffer is not None:
                self._inbox.put(position, buffer, length)
                self._arrived.notify()
            link.to_say.append(HEADER.pack(Kind.ARRIVED, length, position))
            link.wake.notify()

    def _heard(self, link: Link, kind: int, length: int, position: int) -> None:
        if kind == Kind.ARRIVED:
            self._outbox.arrived(position, length)
        elif kind == Kind.CONSUMED:
            self._outbox.note_consumed(position)
        elif kind == Kind.SYNCED:
            link.is_synced = True
            link.wake.notify()
        elif kind == Kind.END:
            self._inbox.note_end(position)
            self._arrived.notify_all()
        elif kind != Kind.PING:
            raise BadFrame(f"a frame of unknown kind {kind}")
        self._room.notify()

    # ---- the two directions ------------------------------------------------------------------------

    def wait_until(self, condition: threading.Condition, is_so: Callable[[], bool], what: str) -> None:
        """Wait, with the lock held inside `is_so`. BrokenPeer when that cannot come any more, PeerTimeout."""
        begun = time.monotonic()
        was_so = False  # once is enough: a link that breaks behind it may make it untrue again

        def is_over() -> bool:
            nonlocal was_so
            was_so = is_so()
            return was_so or self._is_broken() or self._is_closed

        def look(seconds: float) -> bool:
            with self._lock:
                return condition.wait_for(is_over, seconds) or (
                    self.deadline is not None and time.monotonic() >= self.deadline
                )

        waited_for(look)
        with shield(), self._lock:
            if was_so:
                return
            if self._is_closed:
                raise BrokenPeer(self.peer, "is not connected any more: the connection was closed here")
            if self._is_broken():
                self._raise_broken()
        raise PeerTimeout(self.peer, time.monotonic() - begun, what)

    def put(self, buffer: bytearray, length: int) -> None:
        """See linked_streams.Frames."""

        def has_room() -> bool:
            return not self._is_broken() and self._outbox.has_room(BACKLOG + len(self._links))

        self.wait_until(self._room, has_room, "took nothing")
        with shield(), self._lock:
            self._outbox.put(buffer, length)
            self._wake_one()

    def _wake_one(self) -> None:
        for link in self._idle:
            if link.is_synced:
                del self._idle[link]
                link.wake.notify()
                break

    def spare(self) -> bytearray:
        """See linked_streams.Frames."""
        with shield(), self._lock:
            return self._outbox.spares.take(self._most_frame_bytes)

    def read_some_into(self, view: memoryview) -> int:
        """See linked_streams.Frames."""

        def has_some() -> bool:
            return self._inbox.head() is not None or self._inbox.has_ended

        self.wait_until(self._arrived, has_some, "sent nothing")
        with shield():
            with self._lock:
                head = self._inbox.head()
            if head is None:
                return 0
            with head:  # nobody else uses it
                taken = min(len(head), len(view))
                view[:taken] = head[:taken]
            with self._lock:
                if (
                    self._inbox.used(taken)
                    and self._links
                    and (self._inbox.next - self._said_consumed >= self._say_consumed_every)
                ):
                    self._links[0].wake.notify()
            return taken

    # ---- the end -----------------------------------------------------------------------------------

    def close(self) -> None:
        """See Connection. The peer finds the end only where everything has arrived there."""
        with shield():
            with self._lock:
                if self._is_closed:
                    return
                self._is_closing = True
                self.breaks.give_up()
                if self._keeper is not None:
                    self._keeper.give_up()
                for link in self._links:
                    link.wake.notify()
            self._await_end()
            with self._lock:
                self._is_closed = True
                for link in list(self._links):
                    self._end_link(link)
                self._room.notify_all()
                self._arrived.notify_all()
            for thread in self._threads:
                if thread is not threading.current_thread():
                    thread.join(END_S)

    def _await_end(self) -> None:
        """Until all has arrived and each link has ended; or none of it moves."""
        since = time.monotonic()
        before: tuple[int, ...] = ()
        ended_at = None
        with self._lock:
            while self._links:
                now = time.monotonic()
                if self._outbox.is_empty and ended_at is None:
                    ended_at = now
                moved = (*self._outbox.progress, *(link.data_bytes for link in self._links))
                if moved != before:
                    since, before = now, moved
                if (
                    now - since > self.timeout_s
                    or (self.deadline is not None and now >= self.deadline)
                    or (ended_at is not None and now - ended_at > END_S)
                ):
                    return
                self._room.wait(HEED_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
