"""`tools/bench migrate` between two processes: a small domain really moves, and the right things are compared."""

from __future__ import annotations

from contextlib import closing
from resource import RUSAGE_SELF, getrusage

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from benchmarks import cli, migrate_native
from benchmarks.migrate_native import AUTO, NONE, OURS, QEMU, Measured, comparisons
from benchmarks.moving import How, Moved, move, ready_for

from saverestore.migrate.source_link import LinkOptions, LinkReport
from saverestore.stream.coding_choice import Coded
from saverestore.testing.domain import MemoryDomain


def moved(seconds: float, *, cpu_s: float = 1.0, sent_mb: float = 100.0, resent: int = 0) -> Moved:
    link = LinkReport(resent_pages=resent)
    return Moved(seconds, cpu_s, int(sent_mb * 1e6), {"none": Coded(1, 2, 2)}, link)


def test_a_domain_really_moves_between_two_processes_and_arrives_whole():
    domain = MemoryDomain.pvh(2048)
    domain.write(domain.data_pfns()[::2], 7)
    for codecs in (NONE, AUTO):
        found = move(domain, How(codecs, LinkOptions(streams=2)))
        assert found.seconds > 0
        assert found.cpu_s > 0
        assert found.link.streams == 2
        assert bool(found.coded) == (codecs is AUTO)


def test_the_memory_that_a_domain_moves_into_is_there_before_the_clock_starts():
    with closing(MemoryDomain.pvh(8192)) as domain, closing(ready_for(domain)) as target:
        before = getrusage(RUSAGE_SELF).ru_minflt
        target.frames[:, 8] |= 0
        assert getrusage(RUSAGE_SELF).ru_minflt - before < 8  # 16, even where pages are of 2 MiB


def test_each_number_of_connections_is_compared_with_as_many_channels_and_the_best_with_the_best():
    measured = Measured(1, 1_000_000)
    for streams, ours, qemu in ((1, 1.0, 1.0), (2, 0.5, 1.0), (4, 2.0, 0.8)):
        measured.moved[f"{OURS}, {streams} over TCP"] = [moved(ours), moved(ours), moved(9.0)]
        measured.qemu_s[f"{QEMU}, {streams} over TCP"] = [qemu]
    ratios = {one.what.rpartition(", ")[2]: (one.ratio, one.holds) for one in comparisons(measured)}
    assert ratios["1: against QEMU multifd of 1"] == (1.0, True)
    assert ratios["2: against QEMU multifd of 2"] == (2.0, True)
    assert ratios["4: against QEMU multifd of 4"] == (0.4, False)
    assert ratios["TCP: best against best of QEMU multifd"] == (1.6, True)


def test_processor_time_slow_links_and_a_cut_have_their_targets():
    measured = Measured(1, 1_000_000)
    measured.moved = {
        "cpu, none": [moved(1.0, cpu_s=1.0)],
        "cpu, auto": [moved(1.0, cpu_s=1.04)],
        "1 Gbit/s, none": [moved(3.0)],
        "1 Gbit/s, auto": [moved(1.0)],
        "1 Gbit/s, zlib": [moved(1.2)],
        "100 Mbit/s, 40 ms, 0.1% lost, none": [moved(30.0)],
        "100 Mbit/s, 40 ms, 0.1% lost, auto": [moved(10.0, sent_mb=110.0)],
        "not cut": [moved(4.0)],
        "cut": [moved(11.0, resent=100)],
    }
    found = {one.what: one for one in comparisons(measured)}
    assert found["processor time: auto, against none"].holds
    assert found["1 Gbit/s: auto, against none"].holds
    assert not found["1 Gbit/s: auto, against zlib"].holds
    assert found["100 Mbit/s, 40 ms, 0.1% lost: auto, against none"].ratio == 3.0
    assert found["100 Mbit/s, 40 ms, 0.1% lost: what auto uses, of the rate"].ratio == pytest.approx(0.88)
    assert found["cut for 5 s: time beyond that"].ours == 2.0
    assert found["cut for 5 s: sent again, of all"].ours == pytest.approx(0.41, abs=0.01)
    assert found["cut for 5 s: sent again, of all"].holds


def test_what_was_not_run_is_not_compared():
    assert comparisons(Measured(1, 1_000_000)) == []


def test_the_command_knows_all_parts():
    assert set(cli.NATIVE_PARTS) == {
        name.removeprefix("_")
        for name in ("_loopback", "_tls", "_cpu", "_gigabit", "_slow", "_wan", "_cut")
        if hasattr(migrate_native, name)
    }
