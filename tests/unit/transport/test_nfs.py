"""Images on NFS: a server of this machine's kernel, reached by loopback.

It takes root, Debian's nfs-kernel-server, and namespaces of its own, so that no server of this machine is disturbed:

    PYSAVE_TEST_NFS=1 unshare --mount --net pytest tests/unit/transport/test_nfs.py

tests/xen/test_file_systems.py runs it so in the lab's dom0, where nothing may be skipped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from file_systems import called, content_of, disk, lacking, mounted, write

from saverestore.errors import ErrorName, Remedy, TransportError
from saverestore.kernels.zeros import zeros
from saverestore.operations.store import in_use, remove
from saverestore.transport.descriptor import Descriptor
from saverestore.transport.newfile import NewFile

DATA = b"image" * 1000
MIB = 1 << 20
SOMEBODY = 1234
MOUNTD_PORT = "20048"

pytestmark = pytest.mark.skipif(
    os.environ.get("PYSAVE_TEST_NFS") != "1", reason="starts an NFS server; see the head of the file"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What it keeps its state in. A module's, as a server's threads end late."""
    if (
        "nfsd" not in Path("/proc/filesystems").read_text()
        and subprocess.run(["modprobe", "nfsd"]).returncode
    ):
        lacking("no NFS server in this kernel")
    with ExitStack() as stack:
        for folder in ("/run", "/var/lib"):
            called("mount", "-t", "tmpfs", "tmpfs", folder)
            stack.callback(subprocess.run, ["umount", "-l", folder])
        for name in ("v4recovery", "rpc_pipefs", "sm"):
            Path("/var/lib/nfs", name).mkdir(parents=True)
        for name in ("etab", "rmtab"):
            Path("/var/lib/nfs", name).touch()
        called("mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
        Path("/proc/sys/fs/nfs/nlm_grace_period").write_text("1")
        stack.callback(subprocess.run, ["umount", "/proc/fs/nfsd"])
        called("ip", "link", "set", "lo", "up")
        for name in ("nfsv4gracetime", "nfsv4leasetime"):
            Path("/proc/fs/nfsd", name).write_text("10")
        for program in (["rpcbind", "-f"], ["rpc.mountd", "-F", "-p", MOUNTD_PORT]):
            process = subprocess.Popen(program, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
        time.sleep(0.5)
        called("rpc.nfsd", "4")
        with suppress(OSError):  # where it is not ready for that, clients wait for ten seconds
            Path("/proc/fs/nfsd/v4_end_grace").write_text("Y")
        yield tmp_path_factory.mktemp("nfs")


@dataclass(frozen=True)
class Share:
    """A file system as the server has it, and as its clients see it."""

    export: Path
    clients: dict[str, Path]


ROOMY = ("mkfs.ext4", "-q")
WITH_QUOTA = ("mkfs.ext4", "-q", "-O", "quota", "-E", "quotatype=usrquota")
SQUASHED = f"all_squash,anonuid={SOMEBODY},anongid={SOMEBODY}"
SHARES = {
    "roomy": (ROOMY, "", "no_root_squash"),
    "limited": (WITH_QUOTA, "usrquota", SQUASHED),  # somebody may have 8 MiB
    "not ours": (ROOMY, "", "root_squash"),
}
VERSIONS = {
    "4.2": (),
    # Without rpc.statd, as many hosts have it: locks are this client's alone.
    "3": ("nolock", "proto=tcp", "mountproto=tcp", f"mountport={MOUNTD_PORT}"),
}


@pytest.fixture(scope="module")
def shares(server: Path) -> Iterator[dict[str, Share]]:
    """All are made before the first is mounted: clients and server remember what is not there."""
    with ExitStack() as stack:
        # Version 4 shows one tree. Its root is made, as not every file system of a machine can be exported.
        root = stack.enter_context(mounted(server / "root", "mount", "-t", "tmpfs", "tmpfs"))
        called("exportfs", "-o", "ro,no_subtree_check,insecure,fsid=0", f"127.0.0.1:{root}")
        found = {}
        for number, (name, (make, options, how)) in enumerate(SHARES.items(), 1):
            export = stack.enter_context(disk(root / f"export{number}", 64, *make, options=options))
            called(
                "exportfs", "-o", f"rw,no_subtree_check,insecure,fsid={number},{how}", f"127.0.0.1:{export}"
            )
            found[name] = Share(export, {})
        stack.callback(_withdraw)
        for name, share in found.items():
            for version, more in VERSIONS.items():
                folder = server / f"{name}-{version}"
                options = ",".join((f"vers={version}", "soft", "timeo=100", *more))
                path = share.export if version == "3" else Path("/", share.export.name)
                mount = ("mount", "-t", "nfs", "-o", options, f"127.0.0.1:{path}")
                share.clients[version] = stack.enter_context(mounted(folder, *mount))
        limited = found["limited"].export
        called("setquota", "-u", str(SOMEBODY), "8192", "8192", "0", "0", str(limited))
        os.chown(limited, SOMEBODY, SOMEBODY)
        yield found


def _withdraw() -> None:
    """Nothing is exported, and no thread of the server holds a file any more."""
    called("exportfs", "-ua")
    called("rpc.nfsd", "0")


@pytest.fixture(params=VERSIONS)
def nfs(request, shares: dict[str, Share], tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A new folder at the server, and at the client."""
    share = shares["roomy"]
    export, folder = share.export / tmp_path.name, share.clients[request.param] / tmp_path.name
    folder.mkdir()
    yield export, folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.fixture(params=VERSIONS)
def limited(request, shares: dict[str, Share]) -> Iterator[tuple[Path, Path]]:
    """The server does as if everybody were one user, who may have 8 MiB."""
    share = shares["limited"]
    yield share.export, share.clients[request.param]
    for path in share.export.glob("out.img"):
        path.unlink()


def left_at(export: Path) -> list[str]:
    """When the client has removed what was open: it says so to the server a moment after that was closed."""
    deadline = time.monotonic() + 30
    while any(name.startswith(".nfs") for name in content_of(export)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return content_of(export)


def killed_while_writing(path: Path) -> None:
    child = os.fork()
    if child == 0:
        with NewFile(path) as file:
            file.sink.write(DATA)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def test_an_image_is_whole_at_the_server_and_nothing_is_left_beside_it(nfs):
    export, folder = nfs
    with NewFile(folder / "out.img") as file:
        assert 0 < file.free_bytes() <= 64 * MIB
        file.sink.write(DATA)
        file.sink.writev([*zeros(4 * MIB)])
        file.sink.write(DATA)
        file.sync()
        file.publish()
    assert (export / "out.img").read_bytes() == DATA + bytes(4 * MIB) + DATA
    assert left_at(export) == ["out.img"]
    with (folder / "out.img").open("rb"):  # by somebody who reads the old one
        write(folder / "out.img", b"newer", overwrite=True)
    assert (export / "out.img").read_bytes() == b"newer"
    assert left_at(export) == ["out.img"]


def test_standard_output_is_brought_to_the_server(nfs):
    export, folder = nfs
    with (folder / "out.img").open("wb") as file:
        place = Descriptor(file.fileno(), "standard output")
        place.sink.write(DATA)
        place.sync()
        assert (export / "out.img").read_bytes() == DATA


def test_what_another_of_this_host_writes_is_left_alone_and_what_a_killed_one_left_is_removed(nfs, caplog):
    export, folder = nfs
    killed_while_writing(folder / "out.img")
    assert len(left_at(export)) == 1
    with NewFile(folder / "out.img") as first:
        assert "left by a save that was killed" in caplog.text
        first.sink.write(DATA)
        with NewFile(folder / "out.img") as second:
            second.sink.write(b"second")
            first.sync()
            first.publish()
            with pytest.raises(TransportError, match="created by somebody else"):
                second.publish()
    assert left_at(export) == ["out.img"]
    assert (export / "out.img").read_bytes() == DATA


def test_a_name_that_the_server_gives_to_another_meanwhile_is_left_to_it(nfs):
    export, folder = nfs

    def use() -> None:
        with NewFile(folder / "out.img") as file:
            file.sink.write(DATA)
            (export / "out.img").write_bytes(b"theirs")
            file.sync()
            file.publish()

    with pytest.raises(TransportError, match="created by somebody else"):
        use()
    assert left_at(export) == ["out.img"]
    assert (export / "out.img").read_bytes() == b"theirs"


def test_a_folder_that_is_removed_at_the_server_is_a_failure_with_the_name(nfs):
    export, folder = nfs
    (folder / "of").mkdir()

    def use() -> None:
        with NewFile(folder / "of/out.img") as file:
            file.sink.write(DATA)
            called("rm", "-r", str(export / "of"))
            file.sync()
            file.publish()

    with pytest.raises(TransportError, match=r"of/out\.img.*(Stale file handle|No such file)"):
        use()
    assert left_at(export) == []


def test_a_server_that_takes_no_more_is_a_failure_and_leaves_nothing(nfs):
    export, folder = nfs

    def use() -> None:
        with NewFile(folder / "out.img") as file:
            for _ in range(80):
                file.sink.write(os.urandom(MIB))
            file.sync()
            file.publish()

    with pytest.raises(TransportError, match="No space left on device") as caught:
        use()
    assert caught.value.name is ErrorName.DISK_FULL
    assert [one.remedy for one in caught.value.remedies] == [Remedy.OTHER_PLACE]
    assert left_at(export) == []


def test_a_save_at_the_server_itself_is_not_taken_for_abandoned_by_one_over_the_network(shares, tmp_path):
    """And the other way round."""
    export = shares["roomy"].export / tmp_path.name
    there = shares["roomy"].clients["4.2"] / tmp_path.name
    export.mkdir()
    for mine, other in ((export, there), (there, export)):
        with NewFile(mine / "out.img", overwrite=True) as first:
            first.sink.write(DATA)
            with NewFile(other / "out.img", overwrite=True):
                assert len([name for name in left_at(export) if name.endswith(".partial")]) == 2
            first.sync()
            first.publish()
        assert left_at(export) == ["out.img"]


def test_retention_at_the_server_leaves_what_is_restored_over_the_network_and_the_other_way_round(
    shares, tmp_path
):
    export = shares["roomy"].export / tmp_path.name
    there = shares["roomy"].clients["4.2"] / tmp_path.name
    export.mkdir()
    write(export / "a.img", DATA)
    for reader, remover in ((export, there), (there, export)):
        with in_use(str(reader / "a.img")):
            assert not remove(remover / "a.img")
    assert remove(there / "a.img")
    assert left_at(export) == []


def used_kib(export: Path) -> int:
    """Besides the folder itself."""
    lines = [line.split() for line in called("repquota", "-u", "-n", "-p", str(export)).splitlines()]
    (used,) = [int(words[2]) for words in lines if words[:1] == [f"#{SOMEBODY}"]]
    return max(0, used - 4)


@pytest.mark.parametrize("size_mib", [9, 32])
def test_a_quota_that_the_server_tells_late_is_said_to_be_that_and_leaves_nothing(limited, size_mib):
    """The client hears of it when it has sent what it holds: at fsync."""
    export, folder = limited
    with pytest.raises(TransportError, match="Disk quota exceeded") as caught:
        write(folder / "out.img", os.urandom(size_mib * MIB))
    assert caught.value.name is ErrorName.DISK_FULL
    assert [one.remedy for one in caught.value.remedies] == [Remedy.OTHER_PLACE]
    assert left_at(export) == ["lost+found"]
    deadline = time.monotonic() + 60
    while used_kib(export):  # the server holds files that are gone for a while
        assert time.monotonic() < deadline
        time.sleep(0.2)
    write(folder / "out.img", DATA)
    assert (export / "out.img").read_bytes() == DATA


def test_standard_output_beyond_a_servers_quota_is_said_to_be_that(limited):
    _, folder = limited
    with (folder / "out.img").open("wb") as file:
        with pytest.raises(TransportError, match="Disk quota exceeded") as caught:
            place = Descriptor(file.fileno(), "standard output")
            place.sink.write(os.urandom(9 * MIB))
            place.sync()
        os.ftruncate(file.fileno(), 0)
    assert caught.value.name is ErrorName.DISK_FULL


def test_a_folder_of_somebody_else_at_a_server_that_squashes_root_is_refused(shares):
    for folder in shares["not ours"].clients.values():
        with pytest.raises(TransportError, match="Permission denied") as caught, NewFile(folder / "out.img"):
            pass
        assert caught.value.name is ErrorName.PERMISSION_DENIED


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_that_goes_away_is_a_failure_that_says_what_may_be_left(shares, server, tmp_path, version):
    """The last test, as the other mounts have to find their server again. One with `hard`, the default, waits."""
    share = shares["roomy"]
    path = share.export if version == "3" else Path("/", share.export.name)
    options = ",".join(
        (f"vers={version}", "soft", "timeo=5", "retrans=1", "nosharecache", *VERSIONS[version])
    )
    folder = server / f"going-{version}"

    def use(there: Path) -> None:
        with NewFile(there / "gone.img") as file:
            file.sink.write(DATA)
            called("rpc.nfsd", "0")
            file.sync()
            file.publish()

    with mounted(folder, "mount", "-t", "nfs", "-o", options, f"127.0.0.1:{path}") as there:
        try:
            with pytest.raises(TransportError, match=r"gone\.img.*(Input/output error|timed out)") as caught:
                use(there)
        finally:
            called("rpc.nfsd", "4")
            with suppress(OSError):  # where it is not ready for that, clients wait for ten seconds
                Path("/proc/fs/nfsd/v4_end_grace").write_text("Y")
        assert any("could not be removed" in note for note in caught.value.__notes__)
        assert not (share.export / "gone.img").exists()
        (left,) = share.export.glob(".gone.img.*")
        left.unlink()
