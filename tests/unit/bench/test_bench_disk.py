"""`tools/bench disk` with a small domain: what is run and what is compared, never how long it took."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from benchmarks import disk
from benchmarks.engine import Measured, make_domain
from benchmarks.errors import BenchError

from saverestore.transport.safety import is_in_memory


@pytest.fixture
def on_disk(tmp_path):
    """A folder on a disk."""
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        if is_in_memory(fd):
            pytest.skip(f"{tmp_path} is in memory: give --basetemp")
    finally:
        os.close(fd)
    return tmp_path


def measured(folder: Path, **how) -> Measured:
    memory = folder / "memory"
    memory.mkdir()
    one = disk.measure(
        1, rounds=2, folder=folder, memory=memory, qemu_root=None, say=lambda text: None, **how
    )
    assert list(memory.iterdir()) == []
    memory.rmdir()
    return one


def test_each_way_is_run_in_each_round_and_nothing_is_left(on_disk):
    one = measured(on_disk)
    assert {len(seconds) for seconds in one.seconds.values()} == {2}
    ours = {disk.PAGE_WAY, disk.AUTO_WAY, disk.HOLES_PAGE_WAY, disk.HOLES_AUTO_WAY}
    assert ours <= one.ours
    assert {disk.DD_PAGE_WAY, disk.DD_DIRECT_WAY} == one.seconds.keys() - one.ours
    assert one.left_out == ["QEMU: left out with --no-qemu"]
    assert list(on_disk.iterdir()) == []
    assert disk.AUTO_WAY in disk.report(one)
    assert len(disk.comparisons(one)) == len([line for line in disk.COMPARED if "QEMU" not in line[1]])


def test_a_folder_in_memory_is_refused(tmp_path):
    with pytest.raises(BenchError, match="has no disk, or takes no direct I/O"):
        disk.measure(
            1, rounds=1, folder=Path("/dev/shm"), memory=tmp_path, qemu_root=None, say=lambda text: None
        )


def test_qemu_that_cannot_be_had_is_left_out_with_the_reason(on_disk):
    def none_here() -> Path:
        raise BenchError("no QEMU of trixie: run as root once")

    memory = on_disk / "memory"
    memory.mkdir()
    one = disk.measure(1, rounds=1, folder=on_disk, memory=memory, qemu_root=none_here, say=lambda text: None)
    assert one.left_out == ["no QEMU of trixie: run as root once"]
    assert not any("QEMU" in name for name in one.seconds)


def test_the_domain_that_all_have_to_write_has_no_zero_page():
    domain = disk.without_zero_pages(make_domain("pvh", 2))
    content = domain.content(domain.data_pfns())
    assert content.reshape(len(content), -1).any(axis=1).all()
    domain.close()


def test_targets_are_compared_with_their_peers():
    seconds = {
        disk.AUTO_WAY: [1.0],
        disk.PAGE_WAY: [2.0],
        disk.DD_DIRECT_WAY: [0.8],
        disk.QEMU_DIRECT_WAY: [1.0],
    }
    found = disk.comparisons(Measured("pvh", 8, 8_000_000, seconds))
    assert [(line.ratio, line.target, line.holds) for line in found] == [
        (0.8, 0.9, False),
        (1.0, 1.0, True),
        (2.0, 0.95, True),
    ]
