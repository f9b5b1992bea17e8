"""Which images of a store `pyrestore --all` restores: none twice, and none whose domain has run since."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_host import FakeHost, FakeToolstack, RestoringHost, image_in
from memory_guests import MAKERS

from saverestore.engine.progress import Silence
from saverestore.errors import DomainError, TransportError, XenRefused
from saverestore.operations.pending import FOLDER, no_longer_pending, pending, to_be_restored
from saverestore.operations.requests import FinalState, RestoreRequest, SaveRequest
from saverestore.operations.restore import restore_domain
from saverestore.operations.save import save_domain
from saverestore.operations.store import remove
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemoryRestore, MemorySave, empty_like
from saverestore.toolstack.condition import Condition, Found

NAME = "web1@2026-11-29T05-58-31Z.img"


@pytest.fixture
def toolstack() -> FakeToolstack:
    return FakeToolstack()


@pytest.fixture
def host(toolstack) -> FakeHost:
    return FakeHost(MemorySave(MemoryDomain.pvh(64)), toolstack)


def save(host, folder, state=FinalState.DESTROY):
    request = SaveRequest("web1", "", store=folder, final_state=state, restored_at_boot=True)
    return save_domain(request, Silence(), host=host)


def test_a_domain_is_noted_before_it_is_destroyed(tmp_path, host, toolstack):
    seen = []
    toolstack.on_destroy = lambda: seen.extend(pending(tmp_path))
    report = save(host, tmp_path)
    assert [str(tmp_path / one.path.name) for one in seen] == [report.image]
    assert [one.stem for one in pending(tmp_path)] == ["web1"]


def test_a_domain_that_keeps_running_is_not_noted(tmp_path, host):
    save(host, tmp_path, FinalState.RUN)
    assert pending(tmp_path) == []


def test_a_domain_that_could_not_be_destroyed_is_not_noted(tmp_path, host, toolstack):
    def refuse() -> None:
        raise DomainError("it cannot be destroyed")

    toolstack.on_destroy = refuse
    host.found = Found(Condition.SUSPENDED, "is suspended", ())
    with pytest.raises(XenRefused):
        save(host, tmp_path)
    assert pending(tmp_path) == []


@pytest.mark.parametrize(("condition", "is_pending"), [(Condition.DYING, True), (Condition.UNKNOWN, False)])
def test_an_image_whose_domain_can_never_run_again_stays_pending_although_destroying_it_failed(
    tmp_path, host, toolstack, condition, is_pending
):
    """A hotplug script that failed, or a process that holds a page of it: the image is the domain now."""

    def refuse() -> None:
        host.found = Found(condition, "is being destroyed", ())
        raise DomainError("a device could not be removed")

    toolstack.on_destroy = refuse
    with pytest.raises(XenRefused):
        save(host, tmp_path)
    assert bool(pending(tmp_path)) is is_pending


@pytest.fixture
def image(tmp_path):
    domain = MAKERS["pvh"]()
    path = image_in(tmp_path, domain, name=NAME)
    with to_be_restored(path):
        pass
    return path, RestoringHost(MemoryRestore(empty_like(domain)))


def test_whoever_restores_an_image_takes_it_from_those_that_are_pending(tmp_path, image):
    path, host = image
    assert [one.path.name for one in pending(tmp_path)] == [NAME]
    restore_domain(RestoreRequest(str(path)), Silence(), host=host)
    assert pending(tmp_path) == []
    assert path.exists()


def test_an_image_whose_restore_failed_stays_pending(tmp_path, image):
    path, host = image

    def refuse(_domid: int) -> None:
        raise XenRefused("no")

    host.unpause = refuse
    with pytest.raises(XenRefused):
        restore_domain(RestoreRequest(str(path)), Silence(), host=host)
    assert [one.path.name for one in pending(tmp_path)] == [NAME]


def test_a_file_of_the_same_name_in_a_folder_called_pending_is_left_alone(tmp_path):
    (tmp_path / FOLDER).mkdir()
    other = tmp_path / FOLDER / NAME
    other.write_text("an image of somebody's")
    with no_longer_pending(tmp_path / NAME):
        assert other.exists()
    assert pending(tmp_path) == []


def test_a_domain_whose_image_cannot_be_noted_runs_again(tmp_path, host, toolstack):
    (tmp_path / FOLDER).write_text("no folder")
    with pytest.raises(TransportError, match="could not be noted"):
        save(host, tmp_path)
    assert toolstack.destroyed == 0
    assert not host.guest.domain.suspended


def unreadable(monkeypatch, name, call="readlink"):
    """The disk fails at what has this name."""
    real = getattr(Path, call)

    def failing(path):
        if path.name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    monkeypatch.setattr(Path, call, failing)


@pytest.mark.parametrize(("name", "call"), [(FOLDER, "iterdir"), (NAME, "readlink")])
def test_that_the_links_cannot_be_read_does_not_mean_that_there_are_none(
    tmp_path, image, monkeypatch, name, call
):
    unreadable(monkeypatch, name, call)
    with pytest.raises(TransportError, match="cannot be read"):
        pending(tmp_path)


def test_an_image_whose_link_cannot_be_read_is_not_restored(image, monkeypatch):
    path, host = image
    unreadable(monkeypatch, NAME)
    with pytest.raises(TransportError, match="cannot be read"):
        restore_domain(RestoreRequest(str(path)), Silence(), host=host)
    assert not host.alive


def failing_to_sync(monkeypatch):
    def fail(_folder):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("saverestore.operations.pending.sync_folder", fail)


def test_a_link_that_may_not_be_on_the_disk_is_taken_back_with_the_save(tmp_path, host, monkeypatch):
    failing_to_sync(monkeypatch)
    with pytest.raises(TransportError, match="could not be noted"):
        save(host, tmp_path)
    assert pending(tmp_path) == []
    assert not host.guest.domain.suspended


def test_an_image_stays_pending_when_that_its_link_is_gone_may_not_be_on_the_disk(
    tmp_path, image, monkeypatch
):
    path, host = image
    failing_to_sync(monkeypatch)
    with pytest.raises(TransportError, match="could not be removed"):
        restore_domain(RestoreRequest(str(path)), Silence(), host=host)
    assert not host.alive
    assert [one.path.name for one in pending(tmp_path)] == [NAME]


def test_that_a_link_cannot_be_put_back_does_not_hide_why_the_restore_failed(tmp_path, image, monkeypatch):
    path, _ = image
    with pytest.raises(XenRefused, match="no") as caught, no_longer_pending(path):
        failing_to_sync(monkeypatch)
        raise XenRefused("no")
    assert any("could not be noted" in note for note in caught.value.__notes__)


def test_an_image_that_is_restored_by_another_name_is_not_pending_any_more(tmp_path, image):
    path, host = image
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "web1.img"
    link.symlink_to(path)
    restore_domain(RestoreRequest(str(link)), Silence(), host=host)
    assert pending(tmp_path) == []


def test_an_image_that_was_moved_out_of_the_store_and_linked_there_is_not_pending_once_restored(
    tmp_path, image
):
    path, host = image
    (tmp_path / "large").mkdir()
    path.rename(tmp_path / "large" / NAME)
    path.symlink_to(tmp_path / "large" / NAME)
    restore_domain(RestoreRequest(str(path)), Silence(), host=host)
    assert pending(tmp_path) == []


def test_an_image_that_somebody_else_has_restored_meanwhile_is_not_restored_again(tmp_path, image):
    """`pyrestore --all` reads the links once, and may come to the last one much later."""
    path, host = image
    restore_domain(RestoreRequest(str(path)), Silence(), host=host)
    host.alive.clear()  # it has powered off since
    created = host.created
    for _ in range(2):
        with pytest.raises(DomainError, match="is not to be restored any more"):
            restore_domain(RestoreRequest(str(path), only_pending=True), Silence(), host=host)
    assert host.created == created


def test_whether_an_image_is_still_pending_is_asked_when_nobody_else_can_be_restoring_it(tmp_path, image):
    path, host = image

    @contextmanager
    def restoring(*_):  # another process has just ended, for which this one has waited
        with no_longer_pending(path):
            pass
        yield

    host.restoring = restoring
    with pytest.raises(DomainError, match="is not to be restored any more"):
        restore_domain(RestoreRequest(str(path), only_pending=True), Silence(), host=host)
    assert not host.created


def test_an_image_that_is_pending_is_restored(tmp_path, image):
    path, host = image
    restore_domain(RestoreRequest(str(path), only_pending=True), Silence(), host=host)
    assert host.alive and pending(tmp_path) == []


def test_a_domain_that_is_saved_again_leaves_only_its_new_image_to_be_restored(tmp_path, host):
    """Its old one was restored by xl, or through a pipe: its link is still there, and its disks have moved on."""
    old, other = tmp_path / NAME, tmp_path / NAME.replace("T05", "T04")
    domain = MAKERS["pvh"]()
    image_in(tmp_path, domain, name=old.name)
    image_in(tmp_path, domain, name=other.name)
    other.write_bytes(other.read_bytes().replace(b"8000-000000000001", b"8000-000000000002"))
    lost, damaged = tmp_path / NAME.replace("T05", "T06"), tmp_path / NAME.replace("T05", "T07")
    damaged.write_bytes(b"no image")
    for path in (old, other, lost, damaged):
        with to_be_restored(path):
            pass
    report = save(host, tmp_path)
    left = [one.path for one in pending(tmp_path)]
    assert left == [other, lost, damaged, Path(report.image)]
    assert old.exists()


@pytest.mark.parametrize("is_lost", [True, False])
def test_the_old_link_goes_only_if_the_new_image_is_to_be_restored(tmp_path, host, toolstack, is_lost):
    old = image_in(tmp_path, MAKERS["pvh"](), name=NAME)
    with to_be_restored(old):
        pass

    def refuse() -> None:
        condition = Condition.DYING if is_lost else Condition.SUSPENDED
        host.found = Found(condition, "is as it is", ())
        raise DomainError("it cannot be destroyed")

    toolstack.on_destroy = refuse
    with pytest.raises(XenRefused):
        save(host, tmp_path)
    assert ([one.path for one in pending(tmp_path)] == [old]) is not is_lost
    assert len(pending(tmp_path)) == 1


def test_that_an_old_link_cannot_be_removed_does_not_keep_a_domain_from_being_saved(
    tmp_path, host, toolstack, monkeypatch, caplog
):
    with to_be_restored(image_in(tmp_path, MAKERS["pvh"](), name=NAME)):
        pass
    unlink = Path.unlink

    def refuse(path, **how):
        if path.parent.name == FOLDER:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        unlink(path, **how)

    monkeypatch.setattr(Path, "unlink", refuse)
    save(host, tmp_path)
    assert toolstack.destroyed == 1
    assert f"{FOLDER}/{NAME} could not be removed" in caplog.text


def test_an_image_on_standard_input_is_locked_and_not_pending_any_more(tmp_path, image):
    """pyrestore - <IMAGE"""
    path, host = image
    seen = []
    host.on_create = lambda: seen.append(remove(path))
    before = os.dup(0)
    try:
        with path.open("rb") as file:
            os.dup2(file.fileno(), 0)
        restore_domain(RestoreRequest("-"), Silence(), host=host)
    finally:
        os.dup2(before, 0)
        os.close(before)
    assert seen == [False]
    assert pending(tmp_path) == [] and path.exists()


def test_an_image_that_is_given_as_a_descriptor_is_locked_and_not_pending_any_more(tmp_path, image):
    path, host = image
    seen = []
    host.on_create = lambda: seen.append(remove(path))
    with path.open("rb") as file:
        restore_domain(RestoreRequest(f"fd:{file.fileno()}"), Silence(), host=host)
    assert seen == [False]
    assert pending(tmp_path) == [] and path.exists()
