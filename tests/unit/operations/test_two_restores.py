"""Two restores of one image at once: one domain."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_host import RestoringHost, image_in
from memory_guests import MAKERS

from saverestore.engine.progress import Silence
from saverestore.errors import DomainError, ErrorName
from saverestore.operations.requests import RestoreRequest
from saverestore.operations.restore import dry_run, restore_domain
from saverestore.testing.guest import MemoryRestore, empty_like


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
