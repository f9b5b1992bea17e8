"""What a dry run measures: the clocks' difference and the link's rate; and what a destination takes for that."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from two_channels import channels, greet_both

from saverestore.migrate import measuring
from saverestore.migrate.channel import Channel
from saverestore.migrate.data import MessageSink
from saverestore.migrate.messages import Accepted, KeepAlive, ProtocolError
from saverestore.transport.connection import BrokenPeer

ID = uuid.UUID(int=7)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = channels()
    with one, other:
        greet_both(one, other)
        yield one, other


def test_a_burst_is_measured_and_thrown_away(ends, monkeypatch):
    monkeypatch.setattr(measuring, "QUICK_S", 1000.0)  # both bursts
    one, other = ends
    with ThreadPoolExecutor() as threads:
        swallowed = threads.submit(measuring.swallow, other)
        text = measuring.measure(one, memory_kib=1 << 20)
        swallowed.result(20)
    assert text.startswith("link: ")
    assert "1024 MiB take" in text


def test_a_slow_link_gets_one_small_burst(ends, monkeypatch):
    monkeypatch.setattr(measuring, "QUICK_S", 0.0)
    one, other = ends
    taken = []
    monkeypatch.setattr(measuring, "MOST_BYTES", measuring.PIECE_BYTES)  # the second one would be too much
    with ThreadPoolExecutor() as threads:
        swallowed = threads.submit(lambda: taken.append(measuring.swallow(other)))
        measuring.measure(one, memory_kib=1024)
        swallowed.result(20)
    assert taken == [None]


def test_a_destination_that_does_not_answer_is_not_waited_for_long(ends, monkeypatch):
    monkeypatch.setattr(measuring, "PATIENCE_S", 0.1)
    one, other = ends
    reader = threading.Thread(target=lambda: other.connection.incoming.read(measuring.PIECE_BYTES, "it"))
    reader.start()
    assert measuring.measure(one, memory_kib=1024) == "link: 1 MiB took more than 0 s"
    reader.join()


def test_a_source_that_sends_without_end_is_given_up(ends, monkeypatch):
    monkeypatch.setattr(measuring, "MOST_BYTES", measuring.PIECE_BYTES)
    one, other = ends

    def flood() -> None:
        sink = MessageSink(one)
        with pytest.raises(BrokenPeer):
            while True:
                sink.write(bytes(measuring.PIECE_BYTES))

    with ThreadPoolExecutor() as threads:
        flooded = threads.submit(flood)
        with pytest.raises(ProtocolError, match="sent more than 1 MiB in a dry run"):
            measuring.swallow(other)
        other.close()
        flooded.result(20)


@pytest.mark.parametrize("sent", [b"", b"some of a burst"])
def test_a_source_may_leave_at_any_time(ends, sent):
    one, other = ends
    if sent:
        MessageSink(one).write(sent)
        one.say(KeepAlive())  # its answer meets nobody
    one.close()
    measuring.swallow(other)


@pytest.mark.parametrize(
    ("ahead", "text"),
    [
        (0.4, "the clocks of both hosts are less than 0.5 s apart"),
        (12.3, "the clock of b is 12.3 s ahead of this host's"),
        (-3.0, "the clock of b is 3.0 s behind this host's"),
    ],
)
def test_the_difference_of_the_clocks_in_words(ahead, text):
    assert measuring.difference("b", ahead) == text


def test_a_destination_that_does_not_say_what_time_it_is_has_no_difference():
    assert measuring.ahead_s(Accepted(ID)) is None
    found = measuring.ahead_s(Accepted(ID, clock_ms=measuring.clock_ms() + 60_000))
    assert found is not None
    assert 59 < found <= 60
