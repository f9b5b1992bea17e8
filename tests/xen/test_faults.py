"""What goes wrong on real Xen: one clear error, the right exit code, the guest running, nothing left over."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
from pathlib import Path

import pytest
from launcher import Popen
from scenarios import the_disk_fills_up_half_way
from xen_lab import Command, Guest, domid_of, must, no_partial_files, run, state_of

one_kind = pytest.mark.parametrize("guest", [("pvh", 1)], indirect=True, ids=["pvh"])
slow = pytest.mark.slow
pv_only = pytest.mark.parametrize("guest", [("pv", 1)], indirect=True, ids=["pv"])

OTHER_UUID = "00000000-0000-4000-8000-00000000beef"


def with_config(
    image: Path, changed: Path, *, name: str, uuid: str, memory_kib: int = 0, more: dict | None = None
) -> None:
    """Write the image again with another configuration in xl's header."""
    whole = image.read_bytes()
    (length,) = struct.unpack_from("<I", whole, 48)
    config = json.loads(whole[52 : 52 + length - 1])
    config["c_info"].update(name=name, uuid=uuid)
    if memory_kib:
        config["b_info"].update(max_memkb=memory_kib, target_memkb=memory_kib)
    config.update(more or {})
    text = json.dumps(config).encode() + b"\0"
    header = whole[:44] + struct.pack("<II", len(text) + 4, len(text))
    changed.write_bytes(header + text + whole[52 + length :])


def first_page_data(image: Path) -> int:
    """Where the first PAGE_DATA record begins."""
    from saverestore.stream import LibxcReader, LibxlReader, XlHeader
    from saverestore.stream.reader import PageData
    from saverestore.transport import FdSource

    with FdSource(os.open(image, os.O_RDONLY), str(image)) as source:
        XlHeader.read(source)
        LibxlReader(source).next()
        reader = LibxcReader(source)
        record = reader.next()
        while not isinstance(record, PageData):
            record = reader.next()
        return record.offset


def next_save_is_whole(guest: Guest, images: Path) -> None:
    """Proof that nothing was harmed: the guest goes on, and another save and restore of it do, too."""
    before = guest.state()
    must("pysave", "--overwrite", guest.name, str(images / "next.img"))
    must("pyimage", "verify", str(images / "next.img"))
    must("pyrestore", str(images / "next.img"))
    guest.goes_on(before)


@pv_only
def test_a_disk_that_fills_up_half_way(guest: Guest, images: Path):
    the_disk_fills_up_half_way(guest, images)
    next_save_is_whole(guest, images)


@one_kind
def test_too_small_a_disk_is_told_before_the_guest_is_touched(guest: Guest, images: Path):
    before = guest.state()
    small = images / "small"
    small.mkdir()
    must("mount", "-t", "tmpfs", "-o", "size=16m", "none", str(small))
    try:
        said = run("pysave", guest.name, str(small / "a.img"))
        assert said.returncode == 5
        assert "no changes were made" in said.stderr
        assert "suspending" not in said.stderr
        assert list(small.iterdir()) == []
    finally:
        must("umount", str(small))
    guest.goes_on(before)


@one_kind
def test_the_reader_of_the_pipe_goes_away(guest: Guest, images: Path):
    before = guest.state()
    read_end, write_end = os.pipe()
    save = Command("pysave", guest.name, "-", stdout=write_end)
    os.close(write_end)
    os.read(read_end, 1 << 20)
    os.close(read_end)
    assert save.finish() == 5
    guest.goes_on(before)
    next_save_is_whole(guest, images)


@pytest.mark.parametrize(
    ("guest", "moment", "number"),
    [
        pytest.param(("pv", 1), "round 0", signal.SIGINT, id="first-round", marks=slow),
        pytest.param(("pvh", 1), "round 1", signal.SIGTERM, id="second-round"),
        pytest.param(("pv", 1), "suspending", signal.SIGINT, id="suspending-pv", marks=slow),
        pytest.param(("pvh", 1), "suspending", signal.SIGTERM, id="suspending-pvh", marks=slow),
        pytest.param(("pv", 1), "last round", signal.SIGTERM, id="last-round-pv"),
        pytest.param(("pvh", 1), "last round", signal.SIGINT, id="last-round-pvh", marks=slow),
    ],
    indirect=["guest"],
)
def test_a_signal_in_each_phase_of_a_live_save(
    guest: Guest, images: Path, moment: str, number: signal.Signals
):
    before = guest.state()
    save = Command("pysave", "--live", "--dirty", "digest", guest.name, str(images / "a.img"))
    save.wait_for(moment)
    save.send(number)
    assert save.finish() == 130, save.said
    assert list(images.iterdir()) == []
    guest.goes_on(before)


@one_kind
def test_a_signal_while_log_dirty_is_on_turns_it_off(guest: Guest, images: Path):
    before = guest.state()
    save = Command("pysave", "--live", "--dirty", "log", guest.name, str(images / "a.img"))
    save.wait_for("round 0")
    save.send(signal.SIGINT)
    assert save.finish() == 130, save.said
    # Log-dirty that is still on is refused (EINVAL) to whoever turns it on without turning it off first.
    import pyxc
    from pyxc._xen import lib

    with pyxc.Xen() as xen:
        assert lib.pyxc_logdirty_enable(xen.ptr, guest.domid) == 0
        assert lib.pyxc_logdirty_off(xen.ptr, guest.domid) == 0
    guest.goes_on(before)
    next_save_is_whole(guest, images)


@pv_only
def test_a_killed_save_leaves_a_guest_that_recover_puts_right(guest: Guest, images: Path):
    before = guest.state()
    save = Command("pysave", guest.name, str(images / "a.img"))
    save.wait_for("last round")
    save.send(signal.SIGSTOP)
    second = run("pysave", guest.name, str(images / "b.img"))
    assert second.returncode == 3, second.stderr
    save.send(signal.SIGKILL)
    save.finish()
    assert "s" in state_of(guest.name)
    refused = run("pysave", guest.name, str(images / "b.img"))
    assert refused.returncode == 3
    assert "--recover" in refused.stderr
    assert "has been resumed; it is running" in run("pysave", "--recover", guest.name).stderr
    guest.goes_on(before)
    must("pysave", guest.name, str(images / "a.img"))
    no_partial_files(images)
    must("pyrestore", str(images / "a.img"))
    guest.goes_on(before)


@pytest.mark.parametrize("toolstack", ["bare", pytest.param("libxl", marks=slow)])
@pv_only
def test_a_signal_during_restore_leaves_no_domain(guest: Guest, images: Path, toolstack: str):
    before = guest.state()
    must("pysave", guest.name, str(images / "a.img"))
    read_end, write_end = os.pipe()
    command = ["pyrestore", "--toolstack", toolstack, "-"]
    restore = Popen(command, stdin=read_end, stderr=subprocess.PIPE, text=True)
    os.close(read_end)
    image = (images / "a.img").read_bytes()
    os.write(write_end, image[: 1 << 16])
    remaining = memoryview(image)[1 << 16 : 40 << 20]
    while remaining:
        remaining = remaining[os.write(write_end, remaining[: 1 << 20]) :]
    assert domid_of(guest.name) is not None
    restore.send_signal(signal.SIGINT)
    _, said = restore.communicate(timeout=120)
    os.close(write_end)
    assert restore.returncode == 130, said
    assert domid_of(guest.name) is None
    must("pyrestore", str(images / "a.img"))
    guest.goes_on(before)


@one_kind
def test_damaged_images_leave_no_domain_and_name_the_place(guest: Guest, images: Path):
    before = guest.state()
    must("pysave", guest.name, str(images / "a.img"))
    whole = (images / "a.img").read_bytes()
    page_data = first_page_data(images / "a.img")
    damages = {
        "cut": whole[: len(whole) // 2],
        "no-image": b"#!/bin/sh\n" * 100,
        "length": whole[: page_data + 4] + b"\xff\xff\xff\xff" + whole[page_data + 8 :],
    }
    del whole
    for name, data in damages.items():
        path = images / name
        path.write_bytes(data)
        said = run("pyrestore", str(path))
        assert said.returncode == 4, (name, said.stderr)
        assert "Traceback" not in said.stderr
        assert domid_of(guest.name) is None, name
        path.unlink()
    must("pyrestore", str(images / "a.img"))
    guest.goes_on(before)


@slow
@pytest.mark.parametrize("guest", [("pv", 1), ("pvh", 1)], indirect=True, ids=["pv", "pvh"])
def test_a_pfn_beyond_the_domain_is_refused_and_no_domain_is_left(guest: Guest, images: Path):
    must("pysave", "--plain", "-c", guest.name, str(images / "a.img"))
    data = bytearray((images / "a.img").read_bytes())
    at = first_page_data(images / "a.img") + 8
    struct.pack_into("<Q", data, at + 8, (1 << 51) | 5)  # behind the count
    (images / "b.img").write_bytes(data)
    with_config(images / "b.img", images / "c.img", name="other", uuid=OTHER_UUID)
    said = run("pyrestore", str(images / "c.img"))
    assert said.returncode == 4, said.stderr
    assert "pfn 0x8000000000005" in said.stderr
    assert "no domain was left" in said.stderr
    assert domid_of("other") is None


@one_kind
def test_a_host_with_too_little_memory_is_told_before_a_domain_is_made(guest: Guest, images: Path):
    must("pysave", "-c", guest.name, str(images / "a.img"))
    with_config(images / "a.img", images / "huge.img", name="huge", uuid=OTHER_UUID, memory_kib=64 << 20)
    said = run("pyrestore", str(images / "huge.img"))
    assert said.returncode == 3
    assert "MiB free" in said.stderr
    assert domid_of("huge") is None


@one_kind
def test_a_name_or_uuid_that_is_taken_is_refused(guest: Guest, images: Path):
    must("pysave", "-c", guest.name, str(images / "a.img"))
    same_name = run("pyrestore", str(images / "a.img"))
    same_uuid = run("pyrestore", "--name", "other", str(images / "a.img"))
    assert (same_name.returncode, same_uuid.returncode) == (3, 3)
    assert "--name" in same_name.stderr
    assert "UUID" in same_uuid.stderr


@one_kind
def test_domains_that_cannot_be_saved_are_refused_with_the_reason(guest: Guest, images: Path):
    image = str(images / "a.img")
    assert "no domain" in refusal("nobody", image)
    assert "control domain" in refusal("0", image)
    assert "control domain" in refusal("Domain-0", image)
    must("xl", "pause", guest.name)
    assert "paused" in refusal(guest.name, image)
    must("xl", "unpause", guest.name)
    (images / "there").write_text("precious")
    said = run("pysave", guest.name, str(images / "there"))
    assert said.returncode == 2
    assert (images / "there").read_text() == "precious"


def refusal(domain: str, image: str) -> str:
    said = run("pysave", domain, image)
    assert said.returncode == 3, said.stderr
    assert len(said.stderr.splitlines()) == 1
    return said.stderr


@pv_only
def test_a_guest_that_does_not_answer_goes_on_and_the_request_is_taken_back(guest: Guest, images: Path):
    before = guest.state()
    control = f"/local/domain/{guest.domid}/control/shutdown"
    must("xenstore-chmod", control, "n0")  # the guest can no longer read what it is asked
    try:
        said = run("pysave", "--suspend-timeout", "5", guest.name, str(images / "a.img"))
        assert said.returncode == 3
        assert "did not answer" in said.stderr
        assert must("xenstore-read", control).strip() == ""
        no_partial_files(images)
    finally:
        must("xenstore-chmod", control, f"n{guest.domid}")
    guest.goes_on(before)
    next_save_is_whole(guest, images)


@one_kind
def test_the_bare_toolstack_refuses_a_domain_with_a_disk_by_name_before_it_is_touched(
    guest: Guest, images: Path
):
    before = guest.state()
    device = f"/libxl/{guest.domid}/device/vbd/51712"  # where libxl keeps what a domain has
    must("xenstore-write", f"{device}/frontend", "none")
    try:
        bare = ("pysave", "--toolstack", "bare")
        said = run(*bare, guest.name, str(images / "a.img"))
        assert said.returncode == 3
        assert "vbd 51712" in said.stderr
        assert "no changes were made" in said.stderr
        forced = run(*bare, "--force", "-c", guest.name, str(images / "a.img"))
        assert forced.returncode == 0, forced.stderr
    finally:
        must("xenstore-rm", f"/libxl/{guest.domid}/device/vbd")
    guest.goes_on(before)


@slow
@one_kind
def test_the_bare_toolstack_refuses_an_image_with_a_disk_by_name_before_a_domain_is_made(
    guest: Guest, images: Path
):
    must("pysave", "--plain", "-c", guest.name, str(images / "a.img"))  # changed below: no digest
    disk = {"disks": [{"vdev": "xvda", "format": "raw", "pdev_path": "/dev/null"}]}
    with_config(images / "a.img", images / "disk.img", name="other", uuid=OTHER_UUID, more=disk)
    bare = ("pyrestore", "--toolstack", "bare")
    said = run(*bare, str(images / "disk.img"))
    assert said.returncode == 3
    assert "disk xvda" in said.stderr
    assert domid_of("other") is None
    must(*bare, "--paused", "--force", str(images / "disk.img"))
    must("xl", "destroy", "other")
