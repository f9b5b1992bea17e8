"""File systems as they are: what they answer oddly is no failure, and what fails is found in time."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_systems import content_of, disk, lacking, mounted
from file_systems import write as write_bytes

from saverestore.errors import ErrorName, Interrupted, Remedy, TransportError, UsageError
from saverestore.interrupts import handled
from saverestore.kernels.zeros import zeros
from saverestore.transport import descriptor, newfile
from saverestore.transport.cache import Cache
from saverestore.transport.newfile import NewFile
from saverestore.transport.safety import file_system_of, is_in_memory

DATA = b"image" * 1000


def write(path: Path, *, overwrite: bool = False, cache: Cache = Cache.PAGE) -> None:
    write_bytes(path, DATA, overwrite=overwrite, cache=cache)


@contextlib.contextmanager
def fuse(folder: Path, *oddities: str) -> Iterator[Path]:
    """A FUSE file system of our own."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        lacking("FUSE takes root and /dev/fuse")
    folder.mkdir()
    program = str(Path(__file__).with_name("mini_fuse.py"))
    server = subprocess.Popen(
        [sys.executable, program, str(folder), *oddities], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert server.stdout is not None and server.stderr is not None
        if server.stdout.readline() != b"mounted\n":
            lacking(server.stderr.read().decode())
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)
        server.wait(30)
        for stream in (server.stdout, server.stderr):
            assert stream is not None
            stream.close()


@pytest.mark.parametrize(
    "oddities",
    [
        ["nlink0"],
        ["no-statfs"],
        ["no-link"],
        ["no-fsync"],
        ["no-truncate"],
        ["short-writes"],
        ["no-direct"],
        ["nlink0", "no-statfs", "no-link", "no-fsync", "no-truncate", "short-writes", "no-direct"],
    ],
)
@pytest.mark.parametrize("cache", [Cache.PAGE, Cache.AUTO])
def test_an_image_is_whole_on_a_file_system_with_odd_answers(tmp_path, oddities, cache):
    data = DATA * 1000
    with fuse(tmp_path / "fuse", *oddities) as folder:
        with NewFile(folder / "out.img", cache=cache) as file:
            assert (file.free_bytes() is None) == ("no-statfs" in oddities)
            file.sink.write(data)
            file.sink.writev([*zeros(1 << 20)])  # the file ends in a hole
            file.sync()
            assert (file.cache is Cache.DIRECT) == (cache is Cache.AUTO and "no-direct" not in oddities)
            file.publish()
        assert (folder / "out.img").read_bytes() == data + bytes(1 << 20)
        assert not list(folder.glob(".*"))


def test_direct_writes_that_are_refused_late_are_found_before_anything_is_written(tmp_path):
    with fuse(tmp_path / "fuse", "no-direct") as folder:
        with (
            pytest.raises(UsageError, match="answers 'Invalid argument'; no changes were made"),
            NewFile(folder / "out.img", cache=Cache.DIRECT),
        ):
            pass
        assert content_of(folder) == []


def test_the_kind_of_file_system_is_that_of_the_mount(tmp_path):
    with fuse(tmp_path / "fuse") as folder, NewFile(folder / "out.img") as file:
        assert file_system_of(file.sink.fileno()) == "fuse"
    with (
        mounted(tmp_path / "ramfs", "mount", "-t", "ramfs", "ramfs") as folder,
        NewFile(folder / "out.img", cache=Cache.AUTO) as file,
    ):
        assert file_system_of(file.sink.fileno()) == "ramfs"
        assert is_in_memory(file.sink.fileno()) and file.cache is Cache.PAGE


@pytest.mark.parametrize("cache", [Cache.PAGE, Cache.DIRECT])
def test_an_error_that_comes_late_is_found_before_the_file_has_its_name(tmp_path, cache):
    with fuse(tmp_path / "fuse", "late-eio") as folder:
        with pytest.raises(TransportError, match="Input/output error"):
            write(folder / "out.img", cache=cache)
        assert not (folder / "out.img").exists()


@pytest.mark.parametrize("oddity", ["quota-at-fsync", "quota-at-close"])
def test_a_quota_that_is_told_late_is_said_to_be_that_and_leaves_nothing(tmp_path, oddity):
    with fuse(tmp_path / "fuse", oddity) as folder:
        with pytest.raises(TransportError, match=r"out\.img.*: Disk quota exceeded") as caught:
            write(folder / "out.img")
        assert caught.value.name is ErrorName.DISK_FULL
        assert [one.remedy for one in caught.value.remedies] == [Remedy.OTHER_PLACE]
        assert not (folder / "out.img").exists()
        assert not list(folder.glob(".*"))


def test_a_signal_ends_a_file_system_that_loses_every_temporary_file(tmp_path, monkeypatch):
    attempts = []

    def lost(_path: Path) -> bool:
        attempts.append(len(content_of(tmp_path)))
        os.kill(os.getpid(), signal.SIGINT)
        return False

    monkeypatch.setattr(newfile, "_is_there", lost)
    with pytest.raises(Interrupted), handled(), NewFile(tmp_path / "out.img"):
        pass
    assert attempts == [1]
    assert content_of(tmp_path) == []


def test_temporary_files_that_are_lost_at_once_are_not_made_without_end(tmp_path, monkeypatch):
    attempts = []
    monkeypatch.setattr(newfile, "_is_there", lambda path: bool(attempts.append(path)))
    with (
        pytest.raises(TransportError, match="removed by another program at once"),
        NewFile(tmp_path / "out.img"),
    ):
        pass
    assert len(attempts) == newfile.ATTEMPTS
    assert content_of(tmp_path) == []


@pytest.mark.parametrize("kind", ["ramfs", "tmpfs"])
def test_a_file_system_that_keeps_no_account_of_its_room_is_not_full(tmp_path, kind):
    options = ["-o", "size=0"] if kind == "tmpfs" else []
    with mounted(tmp_path / kind, "mount", "-t", kind, *options, kind) as folder:
        with NewFile(folder / "out.img") as file:
            assert file.free_bytes() is None
            file.sink.write(DATA)
            file.sync()
            file.publish()
        assert (folder / "out.img").read_bytes() == DATA


def test_room_that_cannot_be_asked_for_is_not_known(tmp_path, monkeypatch):
    def fail(_fd: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "fstatvfs", fail)
    with NewFile(tmp_path / "out.img") as file:
        assert file.free_bytes() is None


NAMES = ["x" * length for length in (1, 236, 237, 238, 250, 255)] + [
    "ü" * 127,
    "語" * 85,
    "\U0001f40d" * 63,
    os.fsdecode(b"\xff\xfe" * 127),  # no UTF-8 at all
    "with\nnewline" * 20,
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: f"{len(os.fsencode(name))}-{name[:1]!a}")
def test_a_name_that_the_file_system_takes_is_taken_here(tmp_path, name):
    with NewFile(tmp_path / name) as file:
        (partial,) = content_of(tmp_path)
        assert len(os.fsencode(partial)) <= 255
        assert partial.startswith(".") and partial.endswith(".partial")
        file.sink.write(DATA)
        file.sync()
        file.publish()
    assert content_of(tmp_path) == [name]


def test_what_a_killed_writer_left_of_a_long_name_is_removed_by_the_next(tmp_path, caplog):
    path, other = tmp_path / ("x" * 255), tmp_path / ("x" * 254 + "y")
    for one in (path, other):
        if os.fork() == 0:
            with NewFile(one):
                os.kill(os.getpid(), signal.SIGKILL)
        os.wait()
    assert len(content_of(tmp_path)) == 2
    write(path)
    assert len(content_of(tmp_path)) == 2  # the other's is left alone
    assert "left by a save that was killed" in caplog.text


def test_a_name_of_a_file_system_with_shorter_ones_fits_too(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "pathconf", lambda _path, _name: 143)
    with NewFile(tmp_path / ("x" * 140)):
        (partial,) = content_of(tmp_path)
        assert len(partial) <= 143


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL, errno.EXDEV])
def test_whatever_a_file_system_without_hard_links_says_the_file_is_renamed(tmp_path, monkeypatch, number):
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", fail)
    write(tmp_path / "out.img")
    assert content_of(tmp_path) == ["out.img"]
    assert (tmp_path / "out.img").read_bytes() == DATA


def test_without_hard_links_a_name_taken_meanwhile_is_left_alone(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "link", fail)

    def use() -> None:
        with NewFile(tmp_path / "out.img") as file:
            (tmp_path / "out.img").write_bytes(b"theirs")
            file.publish()

    with pytest.raises(TransportError, match="created by somebody else") as caught:
        use()
    assert caught.value.name is ErrorName.FILE_EXISTS
    assert (tmp_path / "out.img").read_bytes() == b"theirs"
    assert content_of(tmp_path) == ["out.img"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_name_that_was_given_although_the_answer_was_lost_is_no_failure(tmp_path, monkeypatch, overwrite):
    link, rename = os.link, Path.rename

    def link_twice(old: Path, new: Path) -> None:
        link(old, new)
        raise FileExistsError(errno.EEXIST, "File exists")

    def rename_twice(old: Path, new: Path) -> None:
        rename(old, new)
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "link", link_twice)
    monkeypatch.setattr(Path, "rename", rename_twice)
    write(tmp_path / "out.img", overwrite=overwrite)
    assert content_of(tmp_path) == ["out.img"]


def test_a_file_larger_than_the_file_system_takes_is_told_like_a_full_disk(tmp_path, monkeypatch):
    def fail(*_: object) -> int:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(os, "pwritev", fail)
    with pytest.raises(TransportError, match="File too large, at byte") as caught:
        write(tmp_path / "out.img")
    assert caught.value.name is ErrorName.DISK_FULL


def test_vfat_takes_an_image_with_holes(tmp_path):
    with disk(tmp_path / "vfat", 8, "mkfs.vfat", options="iocharset=utf8") as folder:
        for name in ("out.img", "ü" * 120, "x" * 250):
            with NewFile(folder / name) as file:
                file.sink.write(DATA)
                file.sink.writev([*zeros(1 << 20)])
                file.sync()
                file.publish()
            assert (folder / name).read_bytes() == DATA + bytes(1 << 20)
        assert not list(folder.glob(".*"))


def test_a_temporary_file_that_cannot_be_removed_hides_no_failure(tmp_path, monkeypatch):
    def refuse(_name: str, **_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    def use() -> None:
        with NewFile(tmp_path / "out.img") as file:
            file.sink.write(DATA)
            raise TransportError("the first failure")

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(TransportError, match="the first failure") as caught:
        use()
    assert any("could not be removed: Read-only" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("place", ["a file of ours", "standard output"])
def test_a_disk_that_became_read_only_before_the_data_were_on_it_is_a_failure(tmp_path, monkeypatch, place):
    def fail(_fd: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    if place == "standard output":
        before = os.dup(1)
        with (tmp_path / "out.img").open("wb") as file:
            os.dup2(file.fileno(), 1)
        try:
            monkeypatch.setattr(os, "fsync", fail)
            with pytest.raises(TransportError, match="could not be brought to the disk: Read-only"):
                descriptor.Descriptor().sync()
        finally:
            os.dup2(before, 1)
            os.close(before)
        return
    with NewFile(tmp_path / "out.img") as file:
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(TransportError, match="could not be brought to the disk: Read-only"):
            file.sync()


def test_a_folder_that_vanishes_is_a_failure_with_the_name(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()

    def use() -> None:
        with NewFile(folder / "out.img") as file:
            file.sink.write(DATA)
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
            file.sync()
            file.publish()

    with pytest.raises(TransportError, match=r"out\.img could not be given its name: No such file"):
        use()


def test_looking_for_abandoned_files_does_not_wait_for_a_pipe_of_such_a_name(tmp_path):
    os.mkfifo(tmp_path / ".out.img.01234567.partial")
    done = threading.Thread(target=write, args=(tmp_path / "out.img",))
    done.start()
    done.join(10)
    assert (tmp_path / "out.img").read_bytes() == DATA
