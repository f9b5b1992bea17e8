"""A file that appears whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from saverestore.errors import ErrorName, ExitCode, Interrupted, Remedy, TransportError, UsageError
from saverestore.interrupts import handled
from saverestore.transport import newfile
from saverestore.transport.cache import Cache
from saverestore.transport.file_locks import try_lock
from saverestore.transport.newfile import NewFile

DATA = b"image" * 1000


def content_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, data: bytes = DATA, *, overwrite: bool = False) -> None:
    with NewFile(path, overwrite=overwrite) as file:
        file.sink.write(data)
        file.sync()
        file.publish()


def test_a_committed_file_has_its_name_its_content_and_no_companions(tmp_path):
    write(tmp_path / "out.img")
    assert content_of(tmp_path) == ["out.img"]
    assert (tmp_path / "out.img").read_bytes() == DATA


def test_until_then_it_has_another_name(tmp_path):
    with NewFile(tmp_path / "out.img") as file:
        file.sink.write(DATA)
        (name,) = content_of(tmp_path)
        assert name.startswith(".out.img.")
        assert name.endswith(".partial")
        file.sync()
        file.publish()


def test_only_its_owner_may_read_it_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        with NewFile(tmp_path / "out.img") as file:
            (partial,) = tmp_path.iterdir()
            assert stat.S_IMODE(partial.stat().st_mode) == 0o600
            file.sync()
            file.publish()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.img").stat().st_mode) == 0o600


def killed_while_writing(path: Path) -> None:
    """What a process does that is killed half-way."""
    child = os.fork()
    if child == 0:
        with NewFile(path) as file:
            file.sink.write(DATA)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def test_what_a_killed_writer_left_is_removed_by_the_next_of_the_same_name(tmp_path, caplog):
    killed_while_writing(tmp_path / "out.img")
    killed_while_writing(tmp_path / "other.img")
    (tmp_path / ".out.img.mine.partial").touch()
    assert len(content_of(tmp_path)) == 3
    write(tmp_path / "out.img")
    other, mine, out = content_of(tmp_path)
    assert other.startswith(".other.img.")
    assert (mine, out) == (".out.img.mine.partial", "out.img")
    assert "left by a save that was killed, is removed" in caplog.text


def test_so_is_that_of_a_file_which_is_itself_called_as_temporary_ones_are(tmp_path):
    killed_while_writing(tmp_path / "out.0123abcd.partial")
    write(tmp_path / "out.0123abcd.partial")
    assert content_of(tmp_path) == ["out.0123abcd.partial"]


def test_what_another_is_writing_is_left_alone(tmp_path, caplog):
    with NewFile(tmp_path / "out.img") as first:
        first.sink.write(DATA)
        with NewFile(tmp_path / "out.img"):
            assert len(content_of(tmp_path)) == 2
        first.publish()
    assert content_of(tmp_path) == ["out.img"]
    assert caplog.text == ""


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_complete_file_is_not_taken_for_abandoned_just_before_it_has_its_name(
    tmp_path, monkeypatch, overwrite
):
    """Another save to the same name begins at that very moment."""

    def amid_another(call):
        def wrapped(*arguments: object) -> object:
            with NewFile(tmp_path / "out.img", overwrite=True) as other:
                other.sink.write(b"other")
                return call(*arguments)

        return wrapped

    monkeypatch.setattr("os.link", amid_another(os.link))
    monkeypatch.setattr(Path, "rename", amid_another(Path.rename))
    write(tmp_path / "out.img", overwrite=overwrite)
    assert content_of(tmp_path) == ["out.img"]
    assert (tmp_path / "out.img").read_bytes() == DATA


def test_naming_a_file_leaves_no_descriptor_open(tmp_path):
    before = content_of(Path("/proc/self/fd"))
    write(tmp_path / "out.img")
    assert content_of(Path("/proc/self/fd")) == before


@pytest.mark.parametrize("step", ["file_sink", "_is_there", "try_lock"])
def test_a_signal_as_a_file_is_begun_leaves_no_descriptor_open(tmp_path, monkeypatch, step):
    def interrupted(*_: object, **__: object) -> None:
        raise Interrupted("interrupted by Ctrl-C")

    monkeypatch.setattr(newfile, step, interrupted)
    before = content_of(Path("/proc/self/fd"))
    with pytest.raises(Interrupted), NewFile(tmp_path / "out.img"):
        pass
    assert content_of(Path("/proc/self/fd")) == before
    assert content_of(tmp_path) == []


def test_where_there_are_no_locks_nothing_is_taken_for_abandoned(tmp_path, monkeypatch):
    real = fcntl.fcntl

    def no_locks(descriptor: int, call: int, *given: object) -> object:
        if call == fcntl.F_OFD_SETLK:
            raise OSError(errno.ENOLCK, "no locks here")
        return real(descriptor, call, *given)

    killed_while_writing(tmp_path / "out.img")
    monkeypatch.setattr("fcntl.fcntl", no_locks)
    write(tmp_path / "out.img")
    assert len(content_of(tmp_path)) == 2


def test_without_commit_nothing_is_left(tmp_path):
    with NewFile(tmp_path / "out.img") as file:
        file.sink.write(DATA)
    assert content_of(tmp_path) == []


@pytest.mark.parametrize("error", [TransportError("disk full"), KeyboardInterrupt()])
def test_after_an_error_nothing_is_left(tmp_path, error):
    with pytest.raises(type(error)), NewFile(tmp_path / "out.img"):
        raise error
    assert content_of(tmp_path) == []


@pytest.mark.parametrize("cache", [Cache.PAGE, Cache.AUTO])
def test_a_failure_of_closing_does_not_hide_an_earlier_one(tmp_path, cache):
    """A disk that fails does so at each call; the first error has what is known of the domain."""
    with (
        pytest.raises(TransportError, match="the first error"),
        NewFile(tmp_path / "out.img", cache=cache) as file,
    ):
        os.close(file.sink.fileno())
        raise TransportError("the first error")
    assert content_of(tmp_path) == []


def test_a_sink_that_cannot_even_be_closed_leaves_nothing(tmp_path):
    def use() -> None:
        with NewFile(tmp_path / "out.img") as file:
            os.close(file.sink.fileno())

    with pytest.raises(TransportError, match="closing"):
        use()
    assert content_of(tmp_path) == []


def test_a_signal_when_the_file_has_just_been_made_leaves_nothing(tmp_path, monkeypatch):

    def interrupted(descriptor: int) -> bool | None:
        is_ours = try_lock(descriptor)
        os.kill(os.getpid(), signal.SIGINT)
        return is_ours

    monkeypatch.setattr(newfile, "try_lock", interrupted)
    with pytest.raises(Interrupted), handled(), NewFile(tmp_path / "out.img"):
        pass
    assert content_of(tmp_path) == []


def test_an_existing_file_is_refused_at_once_and_left_alone(tmp_path):
    (tmp_path / "out.img").write_bytes(b"old")
    with pytest.raises(UsageError, match=r"exists already$") as caught:
        NewFile(tmp_path / "out.img")
    assert caught.value.name is ErrorName.FILE_EXISTS
    assert [one.remedy for one in caught.value.remedies] == [Remedy.OVERWRITE]
    assert content_of(tmp_path) == ["out.img"]
    assert (tmp_path / "out.img").read_bytes() == b"old"


def test_with_overwrite_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "out.img"
    path.write_bytes(b"old")
    with NewFile(path, overwrite=True) as file:
        file.sink.write(DATA)
        assert path.read_bytes() == b"old"
        file.sync()
        file.publish()
        assert path.read_bytes() == DATA
    assert content_of(tmp_path) == ["out.img"]


def test_with_overwrite_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "out.img"
    path.write_bytes(b"old")
    with NewFile(path, overwrite=True) as file:
        file.sink.write(DATA)
    assert path.read_bytes() == b"old"
    assert content_of(tmp_path) == ["out.img"]


def test_overwrite_also_makes_a_file_that_was_not_there(tmp_path):
    write(tmp_path / "out.img", overwrite=True)
    assert content_of(tmp_path) == ["out.img"]


def test_a_symbolic_link_is_followed_and_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there/real.img", tmp_path / "link.img"
    link.symlink_to(target)
    write(link)
    with pytest.raises(UsageError, match="exists already"):
        NewFile(link)
    write(link, b"newer", overwrite=True)
    assert link.is_symlink()
    assert target.read_bytes() == b"newer"
    assert content_of(tmp_path / "there") == ["real.img"]
    assert content_of(tmp_path) == ["link.img", "there"]


def test_a_name_taken_meanwhile_is_left_to_whoever_took_it(tmp_path):
    path = tmp_path / "out.img"

    def use() -> None:
        with NewFile(path) as file:
            file.sink.write(DATA)
            path.write_bytes(b"theirs")
            file.sync()
            file.publish()

    with pytest.raises(TransportError, match="by somebody else"):
        use()
    assert path.read_bytes() == b"theirs"
    assert content_of(tmp_path) == ["out.img"]


def test_of_many_at_the_same_time_one_gets_the_name_and_no_other_leaves_a_trace(tmp_path):
    path = tmp_path / "out.img"
    together = threading.Barrier(8)
    outcomes = []

    def work(number: int) -> None:
        with NewFile(path) as file:
            file.sink.write(bytes([number]) * 1000)
            together.wait(10)
            try:
                file.sync()
                file.publish()
                outcomes.append(number)
            except TransportError:
                pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = outcomes
    assert path.read_bytes() == bytes([winner]) * 1000
    assert content_of(tmp_path) == ["out.img"]


def test_a_directory_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="directory"):
        NewFile(tmp_path, overwrite=True)


@pytest.mark.parametrize("name", ["absent/out.img", "file/out.img"])
def test_a_place_that_cannot_be_written_is_told_with_the_final_name(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TransportError, match=name) as caught, NewFile(tmp_path / name):
        pass
    assert caught.value.exit_code == ExitCode.IO
    assert not getattr(caught.value, "__notes__", [])  # nothing was made that would have to be removed


def test_a_device_is_written_directly_and_stays_a_device():
    with NewFile(Path("/dev/null")) as file:
        file.sink.write(DATA)
        assert file.free_bytes() is None
        file.sync()
        file.publish()
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with NewFile(Path("/dev/null")):
        pass
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_block_device_is_written_only_with_overwrite_and_brought_to_the_disk(tmp_path, monkeypatch):
    synced = []
    backing = tmp_path / "device"
    backing.write_bytes(b"precious" + bytes(1 << 20))
    monkeypatch.setattr("saverestore.transport.newfile.stat.S_ISBLK", lambda _mode: True)
    monkeypatch.setattr("saverestore.transport.newfile.stat.S_ISREG", lambda _mode: False)
    monkeypatch.setattr(os, "fsync", synced.append)
    with pytest.raises(UsageError, match="is a block device, and the image would overwrite") as caught:
        NewFile(backing)
    assert [one.remedy for one in caught.value.remedies] == [Remedy.OVERWRITE]
    assert backing.read_bytes().startswith(b"precious")
    with NewFile(backing, overwrite=True) as file:
        assert file.free_bytes() == (1 << 20) + 8
        file.sink.write(DATA)
        assert file.free_bytes() == (1 << 20) + 8 - len(DATA)
        file.sync()
        file.publish()
    assert len(synced) == 1
    assert backing.read_bytes().startswith(DATA)


def test_a_named_pipe_gets_the_bytes_and_stays(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    found = []
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()))
    reader.start()
    write(path)
    reader.join()
    assert found == [DATA]
    assert content_of(tmp_path) == ["pipe"]


def test_free_space_is_told_for_a_file(tmp_path):
    with NewFile(tmp_path / "out.img") as file:
        free = file.free_bytes()
        assert free is not None
        assert free > 0


@pytest.fixture
def tiny_file_system(tmp_path: Path):
    """A file system of 64 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tiny file system takes root")
    folder = tmp_path / "tiny"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_nothing_and_a_smaller_image_fits_afterwards(tiny_file_system):
    path = tiny_file_system / "out.img"
    with pytest.raises(TransportError, match=r"No space left on device, at byte 0x") as caught:
        write(path, bytes(1 << 20))
    assert [one.remedy for one in caught.value.remedies] == [Remedy.OTHER_PLACE]
    assert content_of(tiny_file_system) == []
    write(path, bytes(32 << 10))
    assert path.stat().st_size == 32 << 10


def test_free_space_is_that_of_the_file_system_written_to(tiny_file_system):
    with NewFile(tiny_file_system / "out.img") as file:
        assert file.free_bytes() == 64 << 10
        file.sink.write(bytes(8 << 10))
        assert file.free_bytes() == 56 << 10


def test_a_file_that_cannot_be_brought_to_the_disk_is_removed(tmp_path, monkeypatch):
    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(TransportError, match="could not be brought to the disk: Input/output error"):
        write(tmp_path / "out.img")
    assert content_of(tmp_path) == []


def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    write(tmp_path / "out.img")
    assert content_of(tmp_path) == ["out.img"]
    assert (tmp_path / "out.img").read_bytes() == DATA
