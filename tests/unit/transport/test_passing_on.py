"""Bytes that nobody here needs to see go on from a source into a pipe: by the kernel, where it can."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

import pytest

from saverestore.errors import TransportError
from saverestore.transport import EndOfStream, FdSource
from saverestore.transport import relay as relay_module
from saverestore.transport.connection import pair
from saverestore.transport.relay import Relay

PATTERN = bytes(range(251)) * 9000  # more than two pipes hold


def socket_source() -> tuple[int, int]:
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def fed(make, data: bytes) -> FdSource:
    read_fd, write_fd = make()

    def work() -> None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(write_fd, "wb") as file:
            file.write(data)

    threading.Thread(target=work, daemon=True).start()
    return FdSource(read_fd, "the sender")


class Collected:
    """All that comes out of a pipe."""

    def __init__(self) -> None:
        self._read_end, self.write_end = os.pipe()
        self._data = b""
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        with os.fdopen(self._read_end, "rb") as file:
            self._data = file.read()

    def all(self) -> bytes:
        os.close(self.write_end)
        self._thread.join(10)
        return self._data


def no_splice(*_: object) -> int:
    raise OSError(22, "Invalid argument")


@pytest.mark.parametrize("make", [os.pipe, socket_source])
def test_so_many_are_moved_and_reading_goes_on_behind_them(make):
    out = Collected()
    with fed(make, PATTERN) as source:
        assert source.splice(out.write_end, len(PATTERN) - 10) == source.offset == len(PATTERN) - 10
        assert source.read(10) == PATTERN[-10:]
        assert source.splice(out.write_end, 0) == 0
    assert out.all() == PATTERN[:-10]


def test_a_source_that_ends_amid_them_tells_how_many_came():
    out = Collected()
    with fed(os.pipe, PATTERN) as source:
        assert source.splice(out.write_end, len(PATTERN) + 5) == len(PATTERN)
        with pytest.raises(EndOfStream):
            source.read(1)
    assert out.all() == PATTERN


def test_what_was_taken_from_the_descriptor_already_is_left_to_be_read():
    out = Collected()
    with fed(os.pipe, PATTERN) as source:
        source.peek(5)
        assert source.splice(out.write_end, 100) == 0
        assert source.read(5) == PATTERN[:5]
        assert source.splice(out.write_end, 95) == 95
    assert out.all() == PATTERN[5:100]


def test_where_a_descriptor_cannot_do_it_none_are_moved(monkeypatch):
    monkeypatch.setattr(os, "splice", no_splice)
    with fed(os.pipe, PATTERN) as source:
        assert source.splice(0, 100) == 0
        assert source.read(100) == PATTERN[:100]


def test_nobody_reads_any_more_and_that_is_not_the_source_s_fault():
    read_end, write_end = os.pipe()
    os.close(read_end)
    with fed(os.pipe, PATTERN) as source, pytest.raises(BrokenPipeError):
        source.splice(write_end, len(PATTERN))
    os.close(write_end)


def test_a_non_blocking_source_is_waited_for():
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    out = Collected()
    later = threading.Timer(0.1, lambda: (os.write(write_fd, b"late"), os.close(write_fd)))
    later.start()
    with FdSource(read_fd, "slow") as source:
        assert source.splice(out.write_end, 4) == 4
    later.join()
    assert out.all() == b"late"


@pytest.mark.parametrize("spliced", [True, False])
def test_a_relay_passes_on_what_is_skipped_and_what_is_read_in_one_order(monkeypatch, spliced):
    if not spliced:
        monkeypatch.setattr(os, "splice", no_splice)

    def follow(source) -> None:
        source.read(100)
        source.skip(len(PATTERN) - 200)
        source.readv([bytearray(60), bytearray(40)])

    with fed(os.pipe, PATTERN) as source, Relay(source, follow, head=b"head") as relay:
        with os.fdopen(os.dup(relay.fileno()), "rb") as file:
            assert file.read(4 + len(PATTERN)) == b"head" + PATTERN
        relay.finish()


class SlowEnd(FdSource):
    """It finds out that something is wrong at its end, and only when it is let go."""

    def __init__(self, fd: int, *, may_stay_open: bool) -> None:
        super().__init__(fd, "the sender")
        self.may_continue, self.may_stay_open = False, may_stay_open
        self.let_go = threading.Event()

    def at_end(self) -> bool:
        assert self.let_go.wait(20)
        raise TransportError("the end was never said")


def passed_by(source: FdSource) -> Relay:
    return Relay(source, lambda source: source.read(4))


def test_a_relay_ends_no_sooner_than_a_source_whose_waits_end_and_with_its_error(monkeypatch):
    monkeypatch.setattr(relay_module, "END_TIMEOUT_S", 0.1)
    read_fd, write_fd = os.pipe()
    os.write(write_fd, b"data")
    with SlowEnd(read_fd, may_stay_open=False) as source, passed_by(source) as relay:
        threading.Timer(0.5, source.let_go.set).start()
        with pytest.raises(TransportError, match="the end was never said"):
            relay.finish()
        assert not relay._thread.is_alive()
    os.close(write_fd)


def test_a_relay_leaves_its_block_no_sooner_than_such_a_source_ends(monkeypatch):
    monkeypatch.setattr(relay_module, "END_TIMEOUT_S", 0.1)
    read_fd, write_fd = os.pipe()
    os.write(write_fd, b"data")
    with SlowEnd(read_fd, may_stay_open=False) as source:
        with passed_by(source) as relay:
            threading.Timer(0.5, source.let_go.set).start()
        assert not relay._thread.is_alive()
    os.close(write_fd)


def test_a_relay_does_not_wait_for_ever_for_the_end_of_a_pipe_that_stays_open(monkeypatch):
    monkeypatch.setattr(relay_module, "END_TIMEOUT_S", 0.1)
    read_fd, write_fd = os.pipe()
    os.write(write_fd, b"data")
    with SlowEnd(read_fd, may_stay_open=True) as source:
        with passed_by(source) as relay:
            relay.finish()
        assert relay._thread.is_alive()
        source.let_go.set()
        relay._thread.join(20)
    os.close(write_fd)


def test_a_pipe_may_stay_open_and_a_connection_or_file_does_not(tmp_path):
    read_fd, write_fd = os.pipe()
    ours, theirs = pair()
    (tmp_path / "file").touch()
    with FdSource(read_fd, "pipe") as pipe, FdSource.open(str(tmp_path / "file")) as file, ours, theirs:
        incoming = ours.incoming
        assert isinstance(incoming, FdSource)
        found = [pipe.may_stay_open, file.may_stay_open, incoming.may_stay_open]
    assert found == [True, False, False]
    os.close(write_fd)
