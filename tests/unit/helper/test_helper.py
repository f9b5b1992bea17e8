"""The helper as a whole, driven by a fake libxl, on in-memory domains: every callback, and signals in each phase."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_libxl import RESTORE_CALLBACKS, SAVE_CALLBACKS, FakeLibxl
from memory_guests import MAKERS, assert_same, image_of, restored_from
from memory_kinds import MemoryHost

from saverestore.cli import helper
from saverestore.engine.settings import SaveSettings
from saverestore.errors import Advice, ErrorName, ExitCode, ImageError, Remedy, remedies_of
from saverestore.guest.ports import LogDirty
from saverestore.guest.x86.hvm import log_dirty_with
from saverestore.helper import restoring, saving, session
from saverestore.helper.arguments import RestoreArguments, SaveArguments, SaveFlag
from saverestore.helper.channel import LibxlGone
from saverestore.helper.messages import Level, MessageType
from saverestore.process import ending
from saverestore.stream.digest_algorithms import DigestAlgorithm
from saverestore.stream.layout import DomainType
from saverestore.stream.records import Record, X86CpuidPolicy, X86MsrPolicy
from saverestore.stream.trailer import TrailerBuffer
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemoryRestore, MemorySave, empty_like
from saverestore.toolstack.helper_link import TASK_VARIABLE, HelperReport, Task, linked

DOMID = 7
SIGNALS = [signal.SIGTERM, signal.SIGINT]


class AskingSave(MemorySave):
    """An in-memory domain that libxl suspends, and whose device model libxl has."""

    def __init__(self, domain: MemoryDomain, channel, suspender) -> None:
        super().__init__(domain)
        self._channel = channel
        self._suspender = suspender

    def open_log_dirty(self) -> LogDirty:
        if self.domain_type == DomainType.X86_PV:
            return super().open_log_dirty()
        return log_dirty_with(saving.LibxlEmulator(self._channel, DOMID), super().open_log_dirty)

    def suspend(self) -> None:
        self._suspender.suspend()
        self.moments.reached("suspended")

    def resume(self) -> None:
        self._suspender.resume()


class Saved:
    """A domain, the helper saving it, and the libxl that asked for it."""

    def __init__(self, monkeypatch, tmp_path, kind: str, *, live: bool, dripping: bool = False) -> None:
        self.domain = MAKERS[kind]()
        self.image = tmp_path / "image"
        self.fd = os.open(self.image, os.O_RDWR | os.O_CREAT)
        self.libxl = FakeLibxl(SAVE_CALLBACKS, dripping=dripping)
        self.libxl.answers[MessageType.SUSPEND] = self._suspend
        self.flags = SaveFlag.LIVE if live else 0
        self.stream_type = 0
        self.guests: list[AskingSave] = []
        self.unmapped = 0
        self.resume = self.domain.resume
        self.on_guest = lambda guest: None
        monkeypatch.setattr(saving, "open_handles", self._handles)
        monkeypatch.setattr(saving, "_guest_of", self._guest_of)
        monkeypatch.setattr(saving, "name_of", lambda *_: "web1")
        monkeypatch.setattr(saving, "locked", lambda _: nullcontext())
        monkeypatch.setattr(saving, "Suspender", self._suspender_after_libxl)
        self.environment: dict[str, str] = {}

    def _suspend(self) -> int:
        self.domain.suspend()
        return 1

    def _suspender_after_libxl(self, *_: object, requested: bool) -> SimpleNamespace:
        assert requested
        return SimpleNamespace(resume=self.resume)

    @contextmanager
    def _handles(self, **_: bool) -> Iterator[SimpleNamespace]:
        xen = SimpleNamespace(domain=lambda _: SimpleNamespace(suspended=self.domain.suspended))
        yield SimpleNamespace(xen=xen, store=None, memory=SimpleNamespace(unmap_lingering=self._unmap))

    def _unmap(self) -> None:
        self.unmapped += 1

    def _guest_of(self, channel, _handles, _domid, suspender) -> AskingSave:
        guest = AskingSave(self.domain, channel, suspender)
        self.guests.append(guest)
        self.on_guest(guest)
        return guest

    def run(self) -> int:
        """The helper's exit code; it has let go of everything by then."""
        arguments = SaveArguments(self.fd, -1, DOMID, self.flags, self.libxl.callbacks, self.stream_type)
        try:
            return session.serve(arguments, self.libxl.channel(), self.environment)
        finally:
            self.libxl.close()
            assert all(guest.buffers.nr_open == 0 for guest in self.guests)

    def errors(self) -> str:
        """What was logged as an error."""
        return "\n".join(text for level, text in self.libxl.logged if level >= Level.ERROR)


@pytest.fixture(autouse=True)
def logging_as_before(monkeypatch):
    """The helper owns its process, and its log. Here that must not outlive the test."""
    loggers = (logging.getLogger(), logging.getLogger("pyxc.libxc"))
    levels = [logger.level for logger in loggers]
    monkeypatch.setattr(loggers[0], "handlers", [])
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def followed(monkeypatch) -> list[bool]:
    """Whether libxl need not wait for the memory of the helper's process: an entry each time that is said."""
    said: list[bool] = []
    monkeypatch.setattr(ending, "let_memory_follow", lambda: said.append(True))
    return said


@pytest.fixture
def saved(monkeypatch, tmp_path):
    return lambda kind, **how: Saved(monkeypatch, tmp_path, kind, **how)


@pytest.mark.parametrize("dripping", [False, True])
@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_a_save_asks_in_order_and_writes_the_whole_domain(saved, kind, live, dripping):
    save = saved(kind, live=live, dripping=dripping)
    assert save.run() == 0
    qemu = [(MessageType.SWITCH_QEMU_LOGDIRTY, (DOMID, 1))] if live and kind == "pvh" else []
    off = [(MessageType.SWITCH_QEMU_LOGDIRTY, (DOMID, 0))] if live and kind == "pvh" else []
    assert save.libxl.messages == [
        *qemu,
        (MessageType.SUSPEND, ()),
        *off,
        (MessageType.COMPLETE, (0, 0)),
    ]
    assert save.domain.suspended
    assert save.errors() == ""
    assert_same(save.domain, restored_from(save.image.read_bytes(), save.domain))


@pytest.mark.parametrize("live", [False, True])
def test_libxl_waits_for_the_helpers_memory_unless_nothing_of_the_domain_is_in_it(saved, followed, live):
    """Of a save that is not live all of it is mapped at the end, and libxl may destroy the domain next."""
    save = saved("pvh", live=live)
    assert save.run() == 0
    assert (save.unmapped, followed) == ((1, [True]) if live else (0, []))


def test_libxl_waits_for_the_helpers_memory_after_a_save_that_failed(saved, followed):
    save = saved("pvh", live=True)
    save.libxl.answers[MessageType.SUSPEND] = 0
    assert save.run() == 0
    assert followed == []


@pytest.mark.parametrize("answer", [0, -1, 2])
def test_a_domain_that_libxl_could_not_suspend_is_a_failure_that_is_told(saved, answer):
    save = saved("pvh", live=True)
    save.libxl.answers[MessageType.SUSPEND] = answer
    assert save.run() == 0
    assert save.libxl.said(MessageType.COMPLETE)[0][0] == -1
    assert f"answered {answer}" in save.errors()
    assert not save.domain.suspended
    assert save.libxl.said(MessageType.SWITCH_QEMU_LOGDIRTY) == [(DOMID, 1), (DOMID, 0)]


def test_success_without_a_suspended_domain_is_not_believed(saved):
    save = saved("pv", live=False)
    save.libxl.answers[MessageType.SUSPEND] = 1
    assert save.run() == 0
    assert save.libxl.said(MessageType.COMPLETE)[0][0] == -1
    assert "not suspended" in save.errors()


def test_a_device_model_that_does_not_log_ends_the_save_before_anything_is_sent(saved):
    save = saved("pvh", live=True)
    save.libxl.answers[MessageType.SWITCH_QEMU_LOGDIRTY] = -1
    assert save.run() == 0
    assert save.libxl.types() == [MessageType.SWITCH_QEMU_LOGDIRTY, MessageType.COMPLETE]
    assert "device model" in save.errors()
    assert save.image.read_bytes() == b""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "moment",
    ["open_log_dirty", "static_records", "read_pages", "log_dirty.take", "suspended", "end_records"],
)
def test_a_signal_in_any_phase_is_told_as_eintr_with_log_dirty_off(saved, moment, number):
    save = saved("pvh", live=True)

    def send() -> None:
        os.kill(os.getpid(), number)

    save.on_guest = lambda guest: guest.moments.on(moment, 0, send)
    assert save.run() == 0
    (complete,) = save.libxl.said(MessageType.COMPLETE)
    assert complete == (-1, 4)
    assert "interrupted by" in save.errors()
    switched = save.libxl.said(MessageType.SWITCH_QEMU_LOGDIRTY)
    assert switched in ([], [(DOMID, 1), (DOMID, 0)])
    assert save.domain.dirty is None


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_libxl_suspends_waits_for_its_answer(saved, number):
    save = saved("pvh", live=True)

    def suspend() -> int:
        os.kill(os.getpid(), number)
        save.domain.suspend()
        return 1

    save.libxl.answers[MessageType.SUSPEND] = suspend
    assert save.run() == 0
    assert save.libxl.said(MessageType.COMPLETE) == [(-1, 4)]
    assert save.domain.suspended  # libxl's to resume: it is there


@pytest.mark.parametrize("when", [MessageType.SUSPEND, MessageType.COMPLETE])
def test_a_domain_whose_xl_is_killed_is_resumed(saved, when):
    save = saved("pvh", live=True)
    save.libxl.before[MessageType.SUSPEND] = save.domain.suspend
    save.libxl.answers[MessageType.SUSPEND] = 1
    save.libxl.dies_at = when
    with pytest.raises(LibxlGone) as gone:
        save.run()
    assert gone.value.exit_code == ExitCode.IO
    assert gone.value.__notes__[-1] == "domain 7 is running again"
    assert not save.domain.suspended
    assert save.domain.dirty is None


def test_a_domain_that_cannot_be_resumed_once_xl_is_killed_is_named(saved):
    def refused() -> None:
        raise OSError(errno.EPERM, "not permitted")

    save = saved("pvh", live=True)
    save.libxl.before[MessageType.SUSPEND] = save.domain.suspend
    save.libxl.dies_at = MessageType.SUSPEND
    save.resume = refused
    with pytest.raises(
        session.NotResumed, match=r"libxl .*; domain 7 could not be resumed: .*not perm"
    ) as gone:
        save.run()
    assert gone.value.remedies == (Advice(Remedy.RECOVER, DOMID),)
    assert save.domain.suspended


def test_a_domain_that_libxl_was_not_asked_to_suspend_is_left_alone_when_xl_is_killed(saved):
    save = saved("pvh", live=True)
    save.libxl.dies_at = MessageType.SWITCH_QEMU_LOGDIRTY
    with pytest.raises(LibxlGone) as gone:
        save.run()
    assert not hasattr(gone.value, "__notes__")


def test_a_full_disk_is_told_with_its_errno(saved):
    save = saved("pv", live=False)
    os.dup2(os.open("/dev/full", os.O_WRONLY), save.fd)
    assert save.run() == 0
    assert save.libxl.said(MessageType.COMPLETE) == [(-1, 28)]
    assert "No space left" in save.errors()


@pytest.mark.parametrize(
    ("change", "what"), [({"stream_type": 1}, "checkpointed"), ({"callbacks": 0}, "no callback to suspend")]
)
def test_what_it_cannot_do_is_refused_before_the_domain_is_touched(saved, change, what):
    save = saved("pv", live=False)
    save.stream_type = change.get("stream_type", 0)
    save.libxl.callbacks = change.get("callbacks", SAVE_CALLBACKS)
    assert save.run() == 0
    assert save.libxl.types() == [MessageType.COMPLETE]
    assert what in save.errors()


def test_settings_that_make_no_sense_are_told_to_libxl(saved):
    save = saved("pv", live=False)
    save.environment["PYXC_DIRTY"] = "perhaps"
    assert save.run() == 0
    assert save.libxl.said(MessageType.COMPLETE)[0][0] == -1
    assert "$PYXC_DIRTY: dirty is 'perhaps'" in save.errors()


def test_without_a_log_of_written_pages_live_is_by_digests(saved):
    save = saved("pvh", live=True)
    save.on_guest = lambda guest: setattr(guest, "_has_log_dirty", False)
    assert save.run() == 0
    assert save.libxl.types() == [MessageType.SUSPEND, MessageType.COMPLETE]
    assert any("content digests" in text for _, text in save.libxl.logged)


# ---- restore -----------------------------------------------------------------------------------------


class Restoring:
    """An image, the helper restoring it, and the libxl that asked for it."""

    def __init__(self, monkeypatch, tmp_path, kind: str, image: bytes, like: MemoryDomain) -> None:
        path = tmp_path / "image"
        path.write_bytes(image)
        self.fd = os.open(path, os.O_RDONLY)
        self.guest = MemoryRestore(empty_like(like))
        self.libxl = FakeLibxl(RESTORE_CALLBACKS)
        self.environment: dict[str, str] = {}
        info = SimpleNamespace(domid=DOMID, hvm=kind == "pvh", max_pages=like.nr_pfns)

        @contextmanager
        def handles(**_: bool) -> Iterator[SimpleNamespace]:
            store = SimpleNamespace(read=lambda _: kind)
            yield SimpleNamespace(xen=SimpleNamespace(domain=lambda _: info), store=store)

        monkeypatch.setattr(restoring, "open_handles", handles)
        monkeypatch.setattr(restoring, "this_host", lambda: MemoryHost(self.guest))

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
    with linked(Task(image="web1.img", offset=0, header_digest=None)) as link:
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
    assert "PYXC_TASK holds no task" in restore.errors()
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


# ---- the command -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "not by hand"),
        (["--save"], "not by hand"),
        (["--save-domain", "1", "2"], "2 numbers, not 6"),
        (["--save-domain", "999", "-1", "1", "0", "136", "0"], "descriptor 999 is not open"),
        (["--restore-domain", "x", "-1", "1", "1", "0", "2", "0", "768", "0"], "invalid literal"),
    ],
)
def test_started_by_hand_it_says_what_it_is_for(words, what, capsys):
    assert helper.main(words) == 2
    said = capsys.readouterr()
    assert what in said.err
    assert said.out == ""


SAVE_WORDS = ["--save-domain", "2", "-1", "7", "0", "0", "0"]


def as_a_process(stdin: int, stdout: int) -> tuple[int, bytes]:
    """The exit code and standard error of the command, which fails by its settings as soon as it works."""
    done = subprocess.run(
        [sys.executable, "-m", helper.__name__, *SAVE_WORDS],
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYXC_DIRTY": "perhaps"},
        check=False,
    )
    return done.returncode, done.stderr


def test_as_a_process_it_reports_its_failure_to_libxl_and_nowhere_else():
    libxl = FakeLibxl(0)
    done = as_a_process(libxl.helper_reads, libxl.helper_writes)
    libxl.close()
    assert done == (0, b"")
    assert libxl.messages == [(MessageType.COMPLETE, (-1, errno.EINVAL))]
    assert "$PYXC_DIRTY: dirty is 'perhaps'" in libxl.logged[-1][1]


def test_a_process_whose_libxl_is_gone_says_so_on_standard_error():
    gone, pipe = os.pipe()
    os.close(gone)
    done = as_a_process(subprocess.DEVNULL, pipe)
    os.close(pipe)
    assert done == (5, b"pyxc-save-helper: libxl takes no more messages: Broken pipe\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            session.NotResumed("libxl went away", remedies=[Advice(Remedy.RECOVER, 7)]),
            "libxl went away; 'pysave --recover 7' puts it right and resumes it",
        ),
        (LibxlGone("libxl went away"), "libxl went away"),
    ],
)
def test_a_domain_that_stays_suspended_comes_with_what_to_do(monkeypatch, capsys, error, said):
    def run(words: list[str], describe: session.Describe) -> int:
        raise error

    monkeypatch.setattr(session, "run", run)
    assert helper.main(SAVE_WORDS) == ExitCode.IO
    assert capsys.readouterr().err == f"pyxc-save-helper: {said}\n"


def test_threads_are_gone_when_it_is_done(saved):
    save = saved("pv", live=True)
    save.run()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("pages")] == []
