"""Holding to a rate: by a token bucket here, or by the kernel where it has a TCP connection.

    bytes ─► PacedSink ─► any sink         pieces of 50 ms each; what the sink has stored is paid for before the next
    bytes ─► TCP socket, `pace_in_kernel`  the kernel spreads packets evenly, and nobody here waits for it

The kernel's way is better where it can be had: no bursts, and whoever writes meets nothing but a slower peer. It
cannot be had for pipes, files, and a connection that passes through another program, as ssh is.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from saverestore.interrupts import HEED_S
from saverestore.kernels.zeros import are_zeros
from saverestore.transport.base import ImageSink
from saverestore.transport.passing import PassingSink

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

SO_MAX_PACING_RATE = 47
"""asm-generic/socket.h; the module socket does not have it."""

NO_PACING = (1 << 64) - 1

SMALLEST_RATE = 64 << 10
"""Bytes per second. With less, a control message of the longest kind would wait behind data for seconds."""

PIECE_S = 0.05
SHORTEST_WAIT_S = 1e-6
SMALLEST_PIECE, LARGEST_PIECE = 4 << 10, 1 << 20


class TokenBucket:
    """A rate in bytes per second that several threads may share; None: no limit.

    What was spent too early is a debt, and the next `spend` waits for it. What was not spent is lost, but for 50 ms.
    """

    def __init__(
        self,
        rate: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._lock = threading.Lock()
        self._clock, self._sleep = clock, sleep
        self._filled_at = clock()
        self._tokens = 0.0
        self.rate: int | None = None
        self.change(rate)

    def change(self, rate: int | None) -> None:
        """Hold to another rate from now on; who waits for the old one does not wait longer. From any thread.

        ValueError for a rate that is not greater than 0.
        """
        if rate is not None and rate <= 0:
            raise ValueError(f"a rate must be greater than 0, not {rate}")
        with self._lock:
            self._fill()
            self.rate = rate

    def spend(self, nr_bytes: int) -> None:
        """So many bytes were moved: return when the next may be. A signal ends the wait; the debt stays."""
        with self._lock:
            self._fill()
            self._tokens -= nr_bytes
        while (wait_s := self._wait_s()) > SHORTEST_WAIT_S:
            self._sleep(min(wait_s, HEED_S))  # in pieces: the rate may change meanwhile

    def _wait_s(self) -> float:
        with self._lock:
            self._fill()
            return 0.0 if self.rate is None else -self._tokens / self.rate

    def _fill(self) -> None:
        now = self._clock()
        if self.rate is None:
            self._tokens = 0.0
        else:
            most = self.rate * PIECE_S
            self._tokens = min(most, self._tokens + (now - self._filled_at) * self.rate)
        self._filled_at = now


class PacedSink(PassingSink[ImageSink]):
    """An `ImageSink` that passes everything on to another one, at a rate in bytes per second at most; None: no limit.

    What counts is what that sink stores (`stored_bytes`): below a compressor it limits the compressed bytes; holes in
    a file are free, and zeroes that are written as bytes are not. `change` sets another rate, from any thread, also
    while a write waits. `finish` and `close` are passed on. Whoever writes waits here; a signal ends the wait, and
    `offset` counts what was written.
    """

    def __init__(self, sink: ImageSink, rate: int | None) -> None:
        """Write to `sink` from now on. ValueError for a rate that is not greater than 0."""
        super().__init__(sink)
        self._bucket = TokenBucket(rate)

    @property
    def leaves_holes(self) -> bool:
        """See ImageSink."""
        return self._sink.leaves_holes

    @property
    def stored_bytes(self) -> int:
        """See ImageSink."""
        return self._sink.stored_bytes

    @property
    def rate(self) -> int | None:
        """The rate that it holds to, in bytes per second; None: no limit."""
        return self._bucket.rate

    def change(self, rate: int | None) -> None:
        """Hold to another rate from now on. ValueError for one that is not greater than 0."""
        self._bucket.change(rate)

    def writev(self, buffers: Sequence[ReadableBuffer]) -> None:
        """See ByteSink."""
        rate = self._bucket.rate
        if rate is None:
            self._pass_on(list(buffers))
            return
        for piece in _pieces(buffers, piece_bytes(rate), has_holes=self._sink.leaves_holes):
            self._pass_on(piece)

    def finish(self) -> None:
        """See ImageSink."""
        self._sink.finish()

    def _pass_on(self, piece: list[Any]) -> None:
        before = self._sink.stored_bytes
        try:
            self._sink.writev(piece)
        finally:
            piece.clear()  # whoever catches what was raised must not keep the buffers
        self._bucket.spend(self._sink.stored_bytes - before)


def _pieces(buffers: Sequence[ReadableBuffer], most: int, *, has_holes: bool) -> Iterator[list[Any]]:
    """The same bytes in pieces of `most`; what is to become holes is not cut, and takes no room."""
    piece: list[Any] = []
    room = most
    for buffer in buffers:
        if has_holes and are_zeros(buffer):
            piece.append(buffer)
            continue
        flat = memoryview(buffer).cast("B")
        at = 0
        while at < len(flat):
            part = flat[at : at + room]
            piece.append(part)
            at, room = at + len(part), room - len(part)
            if not room:
                yield piece
                piece, room = [], most
    if piece:
        yield piece


def piece_bytes(rate: int) -> int:
    """How much is sent at once at this rate: 50 ms of it, within bounds."""
    return max(SMALLEST_PIECE, min(LARGEST_PIECE, int(rate * PIECE_S)))


def pace_in_kernel(connected: socket.socket, rate: int | None) -> bool:
    """Have the kernel send at this rate in bytes per second at most; None: no limit. False where it cannot.

    It may be called again at any time, and holds for what has not been sent yet.
    """
    if connected.family not in (socket.AF_INET, socket.AF_INET6) or connected.fileno() < 0:
        return False
    value = NO_PACING if rate is None else rate
    try:
        connected.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("Q", value))
    except OSError:  # closed meanwhile, or a kernel without
        return False
    return True
