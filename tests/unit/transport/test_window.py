"""What is on its way over several links: nothing twice, nothing out of order, nothing without bound."""

from __future__ import annotations

import pytest

from saverestore.transport.window import BadFrame, Inbox, Outbox

WINDOW, FRAME = 400, 100


def outbox_with(*lengths: int) -> Outbox:
    box = Outbox(WINDOW, FRAME)
    for length in lengths:
        box.put(bytearray(FRAME), length)
    return box


def put(box: Inbox, position: int, length: int, fill: int = 1) -> None:
    if box.wants(position, length):
        box.put(position, bytearray([fill] * length), length)


def used(box: Inbox) -> list[bytes]:
    found = []
    while (head := box.head()) is not None:
        found.append(bytes(head))
        box.used(len(head))
    return found


def test_the_sender_begins_nothing_beyond_the_window_until_something_is_consumed():
    box = outbox_with(100, 100, 100)
    assert box.has_room(9)
    box.put(bytearray(FRAME), 100)
    assert not box.has_room(9)
    assert not outbox_with(1).has_room(1)  # so many wait for a link
    for _ in range(4):
        box.take("a")
    box.arrived(0, 100)
    assert not box.has_room(9)
    box.note_consumed(100)
    assert box.has_room(9)


def test_what_was_on_its_way_over_a_lost_link_goes_first_over_another_and_is_counted():
    box = outbox_with(10, 20, 30, 40)
    taken = [box.take(link) for link in ("a", "b", "a")]
    box.arrived(0, 10)
    box.lost("a")
    assert box.resent_bytes == 0
    again = box.take("b")
    assert again is taken[2]
    assert box.resent_bytes == 30
    assert box.take("b").position == 60
    assert box.take("b") is None


def test_a_buffer_is_not_used_again_while_a_link_still_sends_it():
    box = outbox_with(100)
    first = box.take("a")
    box.lost("a")
    second = box.take("b")
    assert first is second
    box.sent(first)  # the lost link's thread has noticed
    box.arrived(0, 100)
    assert box.spares.take(FRAME) is not second.buffer
    box.sent(second)
    assert box.spares.take(FRAME) is second.buffer


def test_a_short_frame_keeps_no_long_buffer():
    box = outbox_with(3)
    assert len(box.take("a").buffer) == 3


@pytest.mark.parametrize(
    "said",
    [
        lambda box: box.arrived(0, 101),
        lambda box: box.arrived(50, 101),
        lambda box: box.arrived(0, 50),
        lambda box: box.arrived(100, 50),  # has not been sent
        lambda box: box.note_consumed(151),
    ],
)
def test_a_peer_that_has_what_was_not_sent_is_found_out(said):
    box = outbox_with(100, 50)
    box.take("a")
    with pytest.raises(BadFrame):
        said(box)


def test_frames_in_any_order_and_twice_come_out_in_order_and_once():
    box = Inbox(WINDOW, FRAME)
    put(box, 100, 50, 2)
    assert box.head() is None
    put(box, 100, 50, 9)
    put(box, 0, 100, 1)
    put(box, 0, 100, 9)
    assert used(box) == [b"\1" * 100, b"\2" * 50]
    put(box, 0, 100, 9)
    put(box, 100, 50, 9)
    put(box, 150, 10, 3)
    assert used(box) == [b"\3" * 10]
    assert box.next == 160


def test_two_links_may_bring_the_same_frame_at_once():
    box = Inbox(WINDOW, FRAME)
    assert box.wants(0, 100)
    assert box.wants(0, 100)
    box.put(0, bytearray(b"a" * 100), 100)
    box.put(0, bytearray(b"b" * 100), 100)
    assert used(box) == [b"a" * 100]
    box.put(0, bytearray(b"b" * 100), 100)
    assert used(box) == []


@pytest.mark.parametrize(
    ("position", "length"), [(0, 0), (0, 101), (100, 101), (361, 100), (1 << 60, 1), (50, 60), (100, 49)]
)
def test_a_frame_that_cannot_be_is_refused_before_memory_is_taken_for_it(position, length):
    box = Inbox(WINDOW, FRAME)
    put(box, 0, 60)
    put(box, 100, 50)
    used(box)
    assert box.next == 60
    with pytest.raises(BadFrame):
        box.wants(position, length)


def test_the_end_is_where_the_peer_says_and_nowhere_else():
    box = Inbox(WINDOW, FRAME)
    put(box, 0, 60)
    assert not box.has_ended
    box.note_end(60)
    assert not box.has_ended
    used(box)
    assert box.has_ended
    with pytest.raises(BadFrame):
        box.note_end(61)
