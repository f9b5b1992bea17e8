"""Whatever is written on one side of a connection is read whole on the other, in any pieces."""

from __future__ import annotations

import socket
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saverestore.transport.connection import BadAcknowledgement, SocketConnection

DATA = np.random.default_rng(11).integers(0, 256, 3 << 20, dtype=np.uint8).tobytes()
SIZES = st.sampled_from([0, 1, 7, 1000, 4096, 30_000, 100_000])
WRITES = st.lists(st.lists(SIZES, max_size=5), max_size=6)


def small_pair() -> tuple[SocketConnection, SocketConnection]:
    """The kernel holds little: most writes are cut."""
    ends = socket.socketpair()
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    one, other = (SocketConnection(end, "peer", timeout_s=30) for end in ends)
    return one, other


def write_all(connection: SocketConnection, writes: list[list[int]]) -> None:
    at = 0
    for sizes in writes:
        buffers = []
        for size in sizes:
            buffers.append(memoryview(DATA)[at : at + size])
            at += size
        connection.outgoing.writev(buffers)
    connection.outgoing.close()


def read_all(connection: SocketConnection, total: int, pieces: list[int], into: bytearray) -> None:
    """In these pieces, over and over; by `read`, `readv` and byte by byte at last."""
    left, turn = total, 0
    while left:
        piece = min(left, pieces[turn % len(pieces)] if turn < 500 else left)
        if turn % 2:
            views = [bytearray(piece // 2), bytearray(piece - piece // 2)]
            connection.incoming.readv(views)
            into += b"".join(views)
        else:
            into += connection.incoming.read(piece)
        left -= piece
        turn += 1
    assert connection.incoming.at_end()


@given(there=WRITES, back=WRITES, pieces=st.lists(st.integers(1, 70_000), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_whatever_is_written_is_read_whole_in_both_directions_in_any_pieces(there, back, pieces):
    one, other = small_pair()
    got = [bytearray(), bytearray()]
    totals = [sum(map(sum, there)), sum(map(sum, back))]
    with one, other:
        threads = [
            threading.Thread(target=write_all, args=(one, there)),
            threading.Thread(target=write_all, args=(other, back)),
            threading.Thread(target=read_all, args=(one, totals[1], pieces, got[1])),
        ]
        for thread in threads:
            thread.start()
        read_all(other, totals[0], pieces, got[0])
        for thread in threads:
            thread.join()
        assert [bytes(part) for part in got] == [DATA[: totals[0]], DATA[: totals[1]]]
        assert (one.outgoing.offset, other.incoming.offset) == (totals[0], totals[0])
        assert (other.outgoing.offset, one.incoming.offset) == (totals[1], totals[1])


@given(
    steps=st.lists(
        st.tuples(st.just("write"), st.integers(0, 500)) | st.tuples(st.just("note"), st.integers(0, 3000))
    )
)
@settings(deadline=None)
def test_acknowledged_is_the_highest_position_that_was_said_of_what_was_written(steps):
    one, other = small_pair()
    written = acknowledged = 0
    with one, other:
        for what, number in steps:
            if what == "write":
                one.outgoing.write(bytes(number))
                other.incoming.skip(number)
                written += number
            elif number > written:
                with pytest.raises(BadAcknowledgement):
                    one.note_acknowledged(number)
            else:
                one.note_acknowledged(number)
                acknowledged = max(acknowledged, number)
            assert one.acknowledged == acknowledged <= one.outgoing.offset == written
