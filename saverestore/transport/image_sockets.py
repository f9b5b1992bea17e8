"""Images over sockets: tcp://HOST:PORT, unix:PATH, fd:N. The bytes are a file's, so any program can be the peer.

    saver ── connects ──────────────►  restorer (listens)
          ◄─────────────────────── 05   only if it restores: a verdict follows
          ── the image ─────────────►
          ── half close: that was all, it may run ►
          ◄──────────────── 06 or 15    the domain is there; or it is not, and nothing is left of it

A peer that only keeps the bytes says nothing and closes when it has all. A saver that gives up sends a byte more and
closes: an image that happened to be whole is then not one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from saverestore.errors import ErrorName, SaveRestoreError, TransportError, UsageError, fact_of
from saverestore.transport.base import EndOfStream, ImageSource
from saverestore.transport.connection import BrokenPeer, SocketConnection
from saverestore.transport.fd import FdSource
from saverestore.transport.opening import decompressed
from saverestore.transport.sockets import Address, accepted, connect, host_and_port

if TYPE_CHECKING:
    from saverestore.transport.tls import Credentials
    from saverestore.transport.tls_peers import Allowed

TIMEOUT_S = 600.0
"""Without a byte: guests take their time to suspend, and hosts to create a domain."""

ADDRESSES = ("tcp://", "unix:", "fd:")
"""What an image's name begins with that is an address."""

LAST_WORDS_S = 2.0
LOOPBACK = "127.0.0.1"

RESTORES, RESTORED, NOT_RESTORED = b"\x05", b"\x06", b"\x15"
GIVEN_UP = b"\xff"


class NotRestored(TransportError):
    """The peer has read the image and says that there is no domain of it."""

    name = ErrorName.PEER_NOT_RESTORED


class NoVerdict(TransportError):
    """All of the image was sent to a peer that restores, and it has not said what came of it."""

    name = ErrorName.PEER_SILENT


def address_of(image: str, *, tls: Credentials | None = None) -> Address | None:
    """The address that an image's name is; None for files and "-". UsageError for an address that is not valid.

    `tls`: the files for TLS, where that is asked for. Of kind "fd", `port` is the descriptor.
    """
    if image.startswith("unix:"):
        if tls is not None:
            raise UsageError(f"{image}: TLS is for tcp:// only")
        if image == "unix:":
            raise UsageError(f"{image!r} is not unix:PATH")
        return Address(image, "unix", image.removeprefix("unix:"))
    if image.startswith("fd:"):
        if tls is not None:
            raise UsageError(f"{image}: TLS is for tcp:// only")
        if not re.fullmatch(r"fd:[0-9]{1,9}", image):
            raise UsageError(f"{image!r} is not fd:NUMBER")
        return Address(image, "fd", "", int(image[3:]))
    if not image.startswith("tcp://"):
        if tls is not None:
            raise UsageError(f"{image}: TLS is for tcp:// only")
        return None
    rest = image.removeprefix("tcp://")
    host, port = host_and_port(f"{LOOPBACK}{rest}" if rest.startswith(":") else rest, 0)
    if not host or not 0 < port < 1 << 16:
        raise UsageError(f"{image!r} is not tcp://HOST:PORT or tcp://:PORT")
    return Address(image, "tcp" if tls is None else "tls", host, port, tls)


def descriptor(address: Address, *, writing: bool) -> int:
    """The number of a descriptor that this process was given, for one direction. UsageError when it is none such."""
    try:
        mode = fcntl.fcntl(address.port, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError as error:
        raise UsageError(
            f"{address.text}: there is no such descriptor", name=ErrorName.FILE_NOT_FOUND
        ) from error
    if mode not in (os.O_RDWR, os.O_WRONLY if writing else os.O_RDONLY):
        what = "written to" if writing else "read from"
        raise UsageError(f"{address.text} was not opened to be {what}", name=ErrorName.FILE_UNSUITABLE)
    return address.port


# ---- the side that saves


class Receiver:
    """The peer that an image is sent to. `connection.outgoing`: what it is written to."""

    def __init__(self, connection: SocketConnection) -> None:
        self.connection = connection
        self._has_all = False
        self.may_restore = False
        """Whether the peer may run the domain, or is about to, however `end` has ended."""
        self.has_restored = False

    def end(self) -> None:
        """All was written: let the peer have its end, and wait for what comes of it.

        NotRestored; NoVerdict where it restores and has said nothing; TransportError when it may lack some. A signal
        is NoVerdict, too, where the peer restores: it is too late to take the image back.
        """
        peer, said = self.connection.peer, b""
        try:
            self.may_restore = True
            self._has_all = True
            self.connection.outgoing.close()
            while len(said) < 2 and (more := self.connection.incoming.read_some(2 - len(said))):
                said += more
        except BaseException as error:
            if self._has_spoken():
                raise NoVerdict(f"{peer} has not said what came of the image: {fact_of(error)}") from error
            self.may_restore = False
            raise
        self.has_restored = said == RESTORES + RESTORED
        self.may_restore = said in (RESTORES, RESTORES + RESTORED)
        if said == RESTORES:
            raise NoVerdict(f"{peer} closed the connection without saying what came of the image")
        if said == RESTORES + NOT_RESTORED:
            raise NotRestored(f"{peer} could not restore the image")
        if said not in (b"", RESTORES + RESTORED):
            raise TransportError(f"{peer} has sent {said!r}, and no program that takes an image does that")

    def _has_spoken(self) -> bool:
        """Whether it has said that it restores, after a failure: only who does says anything.

        What it has said may be lost, by a signal just after it was read, but it has been counted.
        """
        incoming = self.connection.incoming
        if not incoming.offset:
            self.connection.deadline = time.monotonic() + LAST_WORDS_S
            with contextlib.suppress(SaveRestoreError, OSError, ValueError):
                incoming.read_some(1)
        return incoming.offset > 0

    def last_word(self) -> NotRestored | None:
        """A write has failed: what the peer said before it closed, where it said that it failed."""
        self.connection.deadline = time.monotonic() + LAST_WORDS_S
        with contextlib.suppress(SaveRestoreError):
            if self.connection.incoming.read(2) == RESTORES + NOT_RESTORED:
                return NotRestored(f"{self.connection.peer} could not restore the image")
        return None

    def give_up(self) -> None:
        """The domain is not to run there. Nothing is raised."""
        if self._has_all:
            return
        self.connection.deadline = time.monotonic() + LAST_WORDS_S
        with contextlib.suppress(SaveRestoreError, OSError, ValueError):
            self.connection.outgoing.write(GIVEN_UP)


@contextmanager
def receiver_at(address: Address) -> Iterator[Receiver]:
    """Connect, and close it at the end of the block: a failure inside makes the image worthless there.

    Errors are those of `sockets.connect`.
    """
    with connect(address, timeout_s=TIMEOUT_S) as connection:
        receiver = Receiver(connection)
        try:
            yield receiver
        except BrokenPeer as error:
            if (better := receiver.last_word()) is None:
                raise
            for note in getattr(error, "__notes__", []):
                better.add_note(note)
            raise better from error
        except BaseException:
            receiver.give_up()
            raise


# ---- the side that restores


class Sender:
    """The peer that an image comes from. `source`: the image."""

    def __init__(self, connection: SocketConnection, source: ImageSource) -> None:
        self.source = source
        self.is_confirmed = False
        self._connection = connection

    def confirm(self) -> None:
        """The domain is here for good: whatever fails from now on, the peer must not resume its own."""
        self.is_confirmed = True
        self._connection.deadline = time.monotonic() + LAST_WORDS_S
        _say(self._connection, RESTORED)


@contextmanager
def sender_at(address: Address, allowed: Allowed | None) -> Iterator[Sender]:
    """Wait for who sends an image. At the block's end it hears that there is no domain, unless one was confirmed.

    Errors are `sockets.accepted`'s. Its image is whole only when it has closed its side: until then it may give up.
    """
    with accepted(address, allowed=allowed, timeout_s=TIMEOUT_S) as connection:
        connection.incoming.may_continue = False
        sender: Sender | None = None
        try:
            connection.outgoing.write(RESTORES)
            with _opened(connection.incoming) as source:
                sender = Sender(connection, source)
                yield sender
        finally:
            if sender is None or not sender.is_confirmed:
                connection.deadline = time.monotonic() + LAST_WORDS_S
                _say(connection, NOT_RESTORED)


def _say(connection: SocketConnection, verdict: bytes) -> None:
    """The peer may be gone, or be a program that wants no answer."""
    with contextlib.suppress(SaveRestoreError, OSError, ValueError):
        connection.outgoing.write(verdict)


@contextmanager
def _opened(raw: FdSource) -> Iterator[ImageSource]:
    try:
        with decompressed(raw) as source:
            yield source
    except EndOfStream as error:
        if not raw.offset:
            raise TransportError(f"{raw.name} has sent nothing", name=ErrorName.PEER_CLOSED) from error
        raise
