"""Restoring by libxl: whatever comes when, a signal too, there is a domain or an error, never both."""

from __future__ import annotations

import errno
import json
import os
import signal
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

try:
    import pyxc  # noqa: F401
except ImportError as error:
    pytest.skip(f"needs the compiled binding: {error}", allow_module_level=True)

from fake_host import FakeHost

from saverestore.engine.progress import RestoreReport, Silence
from saverestore.errors import ImageError, Interrupted, Remedy, SaveRestoreError, XenRefused, remedies_of
from saverestore.guest.common.handles import XenError
from saverestore.interrupts import handled
from saverestore.operations.image import opened
from saverestore.operations.requests import RestoreRequest
from saverestore.operations.restore_libxl import RestoringByLibxl
from saverestore.stream import DomainType, LibxcWriter, LibxlWriter, XlHeader
from saverestore.stream.digest_algorithms import DigestAlgorithm
from saverestore.stream.digest_written import WrittenDigest
from saverestore.stream.header_digest import integrity_fields
from saverestore.stream.layout import entries_of
from saverestore.stream.libxl import CONTEXT_HEAD, EmulatorId, EmulatorState, LibxlRecordType
from saverestore.stream.records import HvmContext, Provenance, StaticDataEnd
from saverestore.stream.trailer import TrailerBuffer
from saverestore.toolstack.helper_link import HelperReport, Task, linked
from saverestore.transport import FdSink, FdSource
from saverestore.transport.zstd_sink import ZstdSink

CONFIG = {
    "c_info": {"type": "pvh", "name": "web1", "uuid": "00000000-0000-4000-8000-000000000001"},
    "b_info": {"max_vcpus": 1, "max_memkb": 4096},
}
DOMID = 7


class FakeLibxl:
    """Reads the image to its end, as libxl and the helper do; `meanwhile` is called before it is done."""

    def __init__(self, meanwhile=lambda: None) -> None:
        self.meanwhile = meanwhile
        self.alive: set[int] = set()
        self.running: set[int] = set()
        self.read = b""

    def restore(self, config, fd, task, tick, measured, helper):
        with os.fdopen(os.dup(fd), "rb") as file:
            self.read = file.read()
        self.meanwhile()
        tick()
        self.alive.add(DOMID)
        measured(HelperReport(pages=1, stream_bytes=5, memory_s=0.25, complete_s=0.5, peak_memory_bytes=9))
        return DOMID

    def unpause(self, domid):
        self.running.add(domid)

    def destroy_restored(self, domid):
        self.alive.discard(domid)


STATE = EmulatorState(EmulatorId.QEMU_UPSTREAM, 0, b"QEVM").pack()
TAIL_BYTES = 8 + len(STATE) + 4 + 8  # libxl's record with its padding, and its END


def write_image(sink) -> None:
    XlHeader.write(sink, json.dumps(CONFIG).encode())
    outer = LibxlWriter(sink)
    outer.libxc_context()
    behind = TrailerBuffer("image")
    outer.continue_in(behind)
    outer.record(LibxlRecordType.EMULATOR_CONTEXT, STATE)
    outer.end()
    with WrittenDigest(DigestAlgorithm.XXH3) as digest:
        writer = LibxcWriter(sink, DomainType.X86_HVM, (4, 17), digest=digest)
        writer.record(Provenance({"integrity": integrity_fields(DigestAlgorithm.XXH3, None)}))
        writer.record(StaticDataEnd())
        writer.page_data(entries_of(np.arange(3), np.array([0, 0, 15])), [bytes(8192)])
        writer.record(HvmContext(b"context"))
        writer.end(behind.following())
    behind.write_to(sink)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "in.img"
    with FdSink(os.open(path, os.O_WRONLY | os.O_CREAT), str(path)) as sink:
        write_image(sink)
    return path


def restored_by(
    libxl: FakeLibxl, image: Path, *, paused: bool = False, report: RestoreReport | None = None
) -> RestoreReport:
    report = report or RestoreReport()
    request = RestoreRequest(str(image), paused=paused)
    with (
        opened(str(image)) as found,
        RestoringByLibxl(FakeHost(), libxl, found, request, {}) as restoring,
    ):
        restoring.fill(Silence(), report)
        assert libxl.running == set()
        restoring.activate()
    return report


def test_a_domain_that_was_filled_and_not_activated_is_destroyed(image: Path):
    libxl = FakeLibxl()
    with opened(str(image)) as found:
        request = RestoreRequest(str(image))
        with RestoringByLibxl(FakeHost(), libxl, found, request, {}) as restoring:
            assert restoring.fill(Silence(), RestoreReport()) == DOMID
            assert libxl.alive == {DOMID}
        assert libxl.alive == set()


def test_libxl_gets_the_image_from_its_own_header_on(image: Path):
    libxl = FakeLibxl()
    restored_by(libxl, image)
    assert libxl.read.startswith(CONTEXT_HEAD)
    assert image.read_bytes().endswith(libxl.read)
    assert libxl.running == {DOMID}


def compressed(plain: bytes, path: Path) -> Path:
    with (
        FdSink(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), str(path)) as sink,
        ZstdSink(sink, workers=1) as zstd,
    ):
        zstd.write(plain)
        zstd.finish()
    return path


def test_a_compressed_image_is_brought_to_it_decompressed(image: Path, tmp_path: Path):
    plain = image.read_bytes()
    libxl = FakeLibxl()
    restored_by(libxl, compressed(plain, tmp_path / "in.zst"))
    assert plain.endswith(libxl.read)
    assert libxl.read.startswith(CONTEXT_HEAD)


def assert_refused(image: Path, message: str | None = None) -> None:
    libxl = FakeLibxl()
    with pytest.raises(ImageError, match=message) as caught:
        restored_by(libxl, image)
    assert "no domain was left" in caught.value.__notes__
    assert libxl.alive == libxl.running == set()


def test_a_compressed_image_that_is_damaged_is_told_as_what_it_is(image: Path, tmp_path: Path):
    path = compressed(image.read_bytes(), tmp_path / "in.zst")
    path.write_bytes(path.read_bytes() + b"more")
    assert_refused(path)


def test_no_changed_byte_of_a_device_models_state_gets_a_domain_to_run(image: Path, tmp_path: Path):
    plain = image.read_bytes()
    for place in range(len(plain) - TAIL_BYTES, len(plain)):
        changed = bytearray(plain)
        changed[place] ^= 1 << place % 8
        assert_refused(compressed(bytes(changed), tmp_path / "in.zst"))
    changed = plain.replace(b"QEVM", b"QEMV")
    assert_refused(
        compressed(changed, tmp_path / "in.zst"), "damaged behind the libxc stream, from byte 0x.* XXH3-128"
    )


def test_no_truncated_device_models_state_gets_a_domain_to_run(image: Path, tmp_path: Path):
    plain = image.read_bytes()
    for length in range(len(plain) - TAIL_BYTES, len(plain)):
        assert_refused(compressed(plain[:length], tmp_path / "in.zst"), "ends after")


def test_what_comes_through_a_pipe_is_followed_as_well(image: Path, monkeypatch: pytest.MonkeyPatch):
    for change in (lambda data: data, lambda data: data.replace(b"QEVM", b"QEMV")):
        data = change(image.read_bytes())
        read_end, write_end = os.pipe()
        os.write(write_end, data)  # less than a pipe holds
        os.close(write_end)
        libxl = FakeLibxl()
        refused = pytest.raises(ImageError) if b"QEMV" in data else nullcontext()
        with FdSource(read_end, "a pipe") as source, refused:
            monkeypatch.setattr(FdSource, "open", lambda _, source=source: source)
            restored_by(libxl, Path("-"))
        assert libxl.running == (set() if b"QEMV" in data else {DOMID})


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_while_libxl_is_at_work_ends_it(image: Path):
    libxl = FakeLibxl(meanwhile=interrupt)
    with pytest.raises(Interrupted), handled():
        restored_by(libxl, image)
    assert libxl.alive == set()


def test_a_signal_that_ends_the_helper_first_is_what_is_told(image: Path):
    class HelperEnded(FakeLibxl):
        def restore(self, config, fd, task, tick, measured, helper):
            interrupt()
            raise XenRefused("the helper died due to fatal signal Interrupt")

    with pytest.raises(Interrupted) as caught, handled():
        restored_by(HelperEnded(), image)
    assert "no domain was left" in caught.value.__notes__


def test_a_signal_when_libxl_has_just_made_the_domain_destroys_it(image: Path):
    class JustMade(FakeLibxl):
        def restore(self, config, fd, task, tick, measured, helper):
            made = super().restore(config, fd, task, tick, measured, helper)
            interrupt()
            return made

    libxl = JustMade()
    with pytest.raises(Interrupted), handled():
        restored_by(libxl, image)
    assert libxl.alive == set()
    assert libxl.running == set()


def test_a_domain_that_is_to_stay_paused_does(image: Path):
    libxl = FakeLibxl()
    restored_by(libxl, image, paused=True)
    assert libxl.alive == {DOMID}
    assert libxl.running == set()


def test_what_the_helper_measured_is_in_the_report(image: Path):
    report = restored_by(FakeLibxl(), image)
    assert (report.pages, report.stream_bytes, report.peak_memory_bytes) == (1, 5, 9)
    assert (report.memory_s, report.complete_s, report.create_s) == (0.25, 0.5, 0.0)
    assert report.total_s > report.start_s >= 0


def test_what_the_helper_measured_before_it_failed_is_in_the_report_too(image: Path):
    class Failing(FakeLibxl):
        def restore(self, config, fd, task, tick, measured, helper):
            measured(HelperReport(error="damaged", exit_code=4, pages=3, memory_s=0.25))
            raise ImageError("damaged")

    report = RestoreReport()
    with pytest.raises(ImageError):
        restored_by(Failing(), image, report=report)
    assert (report.pages, report.memory_s) == (3, 0.25)


def test_a_task_and_a_report_reach_the_other_side():
    task = Task("a.img", 1234, None, require_digest=True, check_cpu=False)
    with linked(task) as link:
        there = Task.of({"PYSAVE_TASK": link.task.pack()})
        assert there == link.task
        HelperReport(error="damaged", exit_code=4).leave(there.report)
        error = link.report().as_error()
    assert isinstance(error, ImageError)
    assert str(error) == "damaged"
    assert Task.of({}) is None


def test_a_helper_that_left_no_report_has_told_no_error():
    with linked(Task("a.img", 0, None)) as link:
        assert link.report().as_error() is None
    assert isinstance(HelperReport(error="?", exit_code=99).as_error(), SaveRestoreError)


class Undestroyable(FakeLibxl):
    """A domain is there, and libxl can neither start nor destroy it."""

    def unpause(self, domid):
        raise XenError("libxl_domain_unpause", errno.EIO)

    def destroy_restored(self, domid):
        raise XenError("libxl_domain_destroy", errno.EIO)


@pytest.mark.parametrize(
    ("domid_of", "note"),
    [
        (lambda _uuid: DOMID, "domain 7 is incomplete, and could not be destroyed (libxl_domain_destroy"),
        (lambda _uuid: None, "no domain was left"),
    ],
)
def test_a_domain_that_could_not_be_destroyed_is_reported(image: Path, domid_of, note: str):
    host = FakeHost()
    host.domid_of = domid_of
    with (
        pytest.raises(XenRefused, match="could not be started") as caught,
        opened(str(image)) as found,
        RestoringByLibxl(host, Undestroyable(), found, RestoreRequest(str(image)), {}) as restoring,
    ):
        restoring.fill(Silence(), RestoreReport())
        restoring.activate()
    assert note in " ".join(caught.value.__notes__)
    assert bool(remedies_of(caught.value)) is (host.domid_of(None) is not None)


def test_a_domain_that_libxl_itself_left_is_reported(image: Path):
    class Failing(FakeLibxl):
        def restore(self, config, fd, task, tick, measured, helper):
            raise XenRefused("libxl could not destroy it")

    host = FakeHost()
    host.domid_of = lambda _uuid: 9
    with (
        pytest.raises(XenRefused) as caught,
        opened(str(image)) as found,
        RestoringByLibxl(host, Failing(), found, RestoreRequest(str(image)), {}) as restoring,
    ):
        restoring.fill(Silence(), RestoreReport())
    # Not "incomplete": it may be somebody else's, and must not be destroyed unseen.
    assert (
        "domain 9 has the image's UUID, and may be an incomplete one that was left" in caught.value.__notes__
    )
    assert [one.remedy for one in remedies_of(caught.value)] == [Remedy.LIST_DOMAINS]
