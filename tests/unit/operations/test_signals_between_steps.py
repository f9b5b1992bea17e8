"""A signal that comes between two steps of an operation: no domain is lost, and none is left over."""

from __future__ import annotations

import json
import os
import signal
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_toolstack import FakeMemory, FakeStore, FakeToolstack

try:
    import pyxc  # noqa: F401
except ImportError as error:
    pytest.skip(f"needs the compiled binding: {error}", allow_module_level=True)

from saverestore.engine.progress import Silence
from saverestore.errors import Interrupted
from saverestore.interrupts import handled
from saverestore.operations import prepare_save, restore, save
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


@contextmanager
def no_handles(**_: bool):
    yield SimpleNamespace(xen=None, memory=FakeMemory(), store=FakeStore())


def test_a_signal_while_the_domain_is_being_created_destroys_it(tmp_path: Path, monkeypatch):
    path = tmp_path / "in.img"
    with FdSink(os.open(path, os.O_WRONLY | os.O_CREAT), str(path)) as sink:
        XlHeader.write(sink, json.dumps(CONFIG).encode())
        LibxlWriter(sink).libxc_context()
        LibxcWriter(sink, DomainType.X86_HVM, (4, 17))
    alive: set[int] = set()

    def create(*_: object) -> SimpleNamespace:
        alive.add(5)
        interrupt()
        return SimpleNamespace(domid=5)

    monkeypatch.setattr(restore, "open_handles", no_handles)
    monkeypatch.setattr(restore.domains, "check_free", lambda *_: None)
    monkeypatch.setattr(restore.bare, "check_memory", lambda *_: None)
    monkeypatch.setattr(restore, "_check_cpu", lambda *_: None)
    monkeypatch.setattr(restore.choice, "for_restoring", lambda *_: (None, ""))
    monkeypatch.setattr(restore.bare, "check_host", lambda *_: None)
    monkeypatch.setattr(restore.bare, "create", create)
    monkeypatch.setattr(restore.bare, "destroy", lambda handles, domid, uuid: alive.discard(domid))
    with pytest.raises(Interrupted), handled():
        restore.restore_domain(restore.RestoreRequest(str(path)), Silence())
    assert alive == set()


@pytest.fixture
def toolstack() -> FakeToolstack:
    return FakeToolstack()


@pytest.fixture
def guest(monkeypatch, toolstack) -> MemorySave:
    found = MemorySave(MemoryDomain.pvh(64))
    domain = SimpleNamespace(domid=7, name="web1", info=SimpleNamespace(uuid=CONFIG["c_info"]["uuid"]))
    monkeypatch.setattr(save, "open_handles", no_handles)
    for name in ("find", "check_can_be_saved"):
        monkeypatch.setattr(prepare_save.domains, name, lambda *_: domain)
    monkeypatch.setattr(prepare_save.choice, "for_saving", lambda *_: toolstack)
    monkeypatch.setattr(prepare_save, "_guest_of", lambda *_: found)
    monkeypatch.setattr(prepare_save, "locked", lambda _: nullcontext())
    return found


def test_a_signal_between_writing_the_image_and_committing_it_resumes_the_guest(tmp_path, monkeypatch, guest):
    monkeypatch.setattr(save.NewFile, "sync", lambda _: interrupt())
    with pytest.raises(Interrupted), handled():
        save.save_domain(save.SaveRequest("web1", str(tmp_path / "out.img")), Silence())
    assert list(tmp_path.iterdir()) == []
    assert not guest.domain.suspended


def test_a_signal_while_the_image_is_committed_keeps_the_guest_or_the_image(
    tmp_path, monkeypatch, guest, toolstack
):
    fsync = os.fsync

    def interrupted(fd: int) -> None:
        interrupt()
        fsync(fd)

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(Interrupted), handled():
        save.save_domain(save.SaveRequest("web1", str(tmp_path / "out.img")), Silence())
    assert list(tmp_path.iterdir()) == []
    assert not guest.domain.suspended
    assert not toolstack.destroyed


def test_a_save_that_nothing_interrupts_leaves_the_image_and_destroys_the_domain(tmp_path, guest, toolstack):
    save.save_domain(save.SaveRequest("web1", str(tmp_path / "out.img")), Silence())
    assert [path.name for path in tmp_path.iterdir()] == ["out.img"]
    assert toolstack.destroyed == 1
    assert guest.moments.calls[-1] == "close"


def test_a_signal_once_the_image_is_safe_does_not_make_a_failure_of_the_save(tmp_path, guest, toolstack):
    toolstack.on_destroy = interrupt
    with handled():
        report = save.save_domain(save.SaveRequest("web1", str(tmp_path / "out.img")), Silence())
    assert report.pages_sent == 64
