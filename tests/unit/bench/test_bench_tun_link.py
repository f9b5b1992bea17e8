"""The link that a process of ours makes for benchmarks: as fast, late and lossy as is asked for."""

from __future__ import annotations

import os

import pytest
from benchmarks import tun_link
from benchmarks.tun_link import Direction

MTU = 1500


class Line:
    """A direction whose far end is a pipe, by a clock of its own."""

    def __init__(
        self, *, rate: float = 1e6, delay_s: float = 0.02, loss: float = 0.0, queue: float = 1e9
    ) -> None:
        self._out, there = os.pipe()
        os.set_blocking(self._out, False)
        os.set_blocking(there, False)
        self._there = there
        self.direction = Direction(there, rate, delay_s, loss, queue)

    def arrived(self, now: float) -> int:
        """How many packets are there by then."""
        self.direction.deliver(now)
        try:
            return len(os.read(self._out, 1 << 16)) // MTU
        except BlockingIOError:
            return 0

    def close(self) -> None:
        os.close(self._out)
        os.close(self._there)


@pytest.fixture
def line(request):
    made = Line(**getattr(request, "param", {}))
    yield made
    made.close()


def test_a_packet_arrives_after_the_time_it_takes_to_send_it_and_the_delay(line):
    line.direction.take(bytes(MTU), 10.0)
    assert line.direction.deliver(10.0) == pytest.approx(10.0 + MTU / 1e6 + 0.02)
    assert line.arrived(10.0214) == 0
    assert line.arrived(10.0216) == 1
    assert line.direction.deliver(11.0) is None


def test_packets_arrive_no_faster_than_the_rate_and_in_order_of_sending(line):
    for _ in range(20):
        line.direction.take(bytes(MTU), 10.0)
    assert line.arrived(10.02 + 10.5 * MTU / 1e6) == 10
    assert line.arrived(11.0) == 10


@pytest.mark.parametrize("line", [{"queue": 10.5 * MTU}], indirect=True)
def test_what_finds_the_queue_full_is_lost(line):
    for _ in range(20):
        line.direction.take(bytes(MTU), 10.0)
    assert line.arrived(11.0) == 11  # ten wait, one is being sent


@pytest.mark.parametrize("line", [{"loss": 0.25}], indirect=True)
def test_packets_are_lost_by_chance_but_take_their_time(line, monkeypatch):
    chances = iter([0.1, 0.3, 0.2, 0.9])
    monkeypatch.setattr(tun_link.random, "random", lambda: next(chances))
    for _ in range(4):
        line.direction.take(bytes(MTU), 10.0)
    assert line.arrived(10.02 + 2.5 * MTU / 1e6) == 1
    assert line.arrived(11.0) == 1
