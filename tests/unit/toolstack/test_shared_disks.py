"""Disks that two hosts see: which can move, whether they are the same, what is flushed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from saverestore.errors import DomainError, ErrorName
from saverestore.toolstack import shared_disks
from saverestore.toolstack.shared_disks import different, flush, of_config, unmovable


def config(*disks: dict[str, object], **more: object) -> SimpleNamespace:
    return SimpleNamespace(raw={"disks": list(disks), **more})


@pytest.fixture
def disk(tmp_path: Path) -> dict[str, object]:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(path)], check=True)
    return {"vdev": "xvda", "pdev_path": str(path), "format": "raw"}


def test_a_disk_is_known_by_its_length_and_its_file_systems_uuid(disk):
    (found,) = of_config(config(disk))
    assert (found.name, found.bytes) == ("xvda", 8 << 20)
    assert len(found.mark) == 36


def test_the_same_disk_is_not_different(disk):
    (found,) = of_config(config(disk))
    assert different(config(disk), [found.name], [found.bytes], [found.mark]) == []


def test_one_of_another_length_or_with_another_file_system_is(disk):
    (found,) = of_config(config(disk))
    path = disk["pdev_path"]
    assert different(config(disk), ["xvda"], [4096], [found.mark]) == [
        f"disk xvda: {path} has {8 << 20} bytes here, and 4096 at the source"
    ]
    other = "11111111-2222-4333-8444-555555555555"
    assert different(config(disk), ["xvda"], [found.bytes], [other]) == [
        f"disk xvda: {path} holds {found.mark} here, and {other} at the source"
    ]


def test_what_one_host_does_not_know_of_a_disk_makes_no_difference(disk):
    assert different(config(disk), ["xvda"], [-1], [""]) == []
    assert different(config(disk), [], [], []) == []
    Path(str(disk["pdev_path"])).unlink()
    assert different(config(disk), ["xvda"], [4096], ["x"]) == []


@pytest.mark.parametrize(
    "more",
    [{"script": "block-drbd"}, {"backend_domname": "storage"}, {"pdev_path": "rbd:x"}, {"pdev_path": ""}],
)
def test_disks_that_dom0_does_not_serve_from_a_path_are_not_looked_at(disk, more):
    assert of_config(config(disk | more)) == []


def test_disks_and_network_cards_can_move_and_what_belongs_to_this_host_cannot(disk):
    assert unmovable(config(disk, nics=[{"devid": 0}])) == []
    assert unmovable(config(disk | {"format": "qcow2"}, pcidevs=[{"dev": 1}], vtpms=[{}])) == [
        "a passed-through PCI device",
        "a virtual TPM",
        "disk xvda of the format qcow2",
    ]


def test_an_empty_drive_can_move():
    assert unmovable(config({"vdev": "xvdc", "format": "empty", "is_cdrom": 1})) == []


def test_what_was_written_is_synced(disk, monkeypatch):
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
    )
    flush(config(disk))
    assert synced == [disk["pdev_path"]]


def test_a_disk_that_cannot_be_flushed_is_named(disk):
    Path(str(disk["pdev_path"])).unlink()
    with pytest.raises(
        DomainError, match=r"disk xvda: what was written to .* cannot be flushed: No such"
    ) as caught:
        flush(config(disk))
    assert caught.value.name is ErrorName.DISKS_UNFLUSHED


def test_a_disk_that_is_only_read_is_not_flushed(disk, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("synced"))
    flush(config(disk | {"readwrite": 0}, disk | {"is_cdrom": 1}))


def test_nothing_but_the_flush_is_done_while_the_domain_is_suspended(disk, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a program was started"))
    flush(config(disk))


def a_block_device(tmp_path: Path, monkeypatch, *answers: str) -> list[str]:
    """Let a device's counter of requests under way give these answers, one after the other: what is left of them."""
    left = list(answers)

    class Counter:
        def __truediv__(self, _part: str) -> Counter:
            return self

        def read_text(self) -> str:
            return left.pop(0) if len(left) > 1 else left[0]

    monkeypatch.setattr(shared_disks, "SYS_BLOCK", Counter())
    monkeypatch.setattr(shared_disks.stat, "S_ISBLK", lambda _mode: True)
    return left


def test_requests_under_way_past_the_page_cache_are_waited_for(disk, tmp_path, monkeypatch):
    left = a_block_device(tmp_path, monkeypatch, "0 2", "1 1", "       7        0\n")
    flush(config(disk))
    assert left == ["       7        0\n"]  # what a suspended guest wanted to read is not waited for


def test_requests_that_do_not_end_are_an_error(disk, tmp_path, monkeypatch):
    a_block_device(tmp_path, monkeypatch, "0 1")
    monkeypatch.setattr(shared_disks, "IN_FLIGHT_TIMEOUT_S", 0.05)
    with pytest.raises(DomainError, match=r"writes are still under way after 0\.05 s"):
        flush(config(disk))
