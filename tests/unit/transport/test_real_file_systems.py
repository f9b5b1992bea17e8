"""Real file systems under an image: overlays, quotas, disks that fail, folders that go away, sizes that end early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_systems import called, content_of, disk, lacking, mounted, write

from saverestore.errors import ErrorName, Remedy, TransportError, UsageError
from saverestore.kernels.zeros import zeros
from saverestore.transport.descriptor import Descriptor
from saverestore.transport.newfile import NewFile

DATA = b"image" * 1000
MIB = 1 << 20


def killed_while_writing(path: Path) -> None:
    child = os.fork()
    if child == 0:
        with NewFile(path) as file:
            file.sink.write(DATA)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


# ---- overlayfs -----------------------------------------------------------------------------------


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Path]:
    """Lower: old.img and what a killed writer has left, which the upper one cannot remove from there."""
    with mounted(tmp_path / "below", "mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs") as below:
        for name in ("lower", "upper", "work"):
            (below / name).mkdir()
        write(below / "lower/old.img", b"old")
        killed_while_writing(below / "lower/left.img")
        options = ",".join(f"{name}dir={below / name}" for name in ("lower", "upper", "work"))
        with mounted(tmp_path / "overlay", "mount", "-t", "overlay", "-o", options, "overlay") as folder:
            yield folder


def test_an_overlay_takes_images_and_knows_its_room(overlay):
    with NewFile(overlay / "new.img") as file:
        assert 0 < file.free_bytes() <= 64 * MIB
        file.sink.write(DATA)
        file.sink.writev([*zeros(MIB)])
        file.sync()
        file.publish()
    assert (overlay / "new.img").read_bytes() == DATA + bytes(MIB)
    write(overlay / "new.img", b"newer", overwrite=True)
    assert (overlay / "new.img").read_bytes() == b"newer"


def test_a_file_of_the_lower_layer_is_there_and_is_replaced_only_when_asked(overlay):
    with pytest.raises(UsageError, match="exists already"):
        NewFile(overlay / "old.img")
    write(overlay / "old.img", DATA, overwrite=True)
    assert (overlay / "old.img").read_bytes() == DATA


def test_what_a_killed_writer_left_in_the_lower_layer_is_gone(overlay, caplog):
    write(overlay / "left.img", DATA)
    assert content_of(overlay) == ["left.img", "old.img"]
    assert "left by a save that was killed" in caplog.text


def test_what_another_writes_on_an_overlay_is_left_alone(overlay):
    with NewFile(overlay / "two.img") as first:
        first.sink.write(DATA)
        with NewFile(overlay / "two.img") as second:
            second.sink.write(b"second")
            first.publish()
            with pytest.raises(TransportError, match="created by somebody else"):
                second.publish()
    assert (overlay / "two.img").read_bytes() == DATA
    assert [name for name in content_of(overlay) if name.endswith(".partial")] != []  # the killed writer's
    assert "two" not in "".join(name for name in content_of(overlay) if name.endswith(".partial"))


# ---- quotas --------------------------------------------------------------------------------------


@pytest.fixture(params=["btrfs", "xfs"])
def limited(request, tmp_path: Path) -> Iterator[Path]:
    """A folder in which 16 MiB may be used, also by root. XFS calls that a full disk, btrfs a quota."""
    if request.param == "btrfs":
        with disk(tmp_path / "btrfs", 256, "mkfs.btrfs", "-q") as there:
            called("btrfs", "quota", "enable", str(there))
            called("btrfs", "subvolume", "create", str(there / "of"))
            called("btrfs", "qgroup", "limit", "16M", str(there / "of"))
            yield there / "of"
    else:
        with disk(tmp_path / "xfs", 320, "mkfs.xfs", "-q", options="prjquota") as there:
            (there / "of").mkdir()
            called("xfs_quota", "-x", "-c", f"project -s -p {there / 'of'} 42", str(there))
            called("xfs_quota", "-x", "-c", "limit -p bhard=16m 42", str(there))
            yield there / "of"


OVER_QUOTA = r"(Disk quota exceeded|No space left on device)"


def test_an_image_beyond_a_quota_is_said_to_be_that_and_leaves_nothing(limited):
    path = limited / "out.img"
    with pytest.raises(TransportError, match=OVER_QUOTA) as caught:
        write(path, os.urandom(MIB) * 32)
    assert caught.value.name is ErrorName.DISK_FULL
    assert [one.remedy for one in caught.value.remedies] == [Remedy.OTHER_PLACE]
    assert content_of(limited) == []
    os.sync()
    write(path, os.urandom(2 * MIB))
    assert path.stat().st_size == 2 * MIB
    with pytest.raises(TransportError, match=OVER_QUOTA):
        write(path, os.urandom(MIB) * 32, overwrite=True)
    assert path.stat().st_size == 2 * MIB


def test_standard_output_beyond_a_quota_is_said_to_be_that(limited):
    with (limited / "out.img").open("wb") as file, pytest.raises(TransportError, match=OVER_QUOTA) as caught:
        place = Descriptor(file.fileno(), "standard output")
        for _ in range(32):
            place.sink.write(os.urandom(MIB))
        place.sync()
    assert caught.value.name is ErrorName.DISK_FULL


# ---- disks that fail, and folders that go away -----------------------------------------------------


def test_a_disk_that_fails_and_becomes_read_only_is_found_before_the_file_has_its_name(tmp_path):
    make = ("mkfs.ext4", "-q")
    with disk(tmp_path / "ext4", 32, *make, options="errors=remount-ro") as folder:
        (source,) = called("findmnt", "-no", "SOURCE", str(folder)).split()
        trigger = Path("/sys/fs/ext4") / Path(source).name / "trigger_fs_error"
        if not trigger.exists():
            lacking("ext4 of this kernel cannot be made to fail")

        def use() -> None:
            with NewFile(folder / "out.img") as file:
                file.sink.write(DATA * 100)
                trigger.write_text("a test")
                file.sink.write(DATA)
                file.sync()
                file.publish()

        with pytest.raises(TransportError, match=r"out\.img.*(Read-only file system|Input/output error)"):
            use()
        assert not (folder / "out.img").exists()


def test_a_file_system_that_is_read_only_is_said_to_be_that(tmp_path):
    with disk(tmp_path / "ext4", 32, "mkfs.ext4", "-q") as folder:
        called("mount", "-o", "remount,ro", str(folder))
        with pytest.raises(TransportError, match="Read-only file system"), NewFile(folder / "out.img"):
            pass


def test_a_folder_that_is_moved_meanwhile_keeps_no_half_image(tmp_path):
    (tmp_path / "folder").mkdir()

    def use() -> None:
        with NewFile(tmp_path / "folder/out.img") as file:
            file.sink.write(DATA)
            (tmp_path / "folder").rename(tmp_path / "moved")
            file.sync()
            file.publish()

    with pytest.raises(TransportError, match=r"folder/out\.img could not be given its name: No such file"):
        use()
    assert content_of(tmp_path / "moved") == []


def test_a_folder_that_another_file_system_covers_meanwhile_keeps_no_half_image(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()

    def use() -> None:
        with NewFile(folder / "out.img") as file:
            file.sink.write(DATA)
            called("mount", "-t", "tmpfs", "tmpfs", str(folder), lacks="cannot be mounted here")
            file.sync()
            file.publish()

    try:
        with pytest.raises(TransportError, match=r"out\.img could not be given its name: No such file"):
            use()
        assert content_of(folder) == []
    finally:
        subprocess.run(["umount", str(folder)], check=False)
    assert content_of(folder) == []


def test_a_file_system_that_is_unmounted_lazily_meanwhile_keeps_no_half_image(tmp_path):
    path = tmp_path / "disk.disk"
    with disk(tmp_path / "disk", 32, "mkfs.ext4", "-q") as folder:

        def use() -> None:
            with NewFile(folder / "out.img") as file:
                file.sink.write(DATA)
                called("umount", "-l", str(folder))
                file.sync()
                file.publish()

        with pytest.raises(TransportError, match=r"out\.img could not be given its name: No such file"):
            use()
        called("mount", "-o", "loop", str(path), str(folder))
        assert content_of(folder) == ["lost+found"]


def test_a_folder_that_may_not_be_listed_takes_an_image(tmp_path):
    """Not even the end of a save may list it."""
    if os.geteuid() != 0:
        pytest.skip("takes root, to become nobody")
    folder = tmp_path / "drop"
    folder.mkdir()
    folder.chmod(0o733)
    for above in (tmp_path, *tmp_path.parents):
        if above.stat().st_mode & 1 == 0:
            above.chmod(above.stat().st_mode | 0o11)
    program = (
        "import os, sys; from pathlib import Path; from saverestore.transport.newfile import NewFile\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "with NewFile(Path(sys.argv[1])) as file:\n"
        "    file.sink.write(b'image'); file.sync(); file.publish()\n"
    )
    subprocess.run([sys.executable, "-c", program, str(folder / "out.img")], check=True)
    assert content_of(folder) == ["out.img"]


# ---- the largest file ------------------------------------------------------------------------------


@pytest.fixture
def vfat(tmp_path: Path) -> Iterator[Path]:
    with disk(tmp_path / "vfat", 6 << 10, "mkfs.vfat", "-F", "32", options="iocharset=utf8") as folder:
        yield folder


def test_what_a_file_of_vfat_can_be_is_known_beforehand(vfat):
    with NewFile(vfat / "out.img") as file:
        assert file.free_bytes() == (4 << 30) - 1
        assert not file.has_holes
        file.sink.write(DATA)
        assert file.free_bytes() == (4 << 30) - 1 - len(DATA)


def test_a_file_of_vfat_that_grows_too_large_is_said_to_be_that_and_leaves_nothing(vfat):
    def use() -> None:
        with NewFile(vfat / "out.img") as file:
            # As if so much had been written, which takes too long here.
            file.sink.offset = os.lseek(file.sink.fileno(), (4 << 30) - 1, os.SEEK_SET)
            file.sink.write(bytes(2 * MIB))

    with pytest.raises(TransportError, match=r"out\.img: File too large, at byte 0xf") as caught:
        use()
    assert caught.value.name is ErrorName.DISK_FULL
    assert content_of(vfat) == []


def test_a_limit_on_the_size_of_files_is_known_beforehand_and_said(tmp_path):
    program = (
        "import resource, sys; from pathlib import Path; from saverestore.transport.newfile import NewFile\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "with NewFile(Path(sys.argv[1])) as file:\n"
        "    print(file.free_bytes())\n"
        "    file.sink.write(bytes(2 << 20))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out.img")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"{MIB}\n"
    assert "File too large, at byte" in done.stderr
    assert content_of(tmp_path) == []
