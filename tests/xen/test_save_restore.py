"""Saving and restoring guests in all the ways there are, beyond the first row; the guest itself is the judge."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scenarios import (
    a_saved_guest_goes_on,
    copy_goes_on,
    live_by_digests,
    live_by_log_dirty,
    stock_xl_restores_ours,
    we_restore_stock_xls,
)
from xen_lab import LESS_MEMORY_MIB, Command, Guest, must, run, state_of

slow = pytest.mark.slow
pv_and_slowly_pvh = pytest.mark.parametrize(
    "guest", [pytest.param(("pv", 1), id="pv"), pytest.param(("pvh", 1), id="pvh", marks=slow)], indirect=True
)
VERIFIER = "/usr/lib/xen-{0}/bin/verify-stream-v2"


@slow
@pytest.mark.parametrize("guest", [("pv", 1)], indirect=True, ids=["pv"])
def test_restoring_straight_from_a_save_is_refused_as_the_original_still_exists(guest: Guest):
    before = guest.state()
    read_end, write_end = os.pipe()
    save = Command("pysave", guest.name, "-", stdout=write_end)
    os.close(write_end)
    # The original is destroyed only after the whole image went through, so both would have one UUID for a moment.
    restore = run("pyrestore", "--name", f"{guest.name}-new", "-", stdin=read_end)
    os.close(read_end)
    assert restore.returncode == 3
    assert "same UUID" in restore.stderr
    assert save.finish() == 5, save.said
    guest.goes_on(before)


@slow
@pytest.mark.parametrize("guest", [("pvh", 1)], indirect=True, ids=["pvh"])
def test_an_image_goes_through_a_compressing_pipe(guest: Guest, images: Path):
    before = guest.state()
    must("bash", "-o", "pipefail", "-c", f"pysave -q {guest.name} - | zstd -1 -q > {images}/a.zst")
    must("bash", "-o", "pipefail", "-c", f"zstd -dc {images}/a.zst | pyrestore -q -")
    guest.goes_on(before)


@pv_and_slowly_pvh
def test_what_we_restored_stock_xl_saves_and_restores(guest: Guest, images: Path):
    before = guest.state()
    must("pysave", guest.name, str(images / "a.img"))
    must("pyrestore", str(images / "a.img"))
    must("xl", "save", guest.name, str(images / "b.img"))
    must("xl", "restore", str(images / "b.img"))
    guest.goes_on(before)


@pytest.mark.parametrize("guest", [("pv", 1)], indirect=True, ids=["pv"])
def test_log_dirty_of_a_pv_guest_without_shadow_paging_is_refused_with_the_reason(guest: Guest):
    before = guest.state()
    said = run("pysave", "--live", "-c", "--dirty", "log", guest.name, "/dev/null")
    assert said.returncode == 3
    assert "shadow paging" in said.stderr
    guest.goes_on(before)


@pytest.mark.parametrize("guest", [("pvh", 1)], indirect=True, ids=["pvh"])
def test_left_paused_it_waits_and_goes_on_when_unpaused(guest: Guest, images: Path):
    before = guest.state()
    must("pysave", "-p", guest.name, str(images / "a.img"))
    assert "p" in state_of(guest.name)
    must("xl", "unpause", guest.name)
    guest.goes_on(before)


@pv_and_slowly_pvh
def test_restored_paused_it_waits_under_its_new_name_and_then_goes_on(guest: Guest, images: Path):
    before = guest.state()
    copy = Guest("other", guest.kind, guest.vcpus)
    copy.log.unlink(missing_ok=True)
    must("pysave", guest.name, str(images / "a.img"))
    must("pyrestore", "--paused", "--name", copy.name, str(images / "a.img"))
    assert "p" in state_of(copy.name)
    must("xl", "unpause", copy.name)
    copy_goes_on(copy, before)
    copy.destroy()
    must("pyrestore", str(images / "a.img"))
    guest.goes_on(before)


@pytest.mark.parametrize("guest", [("pv", 1)], indirect=True, ids=["pv"])
def test_stock_verifier_accepts_a_plain_image_of_a_pv_guest(guest: Guest, images: Path, variant: str):
    must("pysave", "--plain", "-c", guest.name, str(images / "a.img"))
    version = variant.split("-")[0]
    done = subprocess.run(
        [VERIFIER.format(version), "-f", "xl", "-i", str(images / "a.img")],
        env={"PYTHONPATH": f"/usr/lib/xen-{version}/lib/python", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("guest", [("pv", 1)], indirect=True, ids=["pv"])
def test_an_image_says_what_it_holds(guest: Guest, images: Path):
    must("pysave", "-c", guest.name, str(images / "a.img"))
    found = json.loads(must("pyimage", "info", "--json", str(images / "a.img")))
    assert found["error"] is None
    assert found["provenance"]["domain"]["name"] == guest.name
    assert must("pyimage", "verify", str(images / "a.img")).count("whole") == 1


@pytest.mark.parametrize("guest", [("pvh", 1)], indirect=True, ids=["pvh"])
def test_xl_sees_a_restored_domain_as_one_of_its_own(guest: Guest, images: Path):
    must("pysave", guest.name, str(images / "a.img"))
    domid = int(must("pyrestore", str(images / "a.img")))
    assert f"{guest.name} " in must("xl", "list")
    config = json.loads(must("xl", "list", "-l", guest.name))
    assert config[0]["config"]["c_info"]["name"] == guest.name
    assert must("xenstore-read", f"/local/domain/{domid}/console/tty").startswith("/dev/pts/")
    vcpus = must("xl", "vcpu-list", guest.name).splitlines()[1:]
    assert len(vcpus) == guest.vcpus


@pv_and_slowly_pvh
def test_a_guest_that_gave_memory_back_keeps_what_it_has(guest: Guest, images: Path):
    before = guest.state()
    must("xl", "mem-set", guest.name, str(LESS_MEMORY_MIB))
    try:
        must("pysave", guest.name, str(images / "a.img"))
        must("pyrestore", str(images / "a.img"))
        guest.goes_on(before)
    finally:
        run("xl", "mem-set", guest.name, str(guest.memory_mib))
    guest.goes_on(before)


@pytest.mark.parametrize("guest", [("pvh", 1)], indirect=True, ids=["pvh"])
def test_a_guest_that_gave_memory_back_and_got_it_again_keeps_all_of_it(guest: Guest, images: Path):
    before = guest.state()
    must("xl", "mem-set", guest.name, str(LESS_MEMORY_MIB))
    guest.next_lines(10)  # two seconds: time for its balloon
    must("xl", "mem-set", guest.name, str(guest.memory_mib))
    guest.next_lines(10)  # two seconds: time for its balloon
    a_saved_guest_goes_on(guest, images)
    guest.goes_on(before)


@slow
@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_a_guest_with_fewer_vcpus_online_than_it_may_have_comes_back_with_as_many(kind: str, images: Path):
    guest = Guest(f"{kind}-2of4", kind, 2)
    guest.destroy()
    try:
        guest.create(rate=200, pages=512, more=("--maxvcpus", "4"))
        a_saved_guest_goes_on(guest, images)
        assert [vcpu_is_online(line) for line in vcpu_lines(guest)] == [True, True, False, False]
    finally:
        guest.destroy()


def vcpu_lines(guest: Guest) -> list[str]:
    return must("xl", "vcpu-list", guest.name).splitlines()[1:]


def vcpu_is_online(line: str) -> bool:
    """By the state column of `xl vcpu-list`: "--p" and no processor for one that is not."""
    return line.split()[3] != "-"


@pytest.mark.parametrize("guest", [("pv", 1)], indirect=True, ids=["pv"])
def test_a_guest_whose_p2m_is_a_tree_goes_on(guest: Guest, images: Path):
    """Linux keeps the tree, too, once it has been restored (SIF_VIRT_P2M_4TOOLS is gone); the list is taken away."""
    from pyxc import ForeignMemory, Xen
    from saverestore.guest.x86.layout import SHARED_INFO

    a_saved_guest_goes_on(guest, images)
    with Xen() as xen, ForeignMemory() as memory:
        info = xen.domain(guest.domid)
        frame = np.array([info.shared_info_frame], dtype=np.uint64)
        with memory.map(guest.domid, frame, writable=True) as mapping:
            arch = mapping.pages.reshape(-1).view(SHARED_INFO)[0]["arch"]
            assert int(arch["frame_list_list"]) not in (0, 0xFFFF_FFFF_FFFF_FFFF)
            arch["p2m_cr3"] = 0
            del arch
    (images / "a.img").unlink()
    a_saved_guest_goes_on(guest, images)


@pytest.mark.slow
def test_a_guest_of_2_gib_keeps_its_large_pages(images: Path):
    guest = Guest("pvh-large", "pvh", 1, 2048)
    guest.destroy()
    image = Path("/root/large.img")  # it would not fit into dom0's memory
    try:
        guest.create(rate=200, pages=512)
        before = guest.state()
        must("pysave", guest.name, str(image), timeout_s=900)
        said = run("pyrestore", "-vv", "--toolstack", "bare", str(image), timeout_s=900)
        assert said.returncode == 0, said.stderr
        found = re.search(
            r"memory: (\d+) pages of 2 MiB, (\d+) of 4 KiB; Xen had no 2 MiB together for (\d+)", said.stderr
        )
        assert found is not None, said.stderr
        large, small, refused = map(int, found.groups())
        print(found[0])
        assert large + refused >= 1020, "of 1024"
        assert large >= 1000, f"Xen had no 2 MiB together for {refused}"
        assert large * 512 + small >= 2048 << 8
        guest.goes_on(before)
    finally:
        guest.destroy()
        image.unlink(missing_ok=True)


@slow
@pytest.mark.parametrize("guest", [("pvh", 2), ("pv", 2)], indirect=True, ids=["pvh", "pv"])
def test_images_of_guests_with_two_vcpus_go_both_ways_between_xl_and_us(guest: Guest, images: Path):
    stock_xl_restores_ours(guest, images)
    (images / "a.img").unlink()
    we_restore_stock_xls(guest, images)


@slow
@pytest.mark.parametrize("busy_guest", [("pv", 2), ("pvh", 2)], indirect=True, ids=["pv", "pvh"])
def test_a_guest_with_two_vcpus_is_saved_live_by_digests(busy_guest: Guest, images: Path):
    live_by_digests(busy_guest, images)


@pytest.mark.parametrize("busy_guest", [("pvh", 2)], indirect=True, ids=["pvh"])
def test_a_guest_with_two_vcpus_is_saved_live_by_log_dirty(busy_guest: Guest, images: Path):
    live_by_log_dirty(busy_guest, images)


@pytest.mark.slow  # more vCPUs than processors
@pytest.mark.parametrize("guest", [("pv", 4), ("pvh", 4)], indirect=True, ids=["pv", "pvh"])
def test_a_guest_with_four_vcpus_goes_on(guest: Guest, images: Path):
    a_saved_guest_goes_on(guest, images)


@pytest.mark.parametrize(
    "busy_guest",
    [pytest.param(("pv", 1), id="pv", marks=slow), pytest.param(("pvh", 1), id="pvh")],
    indirect=True,
)
def test_a_guest_that_gives_memory_back_while_it_is_saved_live_goes_on(busy_guest: Guest, images: Path):
    before = busy_guest.state()
    save = Command("pysave", "--live", "-c", "--dirty", "digest", busy_guest.name, str(images / "a.img"))
    save.wait_for("round 1")
    must("xl", "mem-set", busy_guest.name, str(LESS_MEMORY_MIB))
    assert save.finish() == 0, save.said
    busy_guest.goes_on(before)
    busy_guest.destroy()
    must("pyrestore", str(images / "a.img"))
    copy_goes_on(busy_guest, before)
    must("xl", "mem-set", busy_guest.name, str(busy_guest.memory_mib))
    busy_guest.goes_on(busy_guest.state())


@pytest.mark.parametrize("guest", [("pv", 1)], indirect=True, ids=["pv"])
def test_a_guest_that_is_resumed_keeps_its_vector_registers(guest: Guest):
    """libxc's own way of resuming resets what lies beyond the SSE registers: the upper halves of AVX ones."""
    from pyxc import cpu
    from saverestore.guest.common.handles import open_handles
    from saverestore.guest.common.suspend import Suspender

    avx = 1 << 2
    xstate_bv = 16 + 512  # behind Xen's own header of two words and the legacy area
    before = guest.state()
    with open_handles() as handles:
        xen, domid = handles.xen, guest.domid
        suspender = Suspender(xen, handles.store, domid)
        suspender.suspend()
        xen.pause(domid)  # so that nothing runs between resuming and looking
        try:
            saved = cpu.vcpu_xsave(xen, domid, 0)
            with_avx = bytearray(saved)
            with_avx[0] |= avx  # xcr0
            with_avx[8] |= avx  # xcr0_accum
            with_avx[xstate_bv] |= avx
            with_avx[16 + 576 : 16 + 576 + 256] = bytes(range(256))
            cpu.set_vcpu_xsave(xen, domid, 0, bytes(with_avx))
            suspender.resume()
            resumed = cpu.vcpu_xsave(xen, domid, 0)
            # libxc alone leaves the bytes but drops this bit (7 becomes 3): the processor then loads zeroes.
            assert resumed[xstate_bv] & avx
            assert resumed[16 + 576 : 16 + 576 + 256] == bytes(range(256))
            cpu.set_vcpu_xsave(xen, domid, 0, saved)
        finally:
            suspender.resume()
            xen.unpause(domid)
    guest.goes_on(before)
