"""Situations that people met elsewhere: what is said is true, nothing kills a guest, images restore.

Each test is one recipe. Where a small program plays somebody else, it is here as text.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from launcher import Popen
from xen_lab import Command, Guest, domid_of, handles, must, run, state_of

slow = pytest.mark.slow

MINI_FUSE = Path(__file__).parents[1] / "unit" / "transport" / "mini_fuse.py"
NO_BALLOON = "initcall_blacklist=balloon_init"

ACKNOWLEDGE = """
import subprocess, sys, time
control = f"/local/domain/{sys.argv[1]}/control/shutdown"
print("ready", flush=True)
while subprocess.run(["xenstore-read", control], capture_output=True, text=True).stdout.strip() != "suspend":
    time.sleep(0.02)
subprocess.run(["xenstore-write", control, ""])
print("acknowledged", flush=True)
"""

HOLD_PAGE = """
import sys, time
import numpy as np
import pyxc
memory = pyxc.ForeignMemory()
mapping = memory.map(int(sys.argv[1]), np.array([0x1000], dtype=np.uint64))
print("mapped", flush=True)
time.sleep(600)
"""

HOLD_QMP = """
import socket, sys, time
other = socket.socket(socket.AF_UNIX)
other.connect(f"/run/xen/qmp-libxl-{sys.argv[1]}")
other.recv(100)
print("connected", flush=True)
time.sleep(600)
"""


@contextmanager
def somebody(program: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Another program, which has said its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def own(name: str, kind: str, **how: object) -> Iterator[Guest]:
    """A guest of this test alone."""
    guest = Guest(name, kind, 1, memory_mib=int(str(how.pop("memory_mib", 0))))
    guest.destroy()
    guest.create(**how)  # type: ignore[arg-type]
    try:
        yield guest
    finally:
        guest.destroy()


def once(text: str, *facts: str) -> None:
    for fact in facts:
        assert text.count(fact) == 1, f"{fact!r} is not there once: {text}"


# ---- 1: memory of an image and of a domain -------------------------------------------------------


@slow
@pytest.mark.parametrize("kind", ["pv", "pvh"])
@pytest.mark.parametrize("toolstack", ["auto", "bare"])
def test_a_guest_that_gave_no_memory_back_is_restored(images: Path, kind: str, toolstack: str):
    with own(f"g1-{kind}", kind, memory_mib=256, more=("--extra", NO_BALLOON)) as guest:
        before = guest.state()
        must("xl", "mem-set", guest.name, "128")
        must("pysave", guest.name, str(images / "a.img"))
        must("pyrestore", "--toolstack", toolstack, str(images / "a.img"))
        guest.goes_on(before)
        held = handles().xen.domain(guest.domid)
        assert held.tot_pages > 250 << 8
        assert held.max_pages <= (128 << 8) + 256  # asked again for what it did not give


@slow
@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_a_guest_that_grows_and_shrinks_while_it_is_saved_live_is_restored(images: Path, kind: str):
    with own(f"g2-{kind}", kind, memory_mib=256, rate=2000) as guest:
        before = guest.state()
        save = Command("pysave", "--live", "--max-rounds", "8", guest.name, str(images / "a.img"))
        for round_number, mib in ((0, "160"), (1, "256"), (2, "192")):
            save.wait_for(f"round {round_number}")
            must("xl", "mem-set", guest.name, mib)
        assert save.finish() == 0, save.said
        must("pyrestore", str(images / "a.img"))
        guest.goes_on(before)


@slow
def test_a_guest_that_has_more_than_its_configuration_says_is_restored(images: Path):
    with own("g3", "pv", memory_mib=128) as guest:
        before = guest.state()
        must("xl", "mem-max", guest.name, "256")
        must("pysave", guest.name, str(images / "a.img"))
        must("pyrestore", str(images / "a.img"))
        guest.goes_on(before)


ON_DEMAND = ("--maxmem", "384", "--extra", NO_BALLOON)


@slow
@pytest.mark.parametrize("kind", ["pvh", "hvm"])
@pytest.mark.parametrize("how", [("-c",), ("--live", "-c"), (), ("--dry-run",)], ids=" ".join)
def test_a_guest_whose_memory_is_owed_to_it_is_refused_and_lives(
    images: Path, kind: str, how: tuple[str, ...]
):
    with own(f"g4-{kind}", kind, memory_mib=160, pages=0, rate=1, more=ON_DEMAND) as guest:
        before = guest.state()
        said = run("pysave", *how, guest.name, str(images / "a.img"))
        assert said.returncode == 3, said.stderr
        once(said.stdout + said.stderr, "populated on demand", f"'xl mem-set {guest.domid} 384'")
        guest.goes_on(before)
        assert "out of PoD memory" not in must("xl", "dmesg")


SCREEN = ("--config", 'vga="stdvga"')


@slow
@pytest.mark.parametrize(
    ("kind", "more"),
    [("pvh", ()), ("hvm", ()), ("hvm", SCREEN)],
    ids=["pvh", "hvm", "hvm with video memory"],
)
def test_once_it_has_all_of_its_memory_as_advised_it_is_saved_and_restored(
    images: Path, kind: str, more: tuple[str, ...]
):
    with own("g5", kind, memory_mib=160, pages=0, rate=1, more=(*ON_DEMAND, *more)) as guest:
        before = guest.state()
        said = run("pysave", "--dry-run", guest.name, str(images / "a.img"))
        advice = re.search(r"'xl mem-set (\d+) (\d+)'", said.stdout + said.stderr)
        assert advice is not None, said.stderr
        assert (int(advice[2]) > 384) == bool(more)
        must("xl", "mem-set", *advice.groups())
        must("pysave", "--live", "-c", guest.name, str(images / "a.img"))
        guest.goes_on(before)
        must("pysave", "--overwrite", guest.name, str(images / "a.img"))
        must("pyrestore", str(images / "a.img"))
        guest.goes_on(before)


# ---- 2: the account of a domain ------------------------------------------------------------------


@slow
def test_a_guest_that_crashes_as_it_is_asked_is_told_as_crashed_or_gone(images: Path):
    with own("c1", "pvh", more=("--extra", "sysrq_always_enabled")) as guest:
        domid = guest.domid
        # The guest may not write there: it never answers.
        must("xenstore-chmod", f"/local/domain/{domid}/control/shutdown", "n0")
        report = images / "r.json"
        save = Command("pysave", "--report", str(report), guest.name, str(images / "a.img"))
        save.wait_for("suspending")
        must("xl", "sysrq", guest.name, "c")
        assert save.finish() == 3, save.said
        once(save.said, "crashed", "no image was left")
        assert "is running" not in save.said
        assert "--recover" not in save.said
        assert json.loads(report.read_text())["domain_state"].split(":")[0] in ("crashed", "gone")


@slow
def test_a_guest_that_is_destroyed_as_it_is_asked_is_told_as_that(images: Path):
    with own("c2", "pvh") as guest:
        must("xenstore-chmod", f"/local/domain/{guest.domid}/control/shutdown", "n0")
        report = images / "r.json"
        save = Command("pysave", "--report", str(report), guest.name, str(images / "a.img"))
        save.wait_for("suspending")
        must("xl", "destroy", guest.name)
        assert save.finish() == 3, save.said
        assert "destroyed" in save.said
        assert "--recover" not in save.said
        assert json.loads(report.read_text())["domain_state"].split(":")[0] in (
            "gone",
            "being destroyed by another program",
        )


@slow
@pytest.mark.parametrize(("at_s", "exit_code"), [(None, 3), (2, 130)], ids=["to the limit", "Ctrl-C"])
def test_a_guest_that_acknowledges_and_never_suspends_takes_one_limit(
    images: Path, at_s: int | None, exit_code: int
):
    with own("w1", "pvh") as guest:
        before = guest.state()
        must("xenstore-chmod", f"/local/domain/{guest.domid}/control/shutdown", "n0")
        with somebody(ACKNOWLEDGE, str(guest.domid)) as other:
            save = Command("pysave", "--suspend-timeout", "5", guest.name, str(images / "a.img"))
            assert other.stdout is not None
            assert other.stdout.readline() == "acknowledged\n"
            began = time.monotonic()
            if at_s is not None:
                time.sleep(at_s)  # not for a state: the moment is what is tried
                save.send(signal.SIGINT)
            assert save.finish() == exit_code, save.said
            assert time.monotonic() - began < 5 + 2 + 15  # under emulation
        once(save.said, "may still suspend")
        assert "resumes it then" in save.said
        guest.goes_on(before)


@slow
def test_a_guest_too_slow_to_suspend_in_time_runs_on_whatever_it_has_made_of_the_request(images: Path):
    """With next to no processor time it answers late, suspends late, or both: whoever was left behind resumes it."""
    with own("w2", "pvh") as guest:
        before = guest.state()
        must("xl", "sched-credit2", "-d", guest.name, "-c", "2")
        said = run("pysave", "--suspend-timeout", "1", guest.name, str(images / "a.img"))
        must("xl", "sched-credit2", "-d", guest.name, "-c", "0")
        assert said.returncode in (0, 3), said.stderr
        if said.returncode == 0:
            must("pyrestore", str(images / "a.img"))  # it was fast enough
        guest.goes_on(before)


@slow
def test_a_device_model_that_another_program_holds_is_told_before_the_guest_stops(images: Path):
    with own("q1", "hvm") as guest:
        before = guest.state()
        save = Command("pysave", "--live", guest.name, str(images / "a.img"))
        save.wait_for("round 0")
        with somebody(HOLD_QMP, str(guest.domid)):
            assert save.finish() == 3, save.said
        once(save.said, "another program is connected to it")
        assert "could not be resumed" not in save.said
        guest.goes_on(before)


# ---- 3: file systems -----------------------------------------------------------------------------


@slow
@pytest.mark.parametrize(
    "oddities",
    [["nlink0"], ["no-statfs"], ["no-link", "no-fsync", "no-truncate", "short-writes"]],
    ids=" ".join,
)
def test_an_image_on_a_fuse_file_system_with_odd_answers_is_restored(images: Path, oddities: list[str]):
    run("modprobe", "fuse")
    if not Path("/dev/fuse").exists():
        pytest.skip("this dom0 has no FUSE")
    folder = images / "fuse"
    folder.mkdir()
    served = f"import runpy; runpy.run_path({str(MINI_FUSE)!r}, run_name='__main__')"
    # A small one: each write goes through Python, emulated, and a short one is a third of it.
    with (
        own("fuse", "pvh", memory_mib=96, pages=512, rate=100) as guest,
        somebody(served, str(folder), *oddities),
    ):
        before = guest.state()
        try:
            must("pysave", guest.name, str(folder / "a.img"))
            assert not list(folder.glob(".*"))
            must("pyrestore", str(folder / "a.img"))
        finally:
            run("umount", "-l", str(folder))
        guest.goes_on(before)


@slow
@pytest.mark.parametrize("kind", ["ramfs", "tmpfs"])
@pytest.mark.parametrize("guest", [("pvh", 1)], indirect=True, ids=["pvh"])
def test_an_image_on_a_file_system_without_an_account_of_its_room_is_restored(
    guest: Guest, images: Path, kind: str
):
    before = guest.state()
    folder = images / kind
    folder.mkdir()
    must("mount", "-t", kind, *(["-o", "size=0"] if kind == "tmpfs" else []), kind, str(folder))
    try:
        name = "ü" * 127  # 254 bytes
        must("pysave", guest.name, str(folder / name))
        must("pyrestore", str(folder / name))
    finally:
        must("umount", str(folder))
    guest.goes_on(before)


# ---- 4: doubles ----------------------------------------------------------------------------------


@slow
def test_a_domain_that_somebody_keeps_from_dying_is_no_namesake(images: Path):
    with own("e1", "pvh") as guest:
        before, domid = guest.state(), guest.domid
        with somebody(HOLD_PAGE, str(domid)):
            must("pysave", guest.name, str(images / "a.img"))
            assert handles().xen.domain(domid).dying
            must("pyrestore", str(images / "a.img"))
            guest.goes_on(before)
            said = run("pysave", str(domid), str(images / "b.img"))
            assert "is being destroyed" in said.stderr
            assert f"{domid} (domain {domid})" not in said.stderr


@pytest.mark.parametrize("toolstack", ["auto", pytest.param("bare", marks=slow)])
def test_of_two_restores_at_once_one_makes_the_domain(images: Path, toolstack: str):
    with own("f1", "pvh") as guest:
        before = guest.state()
        must("pysave", guest.name, str(images / "a.img"))
        argv = ("pyrestore", "--toolstack", toolstack, str(images / "a.img"))
        both = [Command(*argv, stdout=subprocess.DEVNULL) for _ in range(2)]
        codes = sorted(one.finish() for one in both)
        assert codes == [0, 3], [one.said for one in both]
        loser = next(one for one in both if one.process.returncode == 3)
        assert "is being restored by process" in loser.said or "already" in loser.said
        guest.goes_on(before)
        uuid = handles().xen.domain(guest.domid).uuid
        assert handles().store.read(f"/vm/{uuid}/name") == guest.name
        assert [info.domid for info in handles().xen.domains() if info.uuid == uuid] == [guest.domid]
        watchers = must("pgrep", "-fc", f"pysave-watch.* {guest.name}$").strip()
        assert watchers == "1"


@slow
def test_a_restore_under_a_name_that_is_being_restored_is_refused(images: Path):
    with own("f2", "pvh") as guest:
        must("pysave", guest.name, str(images / "a.img"))
        first = Popen(
            ["pyrestore", str(images / "a.img")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        second = run("pyrestore", "--name", guest.name, str(images / "a.img"))
        first.communicate()
        assert sorted((first.returncode, second.returncode)) == [0, 3]


# ---- 5: state outside memory ---------------------------------------------------------------------


@slow
@pytest.mark.parametrize("how", [(), ("--compress", "zstd")], ids=["plain", "zstd"])
def test_a_restore_over_a_disk_that_was_used_since_is_refused_by_name(images: Path, how: tuple[str, ...]):
    with own("d1", "pvh", pages=512, rate=200, more=("--disk",)) as guest:
        before = guest.state()
        must("pysave", *how, guest.name, str(images / "a.img"))
        assert f"/lab/{guest.name}.disk" in must("pyimage", "info", str(images / "a.img"))
        must("pyrestore", str(images / "a.img"))
        guest.goes_on(before)
        must("sync")
        guest.destroy()
        said = run("pyrestore", str(images / "a.img"))
        assert said.returncode == 3, said.stderr
        once(said.stderr, f"/lab/{guest.name}.disk")
        assert "was written at" in said.stderr
        assert domid_of(guest.name) is None
        must("pyrestore", "--force", str(images / "a.img"))


@slow
def test_a_snapshot_taken_while_it_is_suspended_goes_with_the_image(images: Path):
    with own("d2", "pvh", pages=512, rate=200, more=("--disk",)) as guest:
        before, disk = guest.state(), f"/lab/{guest.name}.disk"
        command = f"sync; cp --preserve=timestamps {disk} {images}/disk.snapshot"
        must("pysave", "-c", "--while-suspended", command, guest.name, str(images / "a.img"))
        guest.goes_on(before)
        guest.destroy()
        assert run("pyrestore", str(images / "a.img")).returncode == 3
        must("cp", "--preserve=timestamps", f"{images}/disk.snapshot", disk)
        must("pyrestore", str(images / "a.img"))


@slow
@pytest.mark.parametrize("guest", [("pvh", 1)], indirect=True, ids=["pvh"])
def test_a_command_that_fails_while_it_is_suspended_resumes_the_guest(guest: Guest, images: Path):
    before = guest.state()
    said = run("pysave", "--while-suspended", "exit 3", guest.name, str(images / "a.img"))
    assert said.returncode == 3
    assert "failed (exit 3)" in said.stderr
    assert list(images.iterdir()) == []
    guest.goes_on(before)


VNODES = (
    '["pnode=0","size=64","vcpus=0","vdistances=10,20"],["pnode=0","size=64","vcpus=1","vdistances=20,10"]'
)
VNUMA = f"vnuma=[{VNODES}]"


@slow
def test_a_guest_with_virtual_numa_nodes_is_refused_by_name(images: Path):
    guest = Guest("v1", "hvm", 2, memory_mib=128)
    guest.destroy()
    try:
        guest.create(more=("--config", VNUMA))
        before = guest.state()
        said = run("pysave", guest.name, str(images / "a.img"))
        assert said.returncode == 3, said.stderr
        once(said.stderr, "vnuma")
        assert state_of(guest.name) != "gone"
        guest.goes_on(before)
    finally:
        guest.destroy()
