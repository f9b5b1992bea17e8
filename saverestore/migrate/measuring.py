"""What a dry run finds out by trying: how far apart the clocks of both hosts are, and how fast the link is.

SOURCE                                   DESTINATION
OFFER  dry run          ──────►
                        ◄──────   ACCEPTED   clock_ms, measures
DATA  random bytes      ──────►              thrown away
KEEPALIVE               ──────►
                        ◄──────   ACKNOWLEDGED
STREAM_END              ──────►              both end
"""

from __future__ import annotations

import contextlib
import os
import time

from saverestore.migrate.channel import Channel
from saverestore.migrate.data import MessageSink, MessageSource
from saverestore.migrate.messages import Accepted, KeepAlive, ProtocolError, StreamEnd
from saverestore.transport.connection import BrokenPeer

PIECE_BYTES = 1 << 20
BURSTS = (1, 16)
"""Pieces. The second one only where the first was so quick that it says little: a connection is slow at first."""

QUICK_S = 0.2
PATIENCE_S = 10.0
MOST_BYTES = 64 * PIECE_BYTES
"""A destination throws away no more than that."""

SAME_S = 0.5
FAR_S = 5.0
"""So far apart, clocks are worth a warning."""


def clock_ms() -> int:
    """What time it is here, as ACCEPTED says it."""
    return time.time_ns() // 1_000_000


def ahead_s(accepted: Accepted) -> float | None:
    """By how much the destination's clock is ahead of this host's, just after it was heard; None: it did not say."""
    return (accepted.clock_ms - clock_ms()) / 1000 if accepted.clock_ms else None


def difference(peer: str, ahead: float) -> str:
    """That, for people."""
    if abs(ahead) < SAME_S:
        return f"the clocks of both hosts are less than {SAME_S} s apart"
    return f"the clock of {peer} is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this host's"


def measure(channel: Channel, memory_kib: int) -> str:
    """Send a burst to a destination that waits for one: how fast the link is, and how long the memory takes at that
    rate, for people. The channel is of no other use afterwards.
    """
    channel.listen()
    sink, piece = MessageSink(channel), os.urandom(PIECE_BYTES)  # random: ssh may compress
    for pieces in BURSTS:
        begun, before = time.monotonic(), sink.offset
        for _ in range(pieces):
            sink.write(piece)
        channel.say(KeepAlive())
        if not channel.await_acknowledged(sink.offset, PATIENCE_S):
            return f"link: {pieces} MiB took more than {PATIENCE_S:.0f} s"
        seconds = time.monotonic() - begun
        if seconds > QUICK_S:
            break
    channel.say(StreamEnd(sink.offset))
    rate = (sink.offset - before) / max(seconds, 1e-6)
    whole_s = memory_kib * 1024 / rate
    return (
        f"link: {rate / 2**20:.1f} MiB/s by the connection of this dry run; at that rate {memory_kib >> 10} MiB take "
        f"{whole_s:.0f} s, and what the domain writes meanwhile comes on top"
    )


def swallow(channel: Channel) -> None:
    """At the destination: take a burst, if one comes, and answer as while an image is read.

    The source may leave at any time: nothing depends on it, and its last keepalive may meet nobody's answer.
    """
    source = MessageSource(channel)
    with contextlib.suppress(BrokenPeer):
        while source.read_some(PIECE_BYTES):
            if source.offset > MOST_BYTES:
                raise ProtocolError(f"{channel.peer} sent more than {MOST_BYTES >> 20} MiB in a dry run")
