"""`tools/bench engine` with small domains: what is run and what is compared, never how long it took."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import engine, qemu
from benchmarks.engine import Measured
from benchmarks.errors import BenchError


@pytest.mark.parametrize("kind", engine.KINDS)
def test_each_way_is_run_in_each_round_and_nothing_is_left(kind, tmp_path):
    one = engine.measure(kind, 1, rounds=2, folder=tmp_path, qemu_root=None, say=lambda text: None)
    assert {len(seconds) for seconds in one.seconds.values()} == {2}
    for sink in ("/dev/null", "a pipe", "TCP", "a file"):
        assert {f"save to {sink}, 1 worker", f"save to {sink}, 2 workers"} <= one.ours
    assert {"restore from a file", "restore from a pipe", "restore from TCP"} <= one.ours
    assert "cat | cat >/dev/null" in one.seconds
    assert one.dirty_share > 0
    assert one.left_out == ["QEMU: left out with --no-qemu"]
    assert list(tmp_path.iterdir()) == []
    assert "save to TCP, 2 workers" in engine.report([one])


def test_an_image_that_is_not_what_the_domain_has_is_an_error(tmp_path):
    domain = engine.make_domain("pvh", 1)
    image = tmp_path / "image"
    engine.save_to_file(domain, 2, image)
    engine.check_restored(domain, image)
    domain.write(domain.data_pfns()[-1:], 7)
    with pytest.raises(BenchError, match="do not trust any figure"):
        engine.check_restored(domain, image)
    domain.close()


def none_here() -> Path:
    raise BenchError("no QEMU of trixie: run as root once")


def test_qemu_that_cannot_be_had_is_left_out_with_the_reason(tmp_path):
    one = engine.measure("pvh", 1, rounds=1, folder=tmp_path, qemu_root=none_here, say=lambda text: None)
    assert one.left_out == ["no QEMU of trixie: run as root once"]
    assert not any("QEMU" in name for name in one.seconds)


def test_without_peers_only_ours_are_run(tmp_path):
    one = engine.measure(
        "pvh", 1, rounds=1, folder=tmp_path, qemu_root=none_here, with_peers=False, say=lambda text: None
    )
    assert set(one.seconds) == one.ours and "save to a file, 2 workers" in one.ours
    assert one.left_out == ["all peers: left out with --no-peers"]


def test_targets_are_compared_with_their_peers_and_others_without():
    seconds = {
        "save to a pipe, 2 workers": [1.0, 3.0, 2.0],
        "QEMU exec:cat >/dev/null": [4.0],
        "restore from a file": [2.0],
        "dd of the image, file to file": [1.0],
    }
    one = Measured("pv", 8, 8_000_000, seconds, dirty_share=1.2)
    found = engine.comparisons(one)
    assert [(line.ratio, line.target, line.holds) for line in found] == [
        (2.0, 1.5, True),
        (0.5, 0.8, False),
        (0.833, 0.667, True),
    ]


def test_time_that_grows_faster_than_the_domain_is_told():
    small = Measured("pv", 1, 10, {"restore from a file": [1.0]})
    large = Measured("pv", 4, 40, {"restore from a file": [5.0]})
    (line,) = engine.linear(small, large)
    assert (line.ratio, line.holds) == (0.8, False)


def test_a_domain_that_does_not_fit_into_memory_is_refused_before_it_is_made():
    with pytest.raises(BenchError, match="give a smaller --mib"):
        engine.check_memory(1 << 40)


def test_only_ways_that_write_a_file_name_one():
    for name, (uri, capabilities) in qemu.WAYS.items():
        assert ("{out}" in uri) == ("file" in uri), name
        assert set(capabilities) <= set(qemu.CAPABILITIES)
