"""Images on file systems that need Debian's kernel: NFS by loopback, quotas, vfat, overlayfs. Run in the lab's dom0.

What `NewFile` does on them is in tests/unit/transport, which is run here as a whole, with nothing skipped. Behind
that, real guests on NFS.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from launcher import Popen
from xen_lab import Guest, must, run

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
UNIT = [
    TESTS / "unit/transport" / f"test_{name}.py" for name in ("nfs", "odd_file_systems", "real_file_systems")
]
MODULES = ("loop", "fuse", "overlay", "vfat", "nls_utf8", "quota_v2", "btrfs", "xfs", "nfs", "nfsd")
SOMEBODY = 1234


@pytest.fixture(autouse=True)
def modules() -> None:
    for module in MODULES:
        must("modprobe", module)


@pytest.mark.parametrize("path", UNIT, ids=lambda path: path.stem)
def test_files_are_whole_or_not_there_on_the_file_systems_of_debian(images: Path, path: Path):
    # In namespaces of its own, as it starts servers; nothing that it mounts stays.
    argv = [
        "unshare",
        "--mount",
        "--net",
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rs",
        "-p",
        "no:cacheprovider",
    ]
    environment = os.environ | {"PYSAVE_REQUIRE_FILE_SYSTEMS": "1", "PYSAVE_TEST_NFS": "1"}
    environment.pop("PYSAVE_REQUIRE_XEN", None)
    with Popen(
        [*argv, f"--basetemp={images / 'tests'}", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=TESTS.parent,
    ) as process:
        try:
            said, _ = process.communicate(timeout=1800)
        except BaseException:
            process.kill()
            raise
    assert process.returncode == 0, said
    assert re.search(r"\d+ passed", said), said
    assert "skipped" not in said, said


@contextmanager
def mounted(folder: Path, *words: str) -> Iterator[Path]:
    folder.mkdir()
    must("mount", *words, str(folder))
    try:
        yield folder
    finally:
        must("umount", str(folder))


@pytest.fixture
def nfs(images: Path) -> Iterator[tuple[Path, Path]]:
    """A folder at the server, of 512 MiB, where somebody may have 4 MiB; and at its client. NFS 4.2."""
    disk = images / "disk"
    with ExitStack() as stack:
        with disk.open("wb") as file:
            file.truncate(512 << 20)
        must("mkfs.ext4", "-q", "-O", "quota", "-E", "quotatype=usrquota", str(disk))
        export = stack.enter_context(mounted(images / "export", "-o", "loop,usrquota", str(disk)))
        must("setquota", "-u", str(SOMEBODY), "4096", "4096", "0", "0", str(export))
        if not Path("/proc/fs/nfsd/threads").exists():
            must("mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
        for name in ("nfsv4gracetime", "nfsv4leasetime"):
            Path("/proc/fs/nfsd", name).write_text("10")
        Path("/proc/sys/fs/nfs/nlm_grace_period").write_text("1")
        must("ip", "link", "set", "lo", "up")
        mountd = subprocess.Popen(["rpc.mountd", "-F", "-N", "3"], stderr=subprocess.DEVNULL)
        stack.callback(mountd.wait)
        stack.callback(mountd.kill)
        must("rpc.nfsd", "-N", "3", "-V", "4.2", "4")
        stack.callback(run, "rpc.nfsd", "0")
        stack.callback(run, "exportfs", "-ua")
        share(export, "no_root_squash")
        Path("/proc/fs/nfsd/v4_end_grace").write_text("Y")
        options = "vers=4.2,soft,timeo=300"
        client = mounted(images / "client", "-t", "nfs", "-o", options, "127.0.0.1:/")
        yield export, stack.enter_context(client)


def share(export: Path, options: str) -> None:
    must("exportfs", "-o", f"rw,no_subtree_check,insecure,fsid=0,{options}", f"127.0.0.1:{export}")


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "lost+found")


@pytest.mark.parametrize("how", [(), ("--live",), ("--compress", "zstd")], ids=["plain", "live", "zstd"])
@pytest.mark.parametrize("guest", [("pvh", 1)], indirect=True, ids=["pvh"])
def test_an_image_on_nfs_is_restored(guest: Guest, nfs: tuple[Path, Path], how: tuple[str, ...]):
    export, folder = nfs
    before = guest.state()
    must("pysave", *how, guest.name, str(folder / "a.img"))
    assert left_in(export) == ["a.img"]
    must("pyrestore", str(folder / "a.img"))
    guest.goes_on(before)
    with (folder / "b.img").open("wb") as file:
        assert Popen(["pysave", *how, "-c", guest.name, "-"], stdout=file).wait(600) == 0
    guest.goes_on(before)
    must("pyimage", "verify", str(export / "b.img"))
    must("pysave", *how, "-c", "--overwrite", guest.name, str(folder / "a.img"))
    guest.goes_on(before)
    assert left_in(export) == ["a.img", "b.img"]


@pytest.mark.parametrize("how", [(), ("--live",), ("-c",)], ids=["plain", "live", "-c"])
@pytest.mark.parametrize("guest", [("pvh", 1)], indirect=True, ids=["pvh"])
def test_a_quota_that_a_server_of_nfs_tells_late_leaves_the_guest_running_and_no_image(
    guest: Guest, nfs: tuple[Path, Path], how: tuple[str, ...]
):
    """Its account of its room knows nothing of quotas."""
    export, folder = nfs
    os.chown(export, SOMEBODY, SOMEBODY)
    share(export, f"all_squash,anonuid={SOMEBODY},anongid={SOMEBODY}")
    must("exportfs", "-f")
    before = guest.state()
    said = run("pysave", *how, guest.name, str(folder / "a.img"))
    assert said.returncode == 5, said.stderr
    assert said.stderr.count("Disk quota exceeded") == 1, said.stderr
    assert "no image was left" in said.stderr
    guest.goes_on(before)
    deadline = time.monotonic() + 60
    while left_in(export):  # what was open is gone when the client has said so
        assert time.monotonic() < deadline
        time.sleep(0.5)
