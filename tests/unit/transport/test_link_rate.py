"""How fast a link is, by what is taken and what TCP says; and which cores are idle."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from saverestore.transport import cores
from saverestore.transport.connection import SocketConnection, pair
from saverestore.transport.cores import IdleCores, idle_seconds, usable_cores
from saverestore.transport.link_rate import LinkRate

MB = 1_000_000


class World:
    def __init__(self, told: int | None) -> None:
        self.now = 100.0
        self.told = told
        self.rate = LinkRate(lambda: self.told, lambda: self.now)

    def write(self, nr_bytes: int, waited_s: float, then_s: float = 0.0) -> None:
        since = self.rate.writing()
        self.now += waited_s
        self.rate.wrote(nr_bytes, since)
        self.now += then_s


def test_nothing_is_known_before_anything_was_written():
    world = World(5 * MB)
    assert world.rate.bytes_per_s is None
    world.write(1000, 0.0001)
    assert world.rate.bytes_per_s is None  # too short to tell


def test_a_writer_that_waits_learns_what_the_link_takes():
    world = World(None)
    for _ in range(30):
        world.write(MB, 0.1)
    assert world.rate.bytes_per_s == pytest.approx(10 * MB, rel=0.01)


def test_what_buffers_took_at_once_is_forgotten():
    world = World(None)
    world.write(6 * MB, 0.06)
    for _ in range(30):
        world.write(MB, 0.1)
    assert world.rate.bytes_per_s == pytest.approx(10 * MB, rel=0.1)


def test_tcps_estimate_is_believed_where_the_writer_does_not_wait():
    world = World(100 * MB)
    for _ in range(30):
        world.write(MB, 0.001, 0.1)
    assert world.rate.bytes_per_s == pytest.approx(100 * MB, rel=0.01)


def test_while_the_writer_waits_the_lower_figure_counts():
    world = World(100 * MB)
    for _ in range(30):
        world.write(MB, 0.1)
    assert world.rate.bytes_per_s == pytest.approx(10 * MB, rel=0.01)


def test_of_an_idle_link_of_which_nothing_else_is_known_more_is_assumed_as_time_passes():
    world = World(None)
    for _ in range(10):
        world.write(MB, 0.1)
    before = world.rate.bytes_per_s
    for _ in range(10):
        world.write(MB // 10, 0.001, 0.3)
    assert before < world.rate.bytes_per_s < 10 * before


def test_tcp_says_at_which_rate_it_delivered_and_others_say_nothing():
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other = server.accept()[0]
    with (
        SocketConnection(one, "peer", timeout_s=10) as ours,
        SocketConnection(other, "us", timeout_s=10) as there,
    ):
        for _ in range(50):
            ours.outgoing.write(bytes(100_000))
            there.incoming.read(100_000)
        assert ours.delivery_rate() > 1000
    assert ours.delivery_rate() is None
    ours, there = pair()
    with ours, there:
        assert ours.delivery_rate() is None


def test_cores_are_available_that_were_idle_or_worked_for_the_caller():
    now, idle = [0.0], [50.0]
    found = IdleCores(lambda: idle[0], lambda: 4, lambda: now[0])
    assert found.available() == 0.0  # nobody has looked yet
    now[0], idle[0] = 1.0, 51.5
    found.worked(0.5)
    assert found.available() == pytest.approx(2.0)
    now[0], idle[0] = 2.0, 61.5
    assert found.available() == 4.0


def test_without_proc_what_was_assumed_stays(monkeypatch, tmp_path):
    monkeypatch.setattr(cores, "STAT", tmp_path / "none")
    assert idle_seconds() is None
    now = [0.0]
    found = IdleCores(clock=lambda: now[0])
    now[0] = 9.0
    assert found.available() == max(1.0, usable_cores() - 1.0)


def test_idle_time_is_of_the_cores_that_this_process_may_use():
    up_s = float(Path("/proc/uptime").read_text().split()[0])
    assert 0 < idle_seconds() <= up_s * len(os.sched_getaffinity(0)) * 1.1
