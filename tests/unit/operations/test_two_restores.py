"""Two restores of one image at once: one domain, and one that writes to its disks."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_host import RestoringHost, image_in
from memory_guests import MAKERS

from saverestore.engine.progress import Silence
from saverestore.errors import DomainError, ErrorName, Remedy
from saverestore.operations.requests import RestoreRequest
from saverestore.operations.restore import dry_run, restore_domain
from saverestore.testing.guest import MemoryRestore, empty_like
from saverestore.toolstack import lock, neighbours


class Locked(RestoringHost):
    """Notes the order of what is asked; another process begins to restore the same at each step."""

    def __init__(self, guest: MemoryRestore) -> None:
        super().__init__(guest)
        self.steps: list[str] = []
        self.is_held = False

    @contextmanager
    def restoring(self, _uuid, name):
        if self.is_held:
            raise DomainError(f"{name} is being restored", name=ErrorName.DOMAIN_BUSY)
        self.is_held = True
        self.steps.append("lock")
        yield
        self.steps.append("unlock")
        self.is_held = False

    def check_free(self, _config: object) -> None:
        self.steps.append("check")

    @contextmanager
    def memory_reserved(self, *_: object):
        self.steps.append("memory")
        yield
        self.steps.append("memory is had")

    @contextmanager
    def memory_claimed(self, *_: object):
        self.steps.append("claim")
        yield
        self.steps.append("filled")

    def create(self, config):
        self.steps.append("create")
        return super().create(config)

    def unpause(self, domid: int) -> None:
        self.steps.append("unpause")
        super().unpause(domid)


@pytest.fixture
def domain():
    return MAKERS["pvh"]()


def test_lock_and_memory_are_held_from_the_check_until_the_domain_runs(tmp_path, domain):
    host = Locked(MemoryRestore(empty_like(domain)))
    path = image_in(tmp_path, domain)
    restore_domain(RestoreRequest(str(path)), Silence(), host=host)
    assert host.steps == [
        *("lock", "check", "memory"),
        *("create", "claim", "filled", "unpause"),
        *("memory is had", "unlock"),
    ]


def test_a_dry_run_keeps_no_memory_from_others_while_it_reads(tmp_path, domain):
    host = Locked(MemoryRestore(empty_like(domain)))
    dry_run(RestoreRequest(str(image_in(tmp_path, domain))), host=host)
    assert host.steps == ["lock", "check", "memory", "memory is had", "unlock"]


def test_the_loser_makes_nothing_and_the_winner_is_untouched(tmp_path, domain):
    host = Locked(MemoryRestore(empty_like(domain)))
    path = image_in(tmp_path, domain)
    losers: list[DomainError] = []

    def second() -> None:
        with pytest.raises(DomainError) as caught:
            restore_domain(RestoreRequest(str(path)), Silence(), host=host)
        losers.append(caught.value)

    host.on_create = second
    restore_domain(RestoreRequest(str(path)), Silence(), host=host)
    assert [one.name for one in losers] == [ErrorName.DOMAIN_BUSY]
    assert (host.created, host.alive, host.running) == (1, {5}, {5})


class WithDisks(RestoringHost):
    """One that can restore disks, and keeps them as this machine would."""

    disks_kept = staticmethod(neighbours.disks_kept)

    def toolstack_for_restoring(self, _wanted: str):
        return SimpleNamespace(close=lambda: None), ""


@pytest.fixture
def disk(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(lock, "LOCK_DIR", tmp_path / "locks")
    path = tmp_path / "web.disk"
    path.write_bytes(bytes(4096))
    return path


def image_on(folder: Path, domain, disk: Path, name: str = "in.img") -> str:
    disks = [{"vdev": "xvda", "pdev_path": str(disk), "readwrite": 1}]
    return str(image_in(folder, domain, name=name, disks=disks))


def copy_of(image: str, *, force: bool = False) -> RestoreRequest:
    return RestoreRequest(image, name="c2", new_uuid=True, force=force)


def test_a_copy_on_the_same_disk_is_refused_while_the_first_one_is_restored(tmp_path, domain, disk):
    """libxl says which disks a domain has only when it is complete."""
    host = WithDisks(MemoryRestore(empty_like(domain)))
    image = image_on(tmp_path, domain, disk)
    losers: list[DomainError] = []

    def second() -> None:
        with pytest.raises(DomainError, match=f"disk xvda: {disk}") as caught:
            restore_domain(copy_of(image), Silence(), host=host)
        losers.append(caught.value)

    host.on_create = second
    restore_domain(RestoreRequest(image), Silence(), host=host)
    assert [one.name for one in losers] == [ErrorName.DOMAIN_BUSY]
    assert [one.remedy for one in losers[0].remedies] == [Remedy.GIVE_OTHER_DISKS]
    assert (host.created, host.alive, host.running) == (1, {5}, {5})


def test_whoever_insists_is_warned_and_a_copy_on_another_disk_is_fine(tmp_path, domain, disk, caplog):
    host = WithDisks(MemoryRestore(empty_like(domain)))
    image = image_on(tmp_path, domain, disk)
    (tmp_path / "other.disk").write_bytes(bytes(4096))
    other = image_on(tmp_path, domain, tmp_path / "other.disk", name="other.img")
    beside: list[RestoringHost] = []

    def second() -> None:
        for request in (copy_of(other), copy_of(image, force=True)):
            beside.append(WithDisks(MemoryRestore(empty_like(domain))))
            restore_domain(request, Silence(), host=beside[-1])

    host.on_create = second
    restore_domain(RestoreRequest(image), Silence(), host=host)
    assert [one.running for one in (host, *beside)] == [{5}] * 3
    assert f"c2 would write to disk xvda: {disk}; a domain that writes to it is being restored" in caplog.text


def test_a_forced_restore_keeps_its_disks_from_others(tmp_path, domain, disk):
    host = WithDisks(MemoryRestore(empty_like(domain)))
    image = image_on(tmp_path, domain, disk)

    def second() -> None:
        with pytest.raises(DomainError, match="is being restored"):
            restore_domain(copy_of(image), Silence(), host=host)

    host.on_create = second
    restore_domain(RestoreRequest(image, force=True), Silence(), host=host)
    assert host.created == 1
