"""Files written past the page cache: the same bytes and the same holes, and the same words when it fails."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saverestore.errors import ErrorName, Interrupted, Remedy, TransportError, UsageError
from saverestore.interrupts import handled
from saverestore.kernels.zeros import zeros
from saverestore.transport import direct, newfile
from saverestore.transport.cache import Cache
from saverestore.transport.direct import BUFFER_BYTES, DirectFileSink
from saverestore.transport.newfile import NewFile
from saverestore.transport.safety import is_in_memory
from saverestore.transport.sparse import SparseFileSink

PAGE = 4096
MIB = 1 << 20
DATA = np.random.default_rng(2).integers(1, 256, 9 * MIB, dtype=np.uint8).tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder on a disk. Skips where the temporary folder is in memory."""
    found = tmp_path_factory.mktemp("direct")
    try:
        os.close(os.open(found / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError as error:
        pytest.skip(f"{found} takes no O_DIRECT: {error.strerror}")
    with (found / "probe").open() as file:
        if is_in_memory(file.fileno()):
            pytest.skip(f"{found} is in memory: give --basetemp")
    return found


@contextlib.contextmanager
def direct_sink(path: Path, **more: int):
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    with DirectFileSink(fd, "image", **more) as sink:
        assert sink.open_directly(path) == ""
        yield sink


def content_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def in_cache(path: Path) -> int:
    """How many bytes of a file are in the page cache."""
    size = path.stat().st_size
    with path.open("rb") as file:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        at = libc.mmap(None, ctypes.c_size_t(size), 1, 1, file.fileno(), ctypes.c_long(0))
        pages = (ctypes.c_ubyte * (-(-size // PAGE)))()
        assert libc.mincore(ctypes.c_void_p(at), ctypes.c_size_t(size), pages) == 0
        libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(size))
    return sum(page & 1 for page in pages) * PAGE


CALLS = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 8, 511, PAGE, 9 * PAGE, 20 * PAGE + 77, 70 * PAGE, 130 * PAGE + 1]),
            st.booleans(),
        ),
        max_size=6,
    ),
    max_size=6,
)


@given(calls=CALLS, single=st.booleans())
@settings(max_examples=80, deadline=None)
def test_whatever_is_written_both_ways_give_the_same_bytes_and_holes(folder, calls, single):
    with (
        direct_sink(folder / "direct", buffer_bytes=64 * PAGE) as one,
        SparseFileSink(os.open(folder / "page", os.O_RDWR | os.O_CREAT | os.O_TRUNC), "image") as other,
    ):
        for call in calls:
            buffers = []
            for size, is_zero in call:
                buffers += zeros(size) if is_zero else [DATA[size : 2 * size]]
            for sink in (one, other):
                for part in [[buffer] for buffer in buffers] if single else [buffers]:
                    sink.writev(part)
            assert (one.offset, one.stored_bytes) == (other.offset, other.stored_bytes)
        one.finish()
        assert one.held_bytes == 0
        for sink in (one, other):
            os.fsync(sink.fileno())
        sizes = [os.fstat(sink.fileno()).st_blocks for sink in (one, other)]
        assert abs(sizes[0] - sizes[1]) <= 8
    assert (folder / "direct").read_bytes() == (folder / "page").read_bytes()


@given(lengths=st.lists(st.integers(0, 3 * MIB), max_size=6), switch_at=st.integers(0, 6))
@settings(max_examples=20, deadline=None)
def test_the_bytes_are_the_same_when_it_turns_to_the_page_cache_on_the_way(folder, lengths, switch_at):
    with direct_sink(folder / "direct") as sink:
        for at, length in enumerate(lengths):
            if at == switch_at:
                sink.use_page_cache()
            sink.writev([memoryview(DATA)[at : at + length], *zeros(length % 3 * 20 * PAGE)])
        sink.finish()
    wanted = b"".join(
        DATA[at : at + length] + bytes(length % 3 * 20 * PAGE) for at, length in enumerate(lengths)
    )
    assert (folder / "direct").read_bytes() == wanted


@pytest.mark.parametrize("turned", [False, True])
def test_a_file_that_ends_in_a_hole_has_its_length_also_when_nothing_follows(folder, turned):
    with direct_sink(folder / "direct") as sink:
        sink.writev([b"head", *zeros(100 * PAGE)])
        if turned:
            sink.use_page_cache()
        sink.write(b"")
        sink.writev([b"", b""])
        sink.finish()
        sink.finish()
    assert (folder / "direct").read_bytes() == b"head" + bytes(100 * PAGE)


def test_what_is_written_directly_is_not_in_the_page_cache(folder):
    with NewFile(folder / "image", overwrite=True, cache=Cache.AUTO) as file:
        assert file.cache is Cache.DIRECT
        for at in range(0, len(DATA), 100_003):
            file.sink.write(DATA[at : at + 100_003])
        assert 0 < file.sink.held_bytes <= 3 * BUFFER_BYTES
        file.sync()
        file.publish()
    assert in_cache(folder / "image") <= 2 * PAGE
    assert (folder / "image").read_bytes() == DATA
    assert content_of(folder).count("image") == 1


def test_room_is_without_what_was_given_and_not_yet_written(folder, monkeypatch):
    with NewFile(folder / "image", overwrite=True, cache=Cache.AUTO) as file:
        monkeypatch.setattr(newfile, "free_bytes", lambda _fd: 10 * MIB)
        file.sink.write(DATA[:MIB])
        assert file.free_bytes() == 9 * MIB
        file.sync()
        assert file.free_bytes() == 10 * MIB


def test_publishing_alone_writes_what_was_held_back(folder):
    with NewFile(folder / "image", overwrite=True, cache=Cache.DIRECT) as file:
        file.sink.write(DATA[: 5 * MIB + 1])
        file.publish()
    assert (folder / "image").read_bytes() == DATA[: 5 * MIB + 1]


def test_pieces_between_holes_go_through_the_page_cache_together(folder, monkeypatch):
    written = []
    pwrite = os.pwrite

    def noted(fd: int, data: memoryview, at: int) -> int:
        written.append((fd, len(data)))
        return pwrite(fd, data, at)

    with direct_sink(folder / "direct") as sink:
        monkeypatch.setattr(os, "pwrite", noted)
        for _ in range(10):
            sink.writev([DATA[: 16 * PAGE], *zeros(16 * PAGE)])
        sink.writev([DATA[:MIB], *zeros(16 * PAGE)])
        sink.finish()
        assert {size for fd, size in written if fd == sink.fileno()} == {16 * PAGE}
        assert {size for fd, size in written if fd != sink.fileno()} == {MIB}
        os.fsync(sink.fileno())
    assert (folder / "direct").stat().st_blocks * 512 <= (10 * 16 + 256 + 2) * PAGE


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_direct_write_that_is_refused_late_goes_through_the_page_cache(folder, monkeypatch, number):
    pwrite = os.pwrite
    direct_fds = set()

    def picky(fd: int, data: memoryview, at: int) -> int:
        if fd in direct_fds and at >= 4 * MIB:
            raise OSError(number, os.strerror(number))
        return pwrite(fd, data, at)

    monkeypatch.setattr(os, "pwrite", picky)
    with NewFile(folder / "image", overwrite=True, cache=Cache.AUTO) as file:
        direct_fds.add(file.sink._direct_fd)
        file.sink.write(DATA)
        file.sync()
        assert file.cache is Cache.PAGE
        file.publish()
    assert (folder / "image").read_bytes() == DATA


@pytest.mark.parametrize("short", [lambda n: n // 2 // PAGE * PAGE, lambda n: n // 3, lambda n: 1000])
def test_short_writes_are_gone_on_with(folder, monkeypatch, short):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[: max(1, short(len(data)))], at))
    with NewFile(folder / "image", overwrite=True, cache=Cache.AUTO) as file:
        file.sink.write(DATA[: 5 * MIB + 5])
        file.sync()
        file.publish()
    assert (folder / "image").read_bytes() == DATA[: 5 * MIB + 5]


@pytest.mark.parametrize(
    ("number", "name", "words"),
    [
        (errno.ENOSPC, ErrorName.DISK_FULL, r"No space left on device, at byte 0x400000 = 4194304"),
        (errno.EIO, None, r"the device failed, at byte 0x400000 = 4194304"),
    ],
)
def test_a_write_that_fails_on_its_thread_is_told_with_its_place_and_leaves_nothing(
    folder, monkeypatch, number, name, words
):
    pwrite = os.pwrite

    def fail(fd: int, data: memoryview, at: int) -> int:
        if at >= 4 * MIB:
            raise OSError(number, os.strerror(number))
        return pwrite(fd, data, at)

    def use() -> None:
        with NewFile(folder / "failed", cache=Cache.AUTO) as file:
            for at in range(0, len(DATA), MIB):
                file.sink.write(DATA[at : at + MIB])
            file.sync()

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(TransportError, match=words) as caught:
        use()
    assert name is None or caught.value.name is name
    assert not [one for one in content_of(folder) if "failed" in one]


def test_after_a_failing_write_nobody_holds_the_buffers(folder, monkeypatch):
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with direct_sink(folder / "direct") as sink:
        monkeypatch.setattr(os, "pwrite", fail)
        view = memoryview(bytearray(DATA))
        with pytest.raises(TransportError, match="No space left") as caught:
            for _ in range(4):
                sink.writev([b"head", view, *zeros(20 * PAGE), b"tail"])
        view.release()
        assert caught.value.__traceback__ is not None


def test_a_signal_while_the_disk_is_waited_for_leaves_nothing(folder, monkeypatch):
    pwrite = os.pwrite

    def interrupting(fd: int, data: memoryview, at: int) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return pwrite(fd, data, at)

    def use() -> None:
        with NewFile(folder / "interrupted", cache=Cache.AUTO) as file:
            while True:
                file.sink.write(DATA)

    monkeypatch.setattr(os, "pwrite", interrupting)
    before = content_of(Path("/proc/self/fd"))
    with pytest.raises(Interrupted), handled():
        use()
    assert content_of(Path("/proc/self/fd")) == before
    assert not [one for one in content_of(folder) if "interrupted" in one]


def test_descriptors_and_threads_are_gone_afterwards(folder):
    before = content_of(Path("/proc/self/fd")), threading.active_count()
    with NewFile(folder / "image", overwrite=True, cache=Cache.AUTO) as file:
        file.sink.write(DATA)
        file.sync()
        file.publish()
    assert (content_of(Path("/proc/self/fd")), threading.active_count()) == before


def test_a_file_in_memory_is_written_through_the_page_cache():
    path = Path("/dev/shm") / f"direct-{os.getpid()}"
    with NewFile(path, cache=Cache.AUTO) as file:
        assert file.cache is Cache.PAGE
        file.sink.write(DATA[:100])


def test_a_file_system_that_compresses_gets_it_through_the_page_cache_unless_direct_is_asked_for(
    folder, monkeypatch
):
    monkeypatch.setattr(direct, "file_system_of", lambda _fd: "btrfs")
    for cache, found in ((Cache.AUTO, Cache.PAGE), (Cache.DIRECT, Cache.DIRECT)):
        with NewFile(folder / "image", overwrite=True, cache=cache) as file:
            assert file.cache is found


def test_direct_is_refused_in_memory_before_anything_is_touched():
    path = Path("/dev/shm") / f"direct-{os.getpid()}"
    words = "cannot be written by direct I/O: it is in memory; no changes were made"
    with pytest.raises(UsageError, match=words) as caught, NewFile(path, cache=Cache.DIRECT):
        pass
    assert [one.remedy for one in caught.value.remedies] == [Remedy.PAGE_CACHE]
    assert not list(path.parent.glob(f"*{path.name}*"))


@pytest.mark.parametrize("call", ["open", "pwrite"])
def test_direct_is_refused_where_the_file_system_does_not_take_it(tmp_path, monkeypatch, call):
    made = getattr(os, call)

    def fail(*arguments: object, **more: object) -> int:
        if call == "pwrite" or int(arguments[1]) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return made(*arguments, **more)

    monkeypatch.setattr(os, call, fail)
    monkeypatch.setattr(direct, "is_in_memory", lambda _fd: False)
    with (
        pytest.raises(UsageError, match="answers 'Invalid argument'; no changes were made"),
        NewFile(tmp_path / "out.img", cache=Cache.DIRECT),
    ):
        pass
    assert content_of(tmp_path) == []
    if call == "open":
        with NewFile(tmp_path / "out.img", cache=Cache.AUTO) as file:
            assert file.cache is Cache.PAGE


def test_direct_is_refused_for_what_is_no_file():
    with pytest.raises(UsageError, match="it is no regular file; no changes were made"):
        NewFile(Path("/dev/null"), cache=Cache.DIRECT)
    with NewFile(Path("/dev/null"), cache=Cache.AUTO) as file:
        assert file.cache is Cache.PAGE


@pytest.fixture
def small_disk(tmp_path):
    """An ext4 of 16 MiB."""
    program = shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if os.geteuid() != 0 or program is None:
        pytest.skip("a small disk takes root and mkfs.ext4 (e2fsprogs)")
    disk, mounted = tmp_path / "disk", tmp_path / "mounted"
    disk.write_bytes(bytes(16 * MIB))
    mounted.mkdir()
    subprocess.run([program, "-q", str(disk)], check=True)
    done = subprocess.run(
        ["mount", "-o", "loop", str(disk), str(mounted)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)


def test_a_disk_that_is_full_leaves_nothing_and_a_smaller_image_fits_afterwards(small_disk):
    def use() -> None:
        with NewFile(small_disk / "out.img", cache=Cache.DIRECT) as file:
            for _ in range(4):
                file.sink.writev([DATA, *zeros(MIB)])
            file.sync()

    with pytest.raises(TransportError, match=r"No space left on device, at byte 0x") as caught:
        use()
    assert caught.value.name is ErrorName.DISK_FULL
    assert [one.remedy for one in caught.value.remedies] == [Remedy.OTHER_PLACE]
    assert content_of(small_disk) == ["lost+found"]
    with NewFile(small_disk / "out.img", cache=Cache.DIRECT) as file:
        file.sink.writev([DATA, *zeros(20 * MIB)])  # the hole takes no room
        file.sync()
        file.publish()
    assert (small_disk / "out.img").read_bytes() == DATA + bytes(20 * MIB)
