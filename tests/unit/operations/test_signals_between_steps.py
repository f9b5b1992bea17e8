"""A signal that comes between two steps of an operation: no domain is lost, and none is left over."""

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

from fake_host import FakeHost, FakeToolstack, RestoringHost, commit_with

from saverestore.engine.progress import Silence
from saverestore.errors import Interrupted
from saverestore.interrupts import handled
from saverestore.operations.requests import RestoreRequest, SaveRequest
from saverestore.operations.restore import restore_domain
from saverestore.operations.save import save_domain
from saverestore.stream import DomainType, LibxcWriter, LibxlWriter, XlHeader
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemorySave
from saverestore.transport import FdSink

CONFIG = {
    "c_info": {"type": "pvh", "name": "web1", "uuid": "00000000-0000-4000-8000-000000000001"},
    "b_info": {"max_vcpus": 1, "max_memkb": 4096},
}


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_while_the_domain_is_being_created_destroys_it(tmp_path: Path):
    path = tmp_path / "in.img"
    with FdSink(os.open(path, os.O_WRONLY | os.O_CREAT), str(path)) as sink:
        XlHeader.write(sink, json.dumps(CONFIG).encode())
        LibxlWriter(sink).libxc_context()
        LibxcWriter(sink, DomainType.X86_HVM, (4, 17))
    host = RestoringHost()
    host.on_create = interrupt
    with pytest.raises(Interrupted), handled():
        restore_domain(RestoreRequest(str(path)), Silence(), host=host)
    assert host.created == 1
    assert host.alive == set()


@pytest.fixture
def toolstack() -> FakeToolstack:
    return FakeToolstack()


@pytest.fixture
def guest() -> MemorySave:
    return MemorySave(MemoryDomain.pvh(64))


@pytest.fixture
def host(guest, toolstack) -> FakeHost:
    return FakeHost(guest, toolstack)


def test_a_signal_between_writing_the_image_and_committing_it_resumes_the_guest(tmp_path, guest, host):
    request = SaveRequest("web1", str(tmp_path / "out.img"))
    with pytest.raises(Interrupted), handled():
        save_domain(request, Silence(), host=host, opened_commit=commit_with(interrupt))
    assert list(tmp_path.iterdir()) == []
    assert not guest.domain.suspended


def test_a_signal_while_the_image_is_committed_keeps_the_guest_or_the_image(
    tmp_path, monkeypatch, guest, toolstack, host
):
    fsync = os.fsync

    def interrupted(fd: int) -> None:
        interrupt()
        fsync(fd)

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(Interrupted), handled():
        save_domain(SaveRequest("web1", str(tmp_path / "out.img")), Silence(), host=host)
    assert list(tmp_path.iterdir()) == []
    assert not guest.domain.suspended
    assert not toolstack.destroyed


def test_a_save_that_nothing_interrupts_leaves_the_image_and_destroys_the_domain(
    tmp_path, guest, toolstack, host
):
    save_domain(SaveRequest("web1", str(tmp_path / "out.img")), Silence(), host=host)
    assert [path.name for path in tmp_path.iterdir()] == ["out.img"]
    assert toolstack.destroyed == 1
    assert guest.moments.calls[-1] == "close"


def test_a_signal_once_the_image_is_safe_does_not_make_a_failure_of_the_save(
    tmp_path, guest, toolstack, host
):
    toolstack.on_destroy = interrupt
    with handled():
        report = save_domain(SaveRequest("web1", str(tmp_path / "out.img")), Silence(), host=host)
    assert report.pages_sent == 64
