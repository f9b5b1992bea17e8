"""What goes wrong with devices, device models and libxl: one clear error, and the host is as it was before."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from launcher import Popen
from test_faults import OTHER_UUID, with_config
from xen_lab import Command, Guest, domid_of, must, no_partial_files, run, state_of

BLOCK_SCRIPT = Path("/etc/xen/scripts/block")

FEW_PAGES, SLOW_RATE = 512, 200


def footprint() -> dict[str, list[str]]:
    """What a domain leaves on a host: domains, xenstore's nodes of them, loop devices, mounts, network cards."""
    return {
        "domains": sorted(line.split()[0] for line in must("xl", "list").splitlines()[1:]),
        "nodes": sorted(must("xenstore-list", "/local/domain").split()),
        "libxl": sorted(must("xenstore-list", "/libxl").split()),
        "loops": sorted(
            line.split()[0] for line in must("losetup", "-n", "-l", "-O", "BACK-FILE").splitlines()
        ),
        "mounts": sorted(Path("/proc/mounts").read_text().splitlines()),
        "cards": sorted(path.name for path in Path("/sys/class/net").glob("vif*")),
        "userdata": sorted(path.name for path in Path("/var/lib/xen").glob("userdata-*")),
    }


@contextmanager
def nothing_left_over() -> Iterator[None]:
    """The host is the same at the end of the block; what goes away by itself is given some seconds."""
    before = footprint()
    yield
    deadline = time.monotonic() + 20
    while footprint() != before and time.monotonic() < deadline:
        time.sleep(0.5)
    assert footprint() == before


@pytest.fixture(scope="module")
def with_disk(tmp_path_factory) -> Iterator[Path]:
    """An image of a PVH guest with a disk, whose domain is gone."""
    guest = Guest("pvh-disk", "pvh", 1)
    image = Path("/dev/shm/pvh-disk.img")
    image.unlink(missing_ok=True)
    guest.destroy()
    guest.create(pages=FEW_PAGES, rate=SLOW_RATE, more=("--disk",))
    must("pysave", guest.name, str(image))
    yield image
    image.unlink()


hvm = pytest.mark.parametrize("guest", [("hvm", 1)], indirect=True, ids=["hvm"])


def device_model_of(guest: Guest) -> int:
    return int(must("xenstore-read", f"/local/domain/{guest.domid}/image/device-model-pid"))


# ---- restoring ---------------------------------------------------------------------------------------


def test_a_disk_that_is_gone_is_told_before_a_domain_is_made(with_disk: Path):
    disk, away = Path("/lab/pvh-disk.disk"), Path("/lab/away.disk")
    disk.rename(away)
    try:
        with nothing_left_over():
            said = run("pyrestore", str(with_disk))
        assert said.returncode == 3, said.stderr
        assert "/lab/pvh-disk.disk is not there; no changes were made" in said.stderr
        assert "creating" not in said.stderr
    finally:
        away.rename(disk)


def test_a_hotplug_script_that_fails_is_told_and_leaves_nothing(with_disk: Path):
    script = BLOCK_SCRIPT.read_bytes()
    BLOCK_SCRIPT.write_text("#!/bin/sh\necho no luck today >&2\nexit 7\n")
    try:
        with nothing_left_over():
            said = run("pyrestore", str(with_disk))
        assert said.returncode == 6, said.stderr
        assert "exited with error status 7" in said.stderr
        assert "no domain was left" in said.stderr
    finally:
        BLOCK_SCRIPT.write_bytes(script)


def helper_of(pid: int) -> dict[str, int]:
    """What libxl has been given for a helper: the program that it runs, and the process that does the work."""
    found = {
        what: run("pgrep", "-P", str(pid), "-f", "--", pattern).stdout.split()
        for what, pattern in (("stand-in", "--restore-domain"), ("worker", "pyrestore"))
    }
    return {what: int(pids[0]) for what, pids in found.items() if pids}


def heeds(pid: int, number: signal.Signals) -> bool:
    """Whether it catches a signal: before, it would end of it without a word."""
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGKILL, id="kill"),
        pytest.param(signal.SIGTERM, id="term", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("what", ["stand-in", "worker"])
def test_a_helper_that_is_killed_leaves_nothing(with_disk: Path, what: str, number: signal.Signals):
    with nothing_left_over():
        read_end, write_end = os.pipe()
        restore = Popen(["pyrestore", "-"], stdin=read_end, stderr=subprocess.PIPE, text=True)
        os.close(read_end)
        os.write(write_end, with_disk.read_bytes()[: 1 << 16])
        deadline = time.monotonic() + 60
        while "stand-in" not in (helper := helper_of(restore.pid)) or not heeds(
            helper["worker"], signal.SIGTERM
        ):
            assert time.monotonic() < deadline, "no helper was started"
            time.sleep(0.1)
        os.kill(helper[what], number)
        _, said = restore.communicate(timeout=120)
        os.close(write_end)
        assert restore.returncode == 6, said
        assert "no domain was left" in said
        for pid in helper.values():
            assert not Path(f"/proc/{pid}").exists()


def test_ctrl_c_while_libxl_restores_leaves_nothing(with_disk: Path):
    with nothing_left_over():
        read_end, write_end = os.pipe()
        restore = Popen(
            ["pyrestore", "-"], stdin=read_end, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        os.close(read_end)
        os.write(write_end, with_disk.read_bytes()[: 1 << 16])
        deadline = time.monotonic() + 60
        while domid_of("pvh-disk") is None and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(restore.pid, signal.SIGINT)  # as a terminal does it: the helper, too
        _, said = restore.communicate(timeout=120)
        os.close(write_end)
        assert restore.returncode == 130, said


def test_a_configuration_of_a_newer_libxl_is_told(with_disk: Path, images: Path):
    """A kind of value that this libxl does not know; keys that it does not know it passes over itself."""
    more = {"on_crash": "write-a-letter"}
    with_config(with_disk, images / "newer.img", name="newer", uuid=OTHER_UUID, more=more)
    with nothing_left_over():
        said = run("pyrestore", str(images / "newer.img"))
    assert said.returncode == 4, said.stderr
    assert "libxl does not understand the image's configuration" in said.stderr
    assert "no changes were made" in said.stderr


def test_a_cpu_that_this_host_cannot_give_is_named_also_through_a_pipe(with_disk: Path, images: Path):
    import numpy as np

    from saverestore.guest.x86.cpu_features import LEAF
    from saverestore.stream.layout import RecordType

    data = bytearray(with_disk.read_bytes())
    at = next(
        at
        for at in range(len(data) - 8)
        if data[at : at + 4] == int(RecordType.X86_CPUID_POLICY).to_bytes(4, "little")
        and 0 < int.from_bytes(data[at + 4 : at + 8], "little") < 8192
        and int.from_bytes(data[at + 4 : at + 8], "little") % LEAF.itemsize == 0
    )
    count = int.from_bytes(data[at + 4 : at + 8], "little") // LEAF.itemsize
    leaves = np.frombuffer(memoryview(data)[at + 8 :], dtype=LEAF, count=count)
    leaves["ebx"][leaves["leaf"] == 7] |= 1 << 16  # AVX512F, which the emulated processor has not
    (images / "cpu.img").write_bytes(data)
    del leaves
    with nothing_left_over():
        said = run("pyrestore", str(images / "cpu.img"))
        assert said.returncode == 4, said.stderr
        assert "AVX512F (CPUID 0x7, EBX bit 16)" in said.stderr
        assert "creating" not in said.stderr
        with (images / "cpu.img").open("rb") as image:
            said = run("pyrestore", "-", stdin=image)
        assert said.returncode == 4, said.stderr
        assert "AVX512F" in said.stderr


def test_after_all_that_the_image_still_restores(with_disk: Path):
    guest = Guest("pvh-disk", "pvh", 1)
    before = guest.state()
    must("pyrestore", str(with_disk))
    guest.goes_on(before)
    guest.destroy()


# ---- HVM: the device model ---------------------------------------------------------------------------


@pytest.mark.slow
@hvm
def test_a_dry_run_says_what_would_be_done_and_does_nothing(guest: Guest, images: Path):
    before = guest.state()
    told = must("pysave", "--dry-run", "--live", guest.name, str(images / "a.img"))
    assert "HVM, 1 vCPU" in told
    assert "log-dirty" in told
    assert "no problems found" in told
    assert list(images.iterdir()) == []
    guest.goes_on(before)


@pytest.mark.slow
@hvm
@pytest.mark.parametrize("moment", ["round 0", "suspending", "last round"])
def test_ctrl_c_in_each_phase_leaves_a_running_guest_and_device_model(
    guest: Guest, images: Path, moment: str
):
    before = guest.state()
    save = Command("pysave", "--live", guest.name, str(images / "a.img"))
    save.wait_for(moment)
    save.send(signal.SIGINT)
    assert save.finish() == 130, save.said
    assert list(images.iterdir()) == []
    guest.goes_on(before)
    assert qemu_runs(guest)


def qemu_runs(guest: Guest) -> bool:
    from saverestore.toolstack.device_model import RUN_DIR, Qmp

    def connected() -> socket.socket:
        found = socket.socket(socket.AF_UNIX)
        found.connect(str(RUN_DIR / f"qmp-libxl-{guest.domid}"))
        return found

    with Qmp(connected, guest.domid, timeout_s=30.0) as qmp:
        return bool(qmp.command("query-status")["running"])


@pytest.mark.slow
@hvm
def test_a_device_model_that_does_not_answer_is_told_and_the_guest_goes_on(guest: Guest, images: Path):
    before = guest.state()
    os.kill(device_model_of(guest), signal.SIGSTOP)
    try:
        said = run("pysave", guest.name, str(images / "a.img"))
        assert said.returncode == 3, said.stderr
        assert "device model" in said.stderr
        assert "within" in said.stderr
        no_partial_files(images)
    finally:
        os.kill(device_model_of(guest), signal.SIGCONT)
    guest.goes_on(before)


@hvm
def test_a_killed_save_leaves_a_guest_and_device_model_that_recover_puts_right(guest: Guest, images: Path):
    before = guest.state()
    save = Command("pysave", guest.name, str(images / "a.img"))
    save.wait_for("last round")
    save.send(signal.SIGKILL)
    save.finish()
    assert "s" in state_of(guest.name)
    said = run("pysave", "--recover", guest.name)
    assert said.returncode == 0, said.stderr
    assert "device model had stopped and is running again" in said.stderr
    guest.goes_on(before)
    assert qemu_runs(guest)


@pytest.mark.slow
def test_a_device_model_that_is_gone_is_told_before_anything_is_done(images: Path):
    guest = Guest("hvm-without-qemu", "hvm", 1)
    guest.destroy()
    try:
        guest.create(pages=FEW_PAGES, rate=SLOW_RATE)
        domid = guest.domid
        os.kill(device_model_of(guest), signal.SIGKILL)
        said = run("pysave", guest.name, str(images / "a.img"))
        assert said.returncode == 3, said.stderr
        assert "cannot be reached" in said.stderr
        assert list(images.iterdir()) == []
        assert guest.domid == domid
    finally:
        guest.destroy()
