"""The moment from which an image is safe, whatever it is written to.

    write to `sink` … ─► finish() ─► commit() ─► the domain may be destroyed
    ◄──────── any failure: the domain runs again ──────┘

A file that appears whole under its name is one way, a descriptor that somebody else opened another. The same steps
hold where the image is handed over to another host: there `commit` is the hand-over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from saverestore.engine.settings import SaveSettings
from saverestore.errors import Advice, ErrorName, ExitCode, Remedy, SaveRestoreError, UsageError, fact_of
from saverestore.operations.requests import STDOUT, FinalState, SaveRequest
from saverestore.transport.base import ByteSink, ImageSink
from saverestore.transport.cache import Cache, no_direct
from saverestore.transport.descriptor import Descriptor
from saverestore.transport.direct import BUFFER_BYTES, SMALL_BUFFER_BYTES
from saverestore.transport.image_sockets import Receiver, address_of, descriptor, receiver_at
from saverestore.transport.newfile import NewFile
from saverestore.transport.paced import PacedSink
from saverestore.transport.sockets import Address


class SaveInDoubt(SaveRestoreError):
    """The image was sent to a peer that restores, which may have the domain: it is suspended here."""

    exit_code = ExitCode.IN_DOUBT
    name = ErrorName.SAVE_IN_DOUBT


class Commit(Protocol):
    """Where an image goes. Opened by a context manager, which removes what is not whole at its end."""

    @property
    def name(self) -> str:
        """File name or address, for messages."""

    @property
    def sink(self) -> ByteSink:
        """What the image is written to."""

    @property
    def left_behind(self) -> str:
        """What is there when writing ends before `commit`, in words."""

    @property
    def stored_bytes(self) -> int | None:
        """What the image takes where it is stored; None where that is not known."""

    @property
    def hands_over(self) -> bool:
        """Whether `commit` makes the domain somebody else's: from its start on no failure may resume it here."""

    @property
    def has_holes(self) -> bool:
        """Whether zero pages of a plain image take no room."""

    @property
    def cache(self) -> Cache | None:
        """How it is written; None of what is no file."""

    def free_bytes(self) -> int | None:
        """How much room is left; None where that means nothing."""

    def settings(self, wanted: SaveSettings) -> SaveSettings:
        """How the image is written: as is wanted, unless whoever gets it has a say."""

    def finish(self) -> None:
        """All of the image was written to `sink`: bring it to safety. May take long, and may be interrupted."""

    def handed_over(self, error: BaseException | None = None) -> bool:
        """Once `finish` has returned, or `error` has ended it: whether somebody else may run the domain already.

        Then no failure may resume it here, `error` does not end the save, and `final_state` says what came of it.
        """

    def commit(self) -> None:
        """The last step, and a short one: when it returns, the image is safe for good.

        When it raises, it is not, and the domain is still the source's.
        """

    def final_state(self, wanted: FinalState) -> FinalState:
        """After `commit`: what is to become of the domain; `wanted`, unless whoever has the image says otherwise.

        When it raises, the domain is left as it is.
        """


class Place(Protocol):
    """A file that appears whole, or a descriptor: what `FileCommit` needs of it."""

    @property
    def sink(self) -> ImageSink:
        """What is written to."""

    @property
    def left_behind(self) -> str:
        """See Commit."""

    @property
    def has_holes(self) -> bool:
        """See Commit."""

    @property
    def cache(self) -> Cache | None:
        """See Commit."""

    def use_page_cache(self) -> None:
        """Write through the page cache from now on."""

    def free_bytes(self) -> int | None:
        """See Commit."""

    def sync(self) -> None:
        """Bring what was written to the disk."""

    def publish(self) -> None:
        """Give it its name."""


class FileCommit:
    """See Commit: a file or descriptor, perhaps with what compresses into it."""

    hands_over = False

    def __init__(self, place: Place, sink: ImageSink, request: SaveRequest) -> None:
        self._place = place
        # A domain that is to run again waits for what is written while it is suspended, not for the disk.
        self._turns_to_page_cache = request.cache is Cache.AUTO and request.final_state is FinalState.RUN
        self.sink = sink
        self.name = place.sink.name

    @property
    def left_behind(self) -> str:
        """See Commit."""
        return self._place.left_behind

    @property
    def stored_bytes(self) -> int | None:
        """See Commit."""
        return self.sink.stored_bytes

    @property
    def has_holes(self) -> bool:
        """See Commit."""
        return self._place.has_holes

    @property
    def cache(self) -> Cache | None:
        """See Commit."""
        return self._place.cache

    def free_bytes(self) -> int | None:
        """See Commit."""
        return self._place.free_bytes()

    def settings(self, wanted: SaveSettings) -> SaveSettings:
        """See Commit."""
        if self._turns_to_page_cache:
            return replace(wanted, before_suspending=self._place.use_page_cache)
        return wanted

    def finish(self) -> None:
        """See Commit."""
        self.sink.finish()
        self._place.sync()

    def handed_over(self, error: BaseException | None = None) -> bool:
        """See Commit."""
        del error
        return False

    def commit(self) -> None:
        """See Commit."""
        self._place.publish()

    def final_state(self, wanted: FinalState) -> FinalState:
        """See Commit."""
        return wanted


class SocketCommit:
    """See Commit: an image that goes to a peer. One that restores it and is silent leaves a doubt."""

    stored_bytes = None
    has_holes = False
    cache = None

    def __init__(self, receiver: Receiver, sink: ImageSink, request: SaveRequest) -> None:
        self.sink = sink
        self.name = receiver.connection.peer
        self.left_behind = f"what was sent to {self.name} is not a complete image"
        # Two may run of a domain that is to run here as well: then a failure is one as any other.
        self.hands_over = request.final_state is FinalState.DESTROY
        self._receiver = receiver
        self._domain = request.domain
        self._doubt: BaseException | None = None

    def free_bytes(self) -> int | None:
        """See Commit."""
        return None

    def settings(self, wanted: SaveSettings) -> SaveSettings:
        """See Commit."""
        return wanted

    def finish(self) -> None:
        """See Commit."""
        self.sink.finish()
        self._receiver.end()

    def handed_over(self, error: BaseException | None = None) -> bool:
        """See Commit."""
        if not (self.hands_over and self._receiver.may_restore):
            return False
        if not self._receiver.has_restored:
            self._doubt = error
        return True

    def commit(self) -> None:
        """See Commit."""

    def final_state(self, wanted: FinalState) -> FinalState:
        """See Commit. SaveInDoubt when the peer may have restored it."""
        if self._doubt is not None:
            raise SaveInDoubt(
                f"{fact_of(self._doubt)}; {self._domain} is still here, suspended, and must not be resumed while "
                "it runs there",
                remedies=[Advice(Remedy.RECOVER_UNLESS_THERE, self._domain)],
            ) from self._doubt
        return wanted


@contextmanager
def commit_of(request: SaveRequest) -> Iterator[Commit]:
    """Open where the image goes: a new file, a descriptor, a socket. UsageError when it cannot be there, or so."""
    address = address_of(request.image, tls=request.tls)
    if request.cache is Cache.DIRECT and (address is not None or request.image == STDOUT):
        raise no_direct("standard output" if address is None else request.image, "it is no regular file")
    if address is not None and address.kind != "fd":
        with receiver_at(address) as receiver, _compressed(_paced_link(receiver, request), request) as sink:
            yield SocketCommit(receiver, sink, request)
        return
    with _place_of(request, address) as place, _compressed(_paced(place.sink, request), request) as sink:
        yield FileCommit(place, sink, request)


def _paced(sink: ImageSink, request: SaveRequest) -> ImageSink:
    """The same, at the rate that was asked for: below the compressor, as what counts is what is written."""
    return sink if request.bwlimit is None else PacedSink(sink, request.bwlimit)


def _paced_link(receiver: Receiver, request: SaveRequest) -> ImageSink:
    """By the kernel, where it can."""
    connection = receiver.connection
    if request.bwlimit is None or connection.pace(request.bwlimit):
        return connection.outgoing
    return _paced(connection.outgoing, request)


@contextmanager
def _compressed(sink: ImageSink, request: SaveRequest) -> Iterator[ImageSink]:
    if request.compress is None:
        yield sink
        return
    from saverestore.transport.zstd_sink import ZstdSink

    with ZstdSink(sink, level=request.compress) as compressing:
        yield compressing


@contextmanager
def _place_of(request: SaveRequest, address: Address | None) -> Iterator[Place]:
    if address is not None:
        yield Descriptor(descriptor(address, writing=True), f"descriptor {address.port}")
        return
    if request.image == STDOUT:
        yield Descriptor()
        return
    path = Path(request.image)
    if not path.parent.is_dir():
        raise UsageError(
            f"{path}: there is no directory {path.parent}; no changes were made",
            name=ErrorName.FILE_NOT_FOUND,
        )
    buffer_bytes = BUFFER_BYTES if request.compress is None else SMALL_BUFFER_BYTES
    with NewFile(path, overwrite=request.overwrite, cache=request.cache, buffer_bytes=buffer_bytes) as file:
        yield file
