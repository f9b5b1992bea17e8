"""Restoring by libxl: whatever comes when, a signal too, there is a domain or an error, never both."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

try:
    import pyxc  # noqa: F401
except ImportError as error:
    pytest.skip(f"needs the compiled binding: {error}", allow_module_level=True)

from saverestore.engine.progress import RestoreReport, Silence
from saverestore.errors import ImageError, Interrupted, SaveRestoreError
from saverestore.interrupts import handled
from saverestore.operations import restore_libxl
from saverestore.operations.image import opened
from saverestore.stream import DomainType, LibxcWriter, LibxlWriter, XlHeader
from saverestore.stream.libxl import CONTEXT_HEAD
from saverestore.toolstack.helper_link import HelperReport, Task, linked
from saverestore.transport import FdSink
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

    def restore(self, config, fd, task, tick):
        with os.fdopen(os.dup(fd), "rb") as file:
            self.read = file.read()
        self.meanwhile()
        tick()
        self.alive.add(DOMID)
        return DOMID, HelperReport(
            pages=1, stream_bytes=5, memory_s=0.25, complete_s=0.5, peak_memory_bytes=9
        )

    def unpause(self, domid):
        self.running.add(domid)

    def destroy_restored(self, domid):
        self.alive.discard(domid)


def write_head(sink) -> None:
    XlHeader.write(sink, json.dumps(CONFIG).encode())
    LibxlWriter(sink).libxc_context()
    LibxcWriter(sink, DomainType.X86_HVM, (4, 17))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "in.img"
    with FdSink(os.open(path, os.O_WRONLY | os.O_CREAT), str(path)) as sink:
        write_head(sink)
    return path


def restored_by(libxl: FakeLibxl, image: Path, *, paused: bool = False) -> RestoreReport:
    with opened(str(image)) as found:
        report = RestoreReport()
        restore_libxl.restore(
            libxl, found, found.config, Silence(), report, paused=paused, force=False, require_digest=False
        )
    return report


def test_libxl_gets_the_image_from_its_own_header_on(image: Path):
    libxl = FakeLibxl()
    restored_by(libxl, image)
    assert libxl.read.startswith(CONTEXT_HEAD)
    assert image.read_bytes().endswith(libxl.read)
    assert libxl.running == {DOMID}


def test_a_compressed_image_is_brought_to_it_decompressed(image: Path, tmp_path: Path):
    plain = image.read_bytes()
    path = tmp_path / "in.zst"
    with FdSink(os.open(path, os.O_WRONLY | os.O_CREAT), str(path)) as sink, ZstdSink(sink) as zstd:
        zstd.write(plain)
        zstd.finish()
    libxl = FakeLibxl()
    restored_by(libxl, path)
    assert plain.endswith(libxl.read)
    assert libxl.read.startswith(CONTEXT_HEAD)


def test_a_compressed_image_that_is_damaged_is_told_as_what_it_is(image: Path, tmp_path: Path):
    path = tmp_path / "in.zst"
    with FdSink(os.open(path, os.O_WRONLY | os.O_CREAT), str(path)) as sink, ZstdSink(sink) as zstd:
        zstd.write(image.read_bytes())
        zstd.finish()
    path.write_bytes(path.read_bytes() + b"more")
    libxl = FakeLibxl()
    with pytest.raises(ImageError) as caught:
        restored_by(libxl, path)
    assert "no domain was left behind" in caught.value.__notes__
    assert libxl.alive == set()


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_while_libxl_is_at_work_ends_it(image: Path):
    libxl = FakeLibxl(meanwhile=interrupt)
    with pytest.raises(Interrupted), handled():
        restored_by(libxl, image)
    assert libxl.alive == set()


def test_a_signal_when_libxl_has_just_made_the_domain_destroys_it(image: Path):
    class JustMade(FakeLibxl):
        def restore(self, config, fd, task, tick):
            made = super().restore(config, fd, task, tick)
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


def test_a_task_and_a_report_reach_the_other_side():
    task = Task("a.img", 1234, None, require_digest=True, check_cpu=False)
    with linked(task) as link:
        there = Task.of({"PYXC_TASK": link.task.pack()})
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
