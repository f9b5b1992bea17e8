"""Stock xl at the other end of a connection: `xl migrate-receive` as a source sees it, `xl migrate` as a destination.

xl sends no keepalives, so a peer that is silent is waited for longer than one of ours. Each wait ends all the same.
"""

from __future__ import annotations

import select
import time

from saverestore.errors import SaveRestoreError
from saverestore.migrate import xl_words
from saverestore.migrate.xl_words import Left, NotXl
from saverestore.transport.base import ByteSink, ImageSource
from saverestore.transport.connection import BrokenPeer, PipeConnection, SocketConnection

BANNER_S = 120.0
"""A person may have to type a password for ssh."""

IMAGE_S = 600.0
"""A receiver makes room for the domain before it reads; a sender waits for its guest to suspend."""

READY_S = 600.0
"""A receiver attaches all devices, by hotplug scripts, before it says READY."""

REPORT_S = 30.0
"""At least so long a receiver may take to start the domain. It destroys one that does not start before it gives it
back."""

GRANT_S = 60.0
"""A sender renames its domain, and then grants it."""

GONE_S = 1.0
"""Where ssh's connection broke, both of its pipes end, one shortly after the other."""

AnyConnection = PipeConnection | SocketConnection


class XlEnded(BrokenPeer):
    """xl, or what runs it there, has ended or closed its side."""


class XlReceiver:
    """`xl migrate-receive`. Every wait may raise PeerTimeout, BrokenPeer, NotXl."""

    def __init__(self, connection: AnyConnection) -> None:
        self._connection = connection
        self._all_sent = False
        self.peer = connection.peer
        self.is_granted = False
        """Whether all of GRANT has left this process. With less than that xl starts nothing."""

    @property
    def sink(self) -> ByteSink:
        """What the image is written to."""
        return self._connection.outgoing

    def await_banner(self) -> None:
        """Until xl is there."""
        _read_word(self._connection, xl_words.BANNER, "banner", BANNER_S)
        self._connection.timeout_s = IMAGE_S

    def await_ready(self) -> None:
        """The image has been sent: until the domain is complete there, and paused."""
        self._all_sent = True
        _read_word(self._connection, xl_words.READY, "ready message", READY_S)

    def grant(self) -> None:
        """The domain is xl's. What that came to is in `is_granted`, also when it raises."""
        outgoing = self._connection.outgoing
        before = outgoing.offset
        try:
            outgoing.write(xl_words.GRANT)
        finally:
            self.is_granted = outgoing.offset - before == len(xl_words.GRANT)

    def await_report(self, timeout_s: float) -> bool:
        """After GRANT: whether the domain has been started there. It may take `timeout_s`, or REPORT_S.

        When it returns False, xl has destroyed its copy, and the domain is this host's again. When it raises, nobody
        here knows.
        """
        timeout_s = max(timeout_s, REPORT_S)
        self._connection.deadline = time.monotonic() + timeout_s
        _read_word(self._connection, xl_words.REPORT, "report", timeout_s)
        status = self._connection.incoming.read_some(1)
        if not status:
            raise XlEnded(self.peer, "has ended amid its report")
        if status == xl_words.STARTED:
            return True
        try:
            _read_word(self._connection, xl_words.GRANT, "permission to resume", timeout_s)
        except SaveRestoreError as error:
            error.add_note(
                f"xl there has not started it (status {status[0]}), and may not have removed its copy"
            )
            raise
        return False

    def give_up(self) -> None:
        """xl finds the end of what it reads, and does not start the domain."""
        self._connection.outgoing.close()

    def left_there(self, timeout_s: float) -> Left:
        """After `give_up`: what is left there. It raises nothing of what the connection does."""
        said = b""
        self._connection.deadline = time.monotonic() + timeout_s
        try:
            while len(said) < xl_words.LONGEST_SAID and (part := self._connection.incoming.read_some(1)):
                said += part
        except SaveRestoreError:
            return Left.UNKNOWN
        return xl_words.left_there(said, all_sent=self._all_sent)


class XlSender:
    """`xl migrate`. Every wait may raise PeerTimeout, BrokenPeer.

    `source`: the image, to be read to its end exactly: what follows it comes later.
    """

    def __init__(self, connection: AnyConnection) -> None:
        self._connection = connection
        self.peer = connection.peer
        connection.timeout_s = IMAGE_S
        connection.incoming.may_continue = True
        connection.incoming.name = f"the stream from xl at {connection.peer}"
        self.source: ImageSource = connection.incoming

    def greet(self) -> None:
        """Let it send the image."""
        self._connection.outgoing.write(xl_words.BANNER)

    def say_ready(self) -> None:
        """The domain is complete here, and paused."""
        self._connection.outgoing.write(xl_words.READY)

    def await_grant(self) -> str | None:
        """None: the domain is granted to this host. Otherwise why it is not, and will not be.

        BrokenPeer when the way there is broken, PeerTimeout: then nobody here knows whether it was granted.
        """
        try:
            _read_word(self._connection, xl_words.GRANT, "permission to start", GRANT_S)
        except NotXl as error:
            return str(error)
        except XlEnded as error:
            if self._is_gone():
                raise
            return str(error)
        return None

    def report_started(self) -> None:
        """It is this host's for good."""
        self._connection.outgoing.write(xl_words.REPORT + xl_words.STARTED)

    def report_failure(self) -> None:
        """It was not started here. xl resumes it after `give_back`, and not before."""
        self._connection.outgoing.write(xl_words.REPORT + xl_words.NOT_STARTED)

    def give_back(self) -> None:
        """Nothing is left of it here."""
        self._connection.outgoing.write(xl_words.GRANT)

    def _is_gone(self) -> bool:
        """Whether nobody reads what this side says: then the end of what it reads is not xl's."""
        poll = select.poll()
        poll.register(self._connection.outgoing.fileno(), 0)  # POLLERR and POLLHUP alone
        return bool(poll.poll(GONE_S * 1000))


def _read_word(connection: AnyConnection, word: bytes, what: str, timeout_s: float) -> None:
    """Read one word, and not a byte more. NotXl at the first byte that is not its own, XlEnded at the end."""
    connection.timeout_s = timeout_s
    said = b""
    while not xl_words.is_whole(said, word, connection.peer, what):
        part = connection.incoming.read_some(len(word) - len(said))
        if not part:
            raise XlEnded(connection.peer, f"has ended where xl's {what} belongs")
        said += part
