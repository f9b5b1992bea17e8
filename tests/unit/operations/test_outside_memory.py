"""What a suspended domain has outside its memory: its disks are noted, and a command can snapshot them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import contextmanager
from types import SimpleNamespace
from uuid import UUID

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_host import FakeHost, FakeToolstack
from memory_guests import MAKERS

from saverestore.engine.progress import DomainState, SaveReport, Silence
from saverestore.errors import Advice, DomainError, ErrorName, Interrupted, Remedy, fact_of
from saverestore.interrupts import handled
from saverestore.operations import image_fit, while_suspended
from saverestore.operations.requests import FinalState, SaveRequest
from saverestore.operations.save import save_domain
from saverestore.stream import LibxlReader, XlHeader
from saverestore.stream.survey import survey
from saverestore.testing.guest import MemorySave
from saverestore.toolstack import disks
from saverestore.toolstack.condition import Condition, Found
from saverestore.transport.opening import open_image

DISK = {"vdev": "xvda", "path": "/disks/web1.img", "bytes": 1 << 20, "mtime_ns": 5, "written": "1970-01-01"}


@pytest.fixture
def guest():
    made = MemorySave(MAKERS["pvh"]())
    yield made
    made.close()


@pytest.fixture
def host(guest):
    return FakeHost(guest, FakeToolstack())


def save(tmp_path, host, command: str | None = None, **how: object) -> SaveReport:
    request = SaveRequest("web1", str(tmp_path / "a.img"), while_suspended=command, **how)
    report = SaveReport()
    save_domain(request, Silence(), report, host=host)
    return report


@pytest.mark.parametrize("how", [{}, {"compress": 1}, {"digest": "none"}], ids=str)
def test_the_image_notes_what_its_disks_were_and_a_digest_covers_it(tmp_path, host, how):
    host.disks = [DISK]
    save(tmp_path, host, **how)
    with open_image(str(tmp_path / "a.img")) as source:
        found = survey(source)
    assert found.is_whole
    assert found.disks == [DISK]
    assert host.settled == [[DISK]]


@pytest.mark.parametrize(("disks_now", "how"), [([DISK], {"plain": True}), ([], {})], ids=str)
def test_without_disks_or_in_a_plain_image_there_is_no_such_record(tmp_path, host, disks_now, how):
    host.disks = disks_now
    save(tmp_path, host, **how)
    with open_image(str(tmp_path / "a.img")) as source:
        assert "DISKS" not in survey(source).records


def test_an_image_whose_disks_changed_is_refused_before_anything_is_made(tmp_path, host, monkeypatch):
    host.disks = [DISK]
    save(tmp_path, host)
    monkeypatch.setattr(disks, "changed", lambda found, _uuid: [one["path"] for one in found])
    monkeypatch.setattr(image_fit, "opened", opened_without_configuration)
    contents = image_fit.contents_of(str(tmp_path / "a.img"))
    with pytest.raises(DomainError, match=r"/disks/web1\.img"):
        disks.check(contents.disks, UUID(int=1), force=False)
    disks.check(contents.disks, UUID(int=1), force=True)


@pytest.mark.parametrize("how", [{}, {"compress": 1}], ids=str)
def test_a_restore_reads_its_image_once_before_it_begins(tmp_path, host, monkeypatch, how):
    host.disks = [DISK]
    save(tmp_path, host, **how)
    times: list[str] = []

    def counted(image: str):
        times.append(image)
        return opened_without_configuration(image)

    monkeypatch.setattr(image_fit, "opened", counted)
    contents = image_fit.contents_of(str(tmp_path / "a.img"))
    assert contents.pages == host.guest.populated_pages
    assert contents.disks == ([] if how else [DISK])
    assert len(times) == 1


def opened_without_configuration(image: str):
    """The fake host's images have an empty one."""

    @contextmanager
    def opened():
        with open_image(image) as source:
            XlHeader.read(source)
            LibxlReader(source).next()
            yield SimpleNamespace(source=source, saved_uuid=UUID(int=1))

    return opened()


# ---- devices that come and go --------------------------------------------------------------------

DEVICE = "/libxl/7/device/vbd/51728"


class AtRound(Silence):
    """Does something during the first round."""

    def __init__(self, do) -> None:
        self._do = do

    def round_done(self, _stats: object) -> None:
        do, self._do = self._do, lambda: None
        do()


def save_during(tmp_path, host, do, **how: object) -> SaveReport:
    report = SaveReport()
    request = SaveRequest("web1", str(tmp_path / "a.img"), live=True, **how)
    save_domain(request, AtRound(do), report, host=host)
    return report


@pytest.mark.parametrize(
    ("before", "change", "words"),
    [
        ({}, {DEVICE: "", f"{DEVICE}/params": "aio:/b.img"}, "vbd 51728 was attached"),
        ({DEVICE: "", "/libxl/7/device/vbd/51712": ""}, {DEVICE: None}, "vbd 51728 was detached"),
        (
            {f"{DEVICE}/params": "aio:/a.iso"},
            {f"{DEVICE}/params": "aio:/b.iso"},
            "medium of vbd 51728 was changed",
        ),
    ],
    ids=["attached", "detached", "another medium"],
)
def test_a_domain_whose_devices_change_during_a_live_save_resumes_and_leaves_no_image(
    tmp_path, host, guest, before, change, words
):
    """The guest remembers devices, in its memory, that the configuration at the image's head lacks."""
    host.store.update(before)

    def changed() -> None:
        for path, value in change.items():
            host.store.remove(path) if value is None else host.store.write(path, value)

    with pytest.raises(DomainError, match=words) as caught:
        save_during(tmp_path, host, changed)
    assert caught.value.name is ErrorName.DOMAIN_CHANGED
    assert caught.value.remedies == (Advice(Remedy.TRY_AGAIN),)
    assert not guest.domain.suspended
    assert host.toolstack.destroyed == 0
    assert list(tmp_path.iterdir()) == []


def test_the_command_is_not_run_for_a_domain_whose_devices_have_changed(tmp_path, host):
    with pytest.raises(DomainError, match="attached"):
        save_during(
            tmp_path, host, lambda: host.store.write(DEVICE, ""), while_suspended=f"touch {tmp_path}/run"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_domain_that_is_ballooned_during_a_live_save_is_saved(tmp_path, host):
    host.store.write(DEVICE, "")
    target = "/local/domain/7/memory/target"
    host.store.write(target, "4096")
    report = save_during(tmp_path, host, lambda: host.store.write(target, "2048"))
    assert report.domain_state is DomainState.DESTROYED


def test_a_domain_that_is_being_destroyed_by_somebody_else_does_not_count_as_changed(tmp_path, host, guest):
    """All of its memory has been read by then, and its image is the last that there is of it."""
    host.store.write(DEVICE, "")

    def suspended() -> None:
        host.store.remove("/libxl/7")
        host.found = Found(Condition.GONE, "is gone")

    guest.moments.on("suspended", 0, suspended)
    report = save(tmp_path, host)
    assert (tmp_path / "a.img").exists()
    assert report.domain_state is DomainState.DESTROYED


# ---- a command while it is suspended -------------------------------------------------------------


def test_a_command_runs_while_the_domain_is_suspended_and_knows_what_it_is_for(tmp_path, host, guest):
    seen: list[bool] = []
    host.disks_of = lambda _config: seen.append((tmp_path / "seen").exists()) or []
    command = f'echo "$PYSAVE_DOMAIN $PYSAVE_DOMID $PYSAVE_UUID $PYSAVE_IMAGE" >{tmp_path}/seen'
    report = save(tmp_path, host, command, final_state=FinalState.RUN)
    assert (tmp_path / "seen").read_text() == (
        f"web1 7 00000000-0000-4000-8000-000000000001 {tmp_path}/a.img\n"
    )
    assert seen == [True]  # what it does to the disks is no change since the save
    assert report.domain_state is DomainState.RUNNING


@pytest.mark.parametrize(
    ("command", "how"), [("exit 3", "exit 3"), ("kill -9 $$", "signal 9"), ("/nothing", "exit 127")]
)
def test_a_command_that_fails_gives_the_save_up_and_resumes_the_domain(tmp_path, host, guest, command, how):
    with pytest.raises(DomainError) as caught:
        save(tmp_path, host, command)
    assert caught.value.name is ErrorName.COMMAND_FAILED
    assert f"failed ({how}): {command}; no image was left; web1 (domain 7) is running" in fact_of(
        caught.value
    )
    assert list(tmp_path.iterdir()) == []
    assert not guest.domain.suspended


def test_a_command_that_cannot_be_given_to_a_program_is_an_error_that_says_so(tmp_path, host, guest):
    """A file of settings, or the library, can have one."""
    with pytest.raises(DomainError, match=r"could not be started: embedded null byte"):
        save(tmp_path, host, "true\0")
    assert not guest.domain.suspended


def test_what_a_command_prints_does_not_get_into_the_image(tmp_path, host, capfd):
    save(tmp_path, host, "echo words")
    out, err = capfd.readouterr()
    assert (out, err) == ("", "words\n")


def test_a_signal_ends_the_command_and_resumes_the_domain(tmp_path, host, guest):
    began = time.monotonic()
    with pytest.raises(Interrupted), handled():
        save(tmp_path, host, f"echo $$ >{tmp_path}.pid; kill -INT {os.getpid()}; sleep 60; true")
    assert time.monotonic() - began < 20
    with pytest.raises(ProcessLookupError):
        os.kill(int(tmp_path.with_suffix(".pid").read_text()), 0)
    assert not guest.domain.suspended
    assert list(tmp_path.iterdir()) == []


def test_a_signal_while_the_command_is_being_started_ends_it_too(tmp_path, host, guest, monkeypatch):
    started: list[subprocess.Popen[bytes]] = []

    class Interrupting(subprocess.Popen):
        def __init__(self, *given: object, **how: object) -> None:
            super().__init__(*given, **how)
            started.append(self)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(while_suspended.subprocess, "Popen", Interrupting)
    with pytest.raises(Interrupted), handled():
        save(tmp_path, host, "sleep 60")
    assert started[0].returncode == -signal.SIGTERM
    assert not guest.domain.suspended


def test_a_command_that_cannot_be_killed_does_not_keep_the_domain_suspended(monkeypatch, caplog):
    waits: list[float | None] = []

    def wait(seconds: float | None) -> None:
        waits.append(seconds)
        raise subprocess.TimeoutExpired("sh", seconds or 0)

    monkeypatch.setattr(os, "killpg", lambda *_: None)
    while_suspended._end(SimpleNamespace(pid=7, wait=wait))
    assert waits == [while_suspended.ENDING_S, while_suspended.KILLED_S]
    assert "process 7" in caplog.text


# ---- how much memory it had ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "known"), [({}, True), ({"compress": 1}, True), ({"plain": True}, False)], ids=str
)
def test_the_image_says_how_many_pages_the_domain_had(tmp_path, host, guest, monkeypatch, how, known):
    save(tmp_path, host, **how)
    monkeypatch.setattr(image_fit, "opened", opened_without_configuration)
    assert image_fit.contents_of(str(tmp_path / "a.img")).pages == (guest.populated_pages if known else 0)
