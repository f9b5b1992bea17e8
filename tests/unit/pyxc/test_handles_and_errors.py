"""Errors, the guard that all handles share, and libxc's messages: as far as they go without a hypervisor."""

from __future__ import annotations

import errno
import logging
import os
import threading
from pathlib import Path

import numpy as np
import pytest

try:
    import pyxc
except ImportError as error:
    pytest.skip(f"needs the compiled binding: {error}", allow_module_level=True)

from pyxc import ClosedHandle, ForeignMemory, ForkedHandle, XenError, foreign
from pyxc._handle import Handle, check_rc
from pyxc._log import LIBXC, logger
from pyxc._xen import ffi, lib
from pyxc.foreign import Mapping

on_xen = Path("/proc/xen/capabilities").exists() or Path("/dev/xen/privcmd").exists()
needs_no_xen = pytest.mark.skipif(
    on_xen, reason="this is a Xen host; what happens without one is not to be seen"
)

MAX_MAP_COUNT = 65530  # Linux's own vm.max_map_count

# ---- errors --------------------------------------------------------------------------------------


def test_an_error_names_the_call_the_domain_and_the_errno():
    error = XenError("xc_domain_pause", errno.EPERM, domid=7)
    assert str(error) == "xc_domain_pause(domid=7): [EPERM] Operation not permitted"
    assert (error.call, error.domid, error.errno) == ("xc_domain_pause", 7, errno.EPERM)


def test_an_error_without_a_domain_names_none_and_detail_comes_last():
    error = XenError("xs_read", errno.EACCES, detail="/local/domain/0")
    assert str(error) == "xs_read(): [EACCES] Permission denied: /local/domain/0"


def test_domain_0_is_a_domain():
    assert "domid=0" in str(XenError("xc_domain_pause", errno.EPERM, domid=0))


def test_an_errno_that_has_no_name_is_told_as_a_number():
    assert str(XenError("xc_version", 12345)).startswith("xc_version(): [12345] ")


def test_a_xen_error_is_an_os_error_with_its_errno():
    with pytest.raises(OSError, match="ESRCH") as caught:
        raise XenError("xc_domain_getinfolist", errno.ESRCH, domid=9)
    assert caught.value.errno == errno.ESRCH


@pytest.mark.parametrize("rc", [0, 1, 2**40])
def test_a_result_that_is_not_negative_is_passed_on(rc):
    assert check_rc(rc, "xc_call") == rc


def test_a_negative_result_raises_with_the_errno_of_the_call_just_made():
    rc = lib.xc_interface_close(ffi.NULL)
    assert rc == 0
    ffi.errno = errno.EBUSY
    with pytest.raises(XenError, match=r"xc_call\(domid=3\): \[EBUSY\].*: why") as caught:
        check_rc(-1, "xc_call", 3, detail="why")
    assert caught.value.errno == errno.EBUSY


@needs_no_xen
@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (pyxc.Xen, "xc_interface_open"),
        (pyxc.ForeignMemory, "xenforeignmemory_open"),
        (pyxc.EventChannels, "xenevtchn_open"),
        (pyxc.XenStore, "xs_open"),
    ],
)
def test_opening_a_handle_without_xen_is_an_error_that_names_the_call(kind, call):
    with pytest.raises(XenError, match=f"{call}") as caught:
        kind()
    assert caught.value.errno
    assert caught.value.detail


# ---- handles -------------------------------------------------------------------------------------


class Opened(Handle):
    """A handle on nothing; counts how often it was given back."""

    def __init__(self) -> None:
        super().__init__(ffi.new("int *", 42))
        self.nr_closed = 0

    def _close(self, pointer: ffi.CData) -> None:
        assert pointer[0] == 42
        self.nr_closed += 1


def test_a_handle_is_closed_by_its_block_once():
    with Opened() as handle:
        assert not handle.closed
        assert handle.ptr[0] == 42
    assert handle.closed
    handle.close()
    assert handle.nr_closed == 1


def test_a_handle_is_closed_when_its_block_raises():
    handle = Opened()
    with pytest.raises(ZeroDivisionError), handle:
        raise ZeroDivisionError
    assert handle.nr_closed == 1


def test_a_closed_handle_says_so_by_its_name():
    handle = Opened()
    handle.close()
    with pytest.raises(ClosedHandle, match="Opened is closed"):
        _ = handle.ptr


def in_a_child(work) -> str:
    """What `work` returns in a forked process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, work().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        found = answer.read()
    os.waitpid(pid, 0)
    return found


def test_a_handle_is_dead_in_a_child_process_and_alive_in_its_own():
    handle = Opened()

    def use() -> str:
        try:
            return str(handle.ptr)
        except ForkedHandle as error:
            return f"ForkedHandle: {error}"

    assert in_a_child(use) == f"ForkedHandle: Opened was opened by process {os.getpid()}, not by this one"
    assert handle.ptr[0] == 42


def test_a_child_process_only_forgets_a_handle():
    handle = Opened()

    def close() -> str:
        handle.close()
        return f"{handle.closed} {handle.nr_closed}"

    assert in_a_child(close) == "True 0"
    handle.close()
    assert handle.nr_closed == 1


def test_a_forked_handle_is_a_kind_of_closed_one():
    assert issubclass(ForkedHandle, ClosedHandle)


# ---- mappings ------------------------------------------------------------------------------------


class Memory(Opened):
    """Stands in for ForeignMemory: it is closed, so that nothing is unmapped."""

    def __init__(self) -> None:
        super().__init__()
        self.close()


@pytest.fixture
def mapping():
    block = ffi.new("uint8_t[8192]")
    block[4096] = 9
    owner: ForeignMemory = Memory()  # type: ignore[assignment]
    return Mapping(owner, ffi.addressof(block, 0), np.zeros(2, dtype=np.int32)), block


def test_a_mapping_is_one_buffer_seen_as_pages_and_words_without_a_copy(mapping):
    mapped, block = mapping
    assert mapped.nr_pages == 2
    assert mapped.buffer.nbytes == 8192
    assert mapped.pages.shape == (2, 4096)
    assert mapped.words.shape == (1024,)
    assert mapped.pages[1, 0] == mapped.words[512] == 9
    block[0] = 7
    assert mapped.pages[0, 0] == 7


def test_a_mapping_that_was_closed_gives_no_buffer(mapping):
    mapped, _ = mapping
    mapped.close()
    mapped.close()
    with pytest.raises(ClosedHandle, match="mapping is closed"):
        _ = mapped.pages


class CountingLib:
    """What the library is told to unmap: (how often, of how many pages)."""

    def __init__(self) -> None:
        self.unmapped: list[int] = []

    def xenforeignmemory_open(self, _logger, _flags):
        return ffi.cast("xenforeignmemory_handle *", 1)

    def xenforeignmemory_close(self, _pointer):
        return 0

    def xenforeignmemory_unmap(self, _pointer, _address, nr_pages):
        self.unmapped.append(nr_pages)
        return 0


@pytest.fixture
def library(monkeypatch):
    made = CountingLib()
    monkeypatch.setattr(foreign, "lib", made)
    monkeypatch.setattr(foreign, "LINGERS_FROM_PAGES", 1)
    return made


def mapped(memory: ForeignMemory, nr_pages: int, *, may_linger: bool, first_gfn: int = 0) -> Mapping:
    frames = np.arange(first_gfn, first_gfn + nr_pages, dtype=np.uint64) if may_linger else None
    return Mapping(memory, ffi.NULL, np.zeros(nr_pages, dtype=np.int32), lingers_for=frames)


def test_a_closed_mapping_is_unmapped_at_once_unless_it_may_linger(library):
    with ForeignMemory() as memory:
        mapped(memory, 3, may_linger=False).close()
        assert library.unmapped == [3]
        lingering = mapped(memory, 5, may_linger=True)
        lingering.close()
        lingering.close()
        assert library.unmapped == [3]
        memory.unmap_lingering()
        memory.unmap_lingering()
        assert library.unmapped == [3, 5]


def test_what_lingers_is_unmapped_with_the_handle_at_the_latest(library):
    with ForeignMemory() as memory:
        mapped(memory, 5, may_linger=True).close()
        mapped(memory, 6, may_linger=True).close()
    assert library.unmapped == [5, 6]


def test_of_frames_that_are_taken_away_only_mappings_are_unmapped_that_may_have_one(library):
    with ForeignMemory() as memory:
        for first_gfn, nr_pages in ((0, 5), (5, 6), (11, 7)):
            mapped(memory, nr_pages, may_linger=True, first_gfn=first_gfn).close()
        memory.unmap_lingering(np.array([30, 11, 17], dtype=np.uint64))
        assert library.unmapped == [7]
        memory.unmap_lingering(np.array([10, 4], dtype=np.uint64))
        assert library.unmapped == [7, 5, 6]
        memory.unmap_lingering(np.array([4, 10, 12], dtype=np.uint64))
        assert library.unmapped == [7, 5, 6]


def test_no_more_lingers_than_this_process_has_page_tables_to_spare(library, monkeypatch):
    monkeypatch.setattr(foreign, "LINGERING_PAGES", 10)
    with ForeignMemory() as memory:
        for nr_pages in (6, 5, 4, 1):
            mapped(memory, nr_pages, may_linger=True).close()
        assert library.unmapped == [5, 1]
        memory.unmap_lingering()
        mapped(memory, 9, may_linger=True).close()
        assert library.unmapped == [5, 1, 6, 4]


def test_small_ones_do_not_linger_so_many_as_there_may_be(library, monkeypatch):
    monkeypatch.setattr(foreign, "LINGERS_FROM_PAGES", 64)
    with ForeignMemory() as memory:
        for nr_pages in (63, 64, 1):
            mapped(memory, nr_pages, may_linger=True).close()
        assert library.unmapped == [63, 1]
    assert foreign.LINGERING_PAGES // foreign.LINGERS_FROM_PAGES < MAX_MAP_COUNT - 1000  # for others


# ---- libxc's messages ----------------------------------------------------------------------------


def say(level: int, errno_value: int, context: bytes | None, text: bytes) -> None:
    """Through the logger's C side, as libxc does it: xentoollog calls back into Python."""
    context_c = ffi.new("char[]", context if context is not None else b"")
    lib.pyxc_log_message(level, errno_value, context_c, ffi.new("char[]", text))


@pytest.mark.parametrize(
    ("level", "wanted"),
    [(1, "DEBUG"), (5, "DEBUG"), (6, "INFO"), (7, "WARNING"), (8, "INFO"), (9, "ERROR"), (99, "INFO")],
)
def test_messages_of_libxc_go_to_logging_by_their_level(caplog, level, wanted):
    with caplog.at_level(logging.DEBUG, logger=LIBXC.name):
        say(level, -1, b"xc", b"panic: something")
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == (wanted, "xc: panic: something")


def test_an_errno_of_libxc_is_told_when_there_is_one(caplog):
    with caplog.at_level(logging.DEBUG, logger=LIBXC.name):
        say(7, errno.ENOMEM, b"xc", b"no room")
        say(7, 0, b"xc", b"fine")
    assert [record.getMessage() for record in caplog.records] == ["xc: no room (errno 12)", "xc: fine"]


def test_bytes_that_are_no_text_do_no_harm(caplog):
    with caplog.at_level(logging.DEBUG, logger=LIBXC.name):
        say(7, 0, b"xc", b"\xff\xfe 100% %s")
    assert caplog.records[0].getMessage() == "xc: �� 100% %s"


def test_messages_come_from_any_thread(caplog):
    with caplog.at_level(logging.DEBUG, logger=LIBXC.name):
        thread = threading.Thread(target=say, args=(7, 0, b"xc", b"from a worker"))
        thread.start()
        thread.join()
    assert [record.getMessage() for record in caplog.records] == ["xc: from a worker"]


@needs_no_xen
def test_libxc_prints_nothing_itself(capfd, caplog):
    with caplog.at_level(logging.DEBUG, logger=LIBXC.name), pytest.raises(XenError):
        pyxc.Xen()
    assert [record.name for record in caplog.records] == [LIBXC.name] * len(caplog.records)
    assert caplog.records
    out, error = capfd.readouterr()
    assert (out, error) == ("", "")


def test_there_is_one_logger_and_it_is_never_destroyed():
    assert logger() == logger() != ffi.NULL
