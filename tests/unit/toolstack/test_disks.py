"""Disks that were written to after a save are found before the domain runs over them."""

from __future__ import annotations

import os
import uuid
from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from saverestore.errors import DomainError, ErrorName, Remedy
from saverestore.toolstack import disks

WEB = uuid.UUID(int=1)


def config_with(*found: dict) -> SimpleNamespace:
    return SimpleNamespace(raw={"disks": list(found)})


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 16))
    os.utime(path, ns=(0, 1_700_000_000_000_000_000))
    return path


def noted(path, **more) -> list[disks.Disk]:
    return disks.noted(config_with({"vdev": "xvda", "pdev_path": str(path), "readwrite": 1, **more}))


def changed(found, tmp_path) -> list[str]:
    return disks.changed(found, WEB, folder=tmp_path / "settled")


def test_a_disk_that_nobody_touched_is_what_it_was(disk, tmp_path):
    found = noted(disk)
    assert found[0]["bytes"] == 1 << 16
    assert found[0]["written"] == "2023-11-14T22:13:20+00:00"
    assert changed(found, tmp_path) == []


def test_a_disk_is_opened_to_be_looked_at(disk, monkeypatch):
    """By its name alone, NFS answers with what it remembers, for up to a minute."""

    def stale(*_: object, **__: object) -> None:
        raise AssertionError("looked at by name")

    monkeypatch.setattr(disks.Path, "stat", stale)
    monkeypatch.setattr(disks.os, "stat", stale)
    assert noted(disk)[0]["bytes"] == 1 << 16


def test_a_disk_that_is_a_pipe_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert noted(tmp_path / "pipe") == [{"vdev": "xvda", "path": str(tmp_path / "pipe")}]


def test_a_disk_that_was_written_to_is_named_with_when(disk, tmp_path):
    found = noted(disk)
    os.utime(disk, ns=(0, 1_700_000_012_000_000_000))
    assert changed(found, tmp_path) == [
        f"disk xvda: {disk} was written at 2023-11-14T22:13:32+00:00; when the domain was saved, last at "
        "2023-11-14T22:13:20+00:00"
    ]


def test_a_disk_of_another_length_is_another(disk, tmp_path):
    found = noted(disk)
    disk.write_bytes(bytes(1 << 17))
    assert "has 131072 bytes, and had 65536" in changed(found, tmp_path)[0]


def test_a_snapshot_that_was_brought_back_is_what_it_was(disk, tmp_path):
    found = noted(disk)
    content, status = disk.read_bytes(), disk.stat()
    disk.write_bytes(b"another life" + content)
    disk.unlink()
    disk.write_bytes(content)
    os.utime(disk, ns=(0, status.st_mtime_ns))
    assert changed(found, tmp_path) == []


def test_what_its_server_wrote_when_it_closed_the_disk_is_no_change(disk, tmp_path):
    found = noted(disk)
    os.utime(disk, ns=(0, 1_700_000_001_000_000_000))  # QEMU closes it
    disks.settle(WEB, found, folder=tmp_path / "settled")
    assert changed(found, tmp_path) == []
    os.utime(disk, ns=(0, 1_700_000_012_000_000_000))  # a second life
    assert len(changed(found, tmp_path)) == 1
    # Of another save of it, that says nothing.
    other = [{**found[0], "mtime_ns": 1, "written": "1970-01-01T00:00:00+00:00"}]
    os.utime(disk, ns=(0, 1_700_000_001_000_000_000))
    assert len(changed(other, tmp_path)) == 1


def test_a_damaged_note_of_that_is_none(disk, tmp_path):
    (tmp_path / "settled").mkdir()
    (tmp_path / "settled" / f"disks-{WEB}.json").write_text("[]")
    assert changed(noted(disk), tmp_path) == []


@pytest.mark.parametrize(
    "more",
    [
        {"readwrite": 0},
        {"is_cdrom": 1},
        {"backend_domid": 3},
        {"backend_domname": "storage"},
        {"pdev_path": "rbd:x"},
    ],
    ids=str,
)
def test_what_cannot_change_or_is_not_served_here_is_not_noted(disk, more):
    assert noted(disk, **more) == []


def test_a_disk_that_is_not_there_is_not_for_here_to_find(disk, tmp_path):
    found = noted(disk)
    disk.unlink()
    assert changed(found, tmp_path) == []


def test_of_a_block_device_what_was_written_to_it_is_compared_until_the_host_boots(monkeypatch, tmp_path):
    facts = {"bytes": 4096, "device": "253:0", "sectors_written": 100, "boot": "a"}
    monkeypatch.setattr(disks, "_facts", lambda _path: now)
    then = [{"vdev": "xvda", "path": "/dev/vg/web", **facts}]
    for now, number in (
        (facts, 0),
        (facts | {"sectors_written": 108}, 1),
        (facts | {"sectors_written": 8, "boot": "b"}, 0),
        (facts | {"bytes": 8192, "boot": "b"}, 1),
    ):
        assert len(changed(then, tmp_path)) == number, now


def test_a_block_device_that_was_mounted_before_the_host_booted_again_has_changed(monkeypatch, tmp_path):
    """Repaired from a rescue system while its domain was saved: the counter of what was written begins anew."""
    facts = {"bytes": 4096, "device": "253:0", "sectors_written": 100, "boot": "a", "start": "c0ffee"}
    monkeypatch.setattr(disks, "_facts", lambda _path: now)
    then = [{"vdev": "xvda", "path": "/dev/vg/web", **facts}]
    for now, is_changed in (
        (facts | {"start": "decaf"}, False),  # nothing was written to it, says the kernel
        (facts | {"boot": "b", "sectors_written": 0}, False),
        (facts | {"boot": "b", "sectors_written": 0, "start": "decaf"}, True),
        ({name: facts[name] for name in ("bytes", "device")} | {"boot": "b"}, False),  # it cannot be read
    ):
        found = changed(then, tmp_path)
        assert bool(found) is is_changed, now
        assert not found or "/dev/vg/web has other content in its first 2 MiB than when" in found[0]


def test_the_first_part_of_a_disk_is_read_past_the_page_cache(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(4 << 20))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    before = disks.start_of(str(path))
    if not before:
        pytest.skip("this file system has no O_DIRECT")
    with path.open("r+b") as file:
        file.seek((1 << 20) + 1024)
        file.write(b"mounted")
    assert disks.start_of(str(path)) != before
    assert disks.start_of(str(tmp_path / "absent")) == {}


def test_a_restore_over_changed_disks_is_refused_by_name_unless_it_is_forced(
    disk, monkeypatch, tmp_path, caplog
):
    monkeypatch.setattr(disks, "SETTLED_DIR", tmp_path / "settled")
    found = noted(disk)
    disks.check(found, WEB, force=False)
    os.utime(disk)
    with pytest.raises(DomainError, match=f"disk xvda: {disk} was written at") as caught:
        disks.check(found, WEB, force=False)
    assert caught.value.name is ErrorName.DISKS_CHANGED
    assert [one.remedy for one in caught.value.remedies] == [Remedy.RESTORE_OVER_CHANGED_DISKS]
    disks.check(found, WEB, force=True)
    assert "restored all the same" in caplog.text
