"""Restores by the helper, driven by a fake libxl, into in-memory domains: every callback, signals, reports."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_libxl import RESTORE_CALLBACKS, FakeLibxl
from memory_guests import MAKERS, assert_same, image_of
from memory_kinds import MemoryHost

from saverestore.engine.settings import SaveSettings
from saverestore.errors import Advice, DomainError, ErrorName, ExitCode, ImageError, Remedy, remedies_of
from saverestore.helper import restoring, session
from saverestore.helper.arguments import RestoreArguments
from saverestore.helper.messages import Level, MessageType
from saverestore.stream.digest_algorithms import DigestAlgorithm
from saverestore.stream.records import Record, X86CpuidPolicy, X86MsrPolicy
from saverestore.stream.trailer import TrailerBuffer
from saverestore.stream.xl import XlHeader
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemoryRestore, MemorySave, empty_like
from saverestore.toolstack import config, known_bad, lock, neighbours
from saverestore.toolstack.helper_link import TASK_VARIABLE, HelperReport, Task, linked
from saverestore.transport import FdSink

DOMID = 7
SIGNALS = [signal.SIGTERM, signal.SIGINT]


class Restoring:
    """An image, the helper restoring it, and the libxl that asked for it."""

    def __init__(self, monkeypatch, tmp_path, kind: str, image: bytes, like: MemoryDomain) -> None:
        path = tmp_path / "image"
        path.write_bytes(image)
        self.fd = os.open(path, os.O_RDONLY)
        self.kind = kind
        self.guest = MemoryRestore(empty_like(like))
        self.libxl = FakeLibxl(RESTORE_CALLBACKS)
        self.environment: dict[str, str] = {}
        self.locks: list[tuple[object, ...]] = []
        self.claims: list[tuple[int, int]] = []
        monkeypatch.setattr(lock, "LOCK_DIR", tmp_path / "locks")
        info = SimpleNamespace(domid=DOMID, hvm=kind == "pvh", max_pages=like.nr_pfns, uuid=UUID(int=7))

        @contextmanager
        def handles(**_: bool) -> Iterator[SimpleNamespace]:
            store = SimpleNamespace(read=lambda _: kind)
            xen = SimpleNamespace(
                domain=lambda _: info,
                host=lambda: SimpleNamespace(total_pages=1 << 20),
                claim_pages=lambda *given: self.claims.append(given),
            )
            yield SimpleNamespace(xen=xen, store=store)

        monkeypatch.setattr(restoring, "open_handles", handles)
        monkeypatch.setattr(restoring, "restoring", self._restoring)
        monkeypatch.setattr(restoring, "this_host", lambda: MemoryHost(self.guest))

    @contextmanager
    def _restoring(self, *given: object) -> Iterator[None]:
        self.locks.append(given)
        yield

    def run(self) -> int:
        arguments = RestoreArguments(self.fd, -1, DOMID, 7, 0, 8, 0, self.libxl.callbacks, 0)
        try:
            return session.serve(arguments, self.libxl.channel(), self.environment, self.describe)
        finally:
            self.libxl.close()

    @staticmethod
    def describe(error: BaseException) -> str:
        return "; ".join([str(error), *(advice.remedy.name for advice in remedies_of(error))])

    def errors(self) -> str:
        return "\n".join(text for level, text in self.libxl.logged if level >= Level.ERROR)


@pytest.fixture(params=["pv", "pvh"])
def restored(request, monkeypatch, tmp_path):
    def make(change=lambda image: image) -> Restoring:
        domain = MAKERS[request.param]()
        image = image_of(MemorySave(domain))
        made = Restoring(monkeypatch, tmp_path, request.param, change(image), domain)
        made.saved, made.image_length = domain, len(image)
        return made

    return make


def test_a_restore_fills_the_domain_and_tells_where_its_rings_are(restored):
    restore = restored()
    assert restore.run() == 0
    static, results, complete = restore.libxl.messages
    assert static == (MessageType.STATIC_DATA_DONE, (0,))
    assert results[0] == MessageType.RESTORE_RESULTS
    assert 0 not in results[1]
    assert complete == (MessageType.COMPLETE, (0, 0))
    assert_same(restore.saved, restore.guest.domain)


def test_libxl_waits_for_the_helpers_memory_when_it_is_to_destroy_the_domain(restored, followed):
    assert restored().run() == 0
    assert followed == [True]
    damaged = restored(lambda image: image[:-1])
    assert damaged.run() == 0
    assert damaged.errors()
    assert followed == [True]


def test_not_a_byte_behind_the_stream_is_read(restored):
    restore = restored(lambda image: image + b"libxl's own records")
    assert restore.run() == 0
    assert os.lseek(restore.fd, 0, os.SEEK_CUR) == restore.image_length


BEHIND = b"libxl's own records"


def telling_of(data: bytes, kind: str) -> bytes:
    """An image whose digest covers that `data` follows."""
    sink = TrailerBuffer("image")
    sink.write(data)
    image = image_of(MemorySave(MAKERS[kind]()), SaveSettings(digest=DigestAlgorithm.XXH3), trailer=sink)
    return image[: len(image) - len(data)]


@pytest.mark.parametrize("kind", ["pv", "pvh"])
@pytest.mark.parametrize(
    "found", [BEHIND.replace(b"own", b"oWn"), BEHIND[:-1], b""], ids=["changed", "short", "gone"]
)
def test_a_file_that_is_damaged_behind_the_stream_is_refused_before_libxl_reads_there(
    monkeypatch, tmp_path, kind, found
):
    image = telling_of(BEHIND, kind)
    restore = Restoring(monkeypatch, tmp_path, kind, image + found, MAKERS[kind]())
    assert restore.run() == 0
    assert restore.libxl.said(MessageType.COMPLETE)[0][0] == -1
    assert "damaged behind the libxc stream" in restore.errors()


@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_a_file_that_is_as_told_behind_the_stream_is_restored(monkeypatch, tmp_path, kind):
    image = telling_of(BEHIND, kind)
    restore = Restoring(monkeypatch, tmp_path, kind, image + BEHIND + b"more", MAKERS[kind]())
    assert restore.run() == 0
    assert restore.errors() == ""
    assert os.lseek(restore.fd, 0, os.SEEK_CUR) == len(image)


class SaveByOldXen(MemorySave):
    """Xen before 4.14 had no CPU policy."""

    def static_records(self) -> list[Record]:
        policies = (X86CpuidPolicy, X86MsrPolicy)
        return [record for record in super().static_records() if not isinstance(record, policies)]


@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_libxl_is_told_what_an_old_image_lacks(monkeypatch, tmp_path, kind):
    image = image_of(SaveByOldXen(MAKERS[kind]()))
    restore = Restoring(monkeypatch, tmp_path, kind, image, MAKERS[kind]())
    assert restore.run() == 0
    assert restore.libxl.said(MessageType.STATIC_DATA_DONE) == [(3,)]


def test_a_policy_that_libxl_could_not_make_ends_the_restore(restored):
    restore = restored()
    restore.libxl.answers[MessageType.STATIC_DATA_DONE] = -1
    assert restore.run() == 0
    assert restore.libxl.said(MessageType.COMPLETE)[0][0] == -1
    assert "CPU policy" in restore.errors()


def test_a_damaged_image_is_told_with_its_place_and_with_empty_results(restored):
    restore = restored(lambda image: image[: len(image) // 2])
    assert restore.run() == 0
    assert restore.libxl.said(MessageType.RESTORE_RESULTS) == [(0, 0)]
    assert restore.libxl.said(MessageType.COMPLETE)[0][0] == -1
    assert "ends after" in restore.errors()


def test_an_image_of_the_other_kind_is_refused(restored):
    restore = restored()
    restore.guest, other = None, restore.guest
    assert other is not None
    info_kind = restoring.open_handles
    with info_kind() as handles:
        handles.xen.domain(DOMID).hvm ^= True
    assert restore.run() == 0
    assert restore.libxl.said(MessageType.COMPLETE)[0][0] == -1
    assert "but libxl made" in restore.errors()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_a_restore_is_told_as_eintr(restored, number):
    restore = restored()
    restore.guest.moments.on("write_pages", 0, lambda: os.kill(os.getpid(), number))
    assert restore.run() == 0
    assert restore.libxl.said(MessageType.COMPLETE) == [(-1, 4)]


def report_of(restore: Restoring) -> HelperReport:
    """What the helper leaves for whoever asked libxl to restore."""
    with linked(Task(image="web1.img", offset=0, header_digest=None, pages=24, name="web1")) as link:
        restore.environment[TASK_VARIABLE] = link.task.pack()
        assert restore.run() == 0
        return link.report()


def on_a_host_without_the_cpu(restore: Restoring) -> Restoring:
    def refuse(record: Record) -> None:
        raise ImageError(
            "a CPU is needed",
            name=ErrorName.CPU_FEATURES_MISSING,
            remedies=[Advice(Remedy.RESTORE_ON_OTHER_CPU)],
        )

    restore.guest.take = refuse
    return restore


def test_xl_prints_what_can_be_done_about_a_failure(restored):
    restore = on_a_host_without_the_cpu(restored())
    assert restore.run() == 0
    assert restore.errors() == "a CPU is needed; RESTORE_ON_OTHER_CPU"


def test_whoever_left_a_task_gets_what_can_be_done_in_the_report_alone(restored):
    restore = on_a_host_without_the_cpu(restored())
    error = report_of(restore).as_error()
    assert restore.errors() == "a CPU is needed"
    assert (error.name, error.remedies) == (
        ErrorName.CPU_FEATURES_MISSING,
        (Advice(Remedy.RESTORE_ON_OTHER_CPU),),
    )


def test_a_restore_is_reported_to_whoever_asked_libxl(restored):
    restore = restored()
    report = report_of(restore)
    assert report.as_error() is None
    assert report.pages > 0
    assert 0 < restore.image_length - report.stream_bytes < 64  # the headers before the records


@pytest.mark.parametrize(
    "text", ["{", "5", "[]", "{}", '{"header_digest": {"x": 1}}', '{"header_digest": null}']
)
def test_a_task_that_is_none_is_a_failure_that_libxl_is_told_of(restored, text):
    restore = restored()
    restore.environment[TASK_VARIABLE] = text
    assert restore.run() == 0
    assert "PYSAVE_TASK holds no task" in restore.errors()
    assert restore.libxl.said(MessageType.COMPLETE) == [(-1, errno.EINVAL)]


def test_words_that_cannot_be_found_for_a_failure_do_not_keep_libxl_waiting(restored, monkeypatch):
    restore = on_a_host_without_the_cpu(restored())
    monkeypatch.setattr(restore, "describe", lambda error: {}[error])
    assert restore.run() == 0
    assert restore.errors() == "a CPU is needed"
    assert restore.libxl.said(MessageType.COMPLETE) == [(-1, errno.EINVAL)]


def test_a_report_that_cannot_be_made_does_not_keep_libxl_waiting(restored, monkeypatch):
    restore = on_a_host_without_the_cpu(restored())
    monkeypatch.setattr(HelperReport, "failed", lambda *_: {}["no"])
    assert report_of(restore) == HelperReport()
    assert restore.libxl.said(MessageType.COMPLETE) == [(-1, errno.EINVAL)]


def test_a_report_of_another_version_is_an_error_all_the_same():
    report = HelperReport("no", ExitCode.IMAGE, "MOON_TOO_FULL", remedies=[("WAX", 1), ("TRY_AGAIN", None)])
    error = report.as_error()
    assert (type(error), str(error), error.name) == (ImageError, "no", ErrorName.UNEXPECTED)
    assert error.remedies == (Advice(Remedy.TRY_AGAIN),)


def test_a_helper_that_waits_has_loaded_all_that_a_restore_needs():
    code = (
        "import sys\n"
        "from saverestore.helper import session\n"
        "session.load_restore()\n"
        "loaded = set(sys.modules)\n"
        "from saverestore.guest.kinds import this_host\n"
        "for kind in ('pv', 'pvh', 'hvm'):\n"
        "    this_host().of_config(kind)\n"
        "print(*sorted(set(sys.modules) - loaded))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_failed_restore_is_reported_to_whoever_asked_libxl_with_its_exit_code(restored):
    report = report_of(restored(lambda image: image[: len(image) // 2]))
    assert report.exit_code == ExitCode.IMAGE
    assert report.error is not None
    assert "web1.img" in report.error
    assert report.records > 0


def test_under_xl_the_uuid_is_locked_and_under_ours_it_is_locked_already(restored):
    by_xl = restored()
    assert by_xl.run() == 0
    assert by_xl.locks == [(UUID(int=7), None)]
    by_us = restored()
    assert report_of(by_us).error is None
    assert by_us.locks == []


def test_the_memory_that_the_domain_will_take_is_kept_while_it_is_filled(restored):
    by_us = restored()
    assert report_of(by_us).error is None
    assert by_us.claims == [(DOMID, 24), (DOMID, 0)]
    by_xl = restored()
    assert by_xl.run() == 0
    assert by_xl.claims == []  # what its guest holds is not known: libxl looks after that


@pytest.mark.parametrize("asked_by_xl", [True, False])
def test_under_xl_a_pv_domain_is_not_restored_on_a_hypervisor_that_loses_registers(
    restored, monkeypatch, asked_by_xl
):
    restore = restored()
    monkeypatch.setattr(known_bad, "_bad", lambda *_: "this Xen loses r8 to r15")
    if not asked_by_xl:  # pyrestore has looked, and was perhaps forced
        restore.environment[TASK_VARIABLE] = Task("image", 0, None).pack()
    assert restore.run() == 0
    assert ("loses r8 to r15" in restore.errors()) is (asked_by_xl and restore.kind == "pv")


def image_of_xl(path: Path, kind: str, disk: Path, number: int) -> tuple[bytes, int]:
    """What `xl save` wrote of a domain on this disk, whose UUID is that number; and where its libxc stream begins."""
    found = {
        "c_info": {"type": kind, "name": "web1", "uuid": str(UUID(int=number))},
        "b_info": {"max_memkb": 4096},
        "disks": [{"vdev": "xvda", "pdev_path": str(disk), "readwrite": 1}],
    }
    with FdSink(os.open(path, os.O_WRONLY | os.O_CREAT), "image") as sink:
        XlHeader.write(sink, json.dumps(found).encode())
    front = path.read_bytes()
    return front + image_of(MemorySave(MAKERS[kind]())), len(front)


@pytest.mark.parametrize(("number", "is_kept"), [(7, True), (8, False)], ids=["the image's", "another one"])
def test_under_xl_the_disks_of_the_configuration_in_the_file_are_kept_from_other_restores(
    monkeypatch, tmp_path, number, is_kept
):
    disk = tmp_path / "web.disk"
    disk.write_bytes(bytes(512))
    image, begins = image_of_xl(tmp_path / "front", "pvh", disk, number)
    restore = Restoring(monkeypatch, tmp_path, "pvh", image, MAKERS["pvh"]())
    os.lseek(restore.fd, begins, os.SEEK_SET)
    copy = config.parse(image[image.index(b"{") : image.index(b"\0", image.index(b"{"))])
    refused: list[str] = []

    def second() -> None:
        try:
            with neighbours.disks_kept(copy, force=False):
                refused.append("")
        except DomainError as error:
            refused.append(str(error))

    restore.guest.moments.on("write_pages", 0, second)
    assert restore.run() == 0
    assert restore.errors() == ""
    assert [f"disk xvda: {disk}" in text for text in refused] == [is_kept]
    assert_same(MAKERS["pvh"](), restore.guest.domain)


def test_a_pipe_from_xl_is_not_looked_into_for_disks(monkeypatch, tmp_path):
    image, begins = image_of_xl(tmp_path / "front", "pvh", tmp_path / "web.disk", 7)
    restore = Restoring(monkeypatch, tmp_path, "pvh", image, MAKERS["pvh"]())
    os.close(restore.fd)
    with subprocess.Popen(
        ["tail", "-c", f"+{begins + 1}", tmp_path / "image"], stdout=subprocess.PIPE
    ) as tail:
        restore.fd = os.dup(tail.stdout.fileno())
        assert restore.run() == 0
    assert restore.errors() == ""
    assert_same(MAKERS["pvh"](), restore.guest.domain)
