"""Two saves of one domain at once: the second says so, and advises nothing that would harm the first."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_host import FakeHost

from saverestore.engine.progress import Silence
from saverestore.errors import Advice, DomainError, ErrorName, Remedy
from saverestore.operations.prepare_save import dry_run
from saverestore.operations.requests import SaveRequest
from saverestore.operations.save import save_domain
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemorySave


class BusyHost(FakeHost):
    """Another process saves its domain, and has suspended it."""

    @contextmanager
    def locked(self, _domain):
        raise DomainError("web1 is being saved by process 42", name=ErrorName.DOMAIN_BUSY)
        yield

    def check_can_be_saved(self, _domain):
        raise DomainError(
            "web1 is suspended already",
            name=ErrorName.DOMAIN_NEEDS_RECOVERY,
            remedies=[Advice(Remedy.RECOVER, 7)],
        )


@pytest.fixture
def host() -> BusyHost:
    return BusyHost(MemorySave(MemoryDomain.pvh(64)))


def test_a_domain_that_is_being_saved_is_busy_and_needs_no_recovery(tmp_path, host):
    with pytest.raises(DomainError) as caught:
        save_domain(SaveRequest("web1", str(tmp_path / "b.img")), Silence(), host=host)
    assert caught.value.name is ErrorName.DOMAIN_BUSY
    assert caught.value.remedies == ()


def test_a_dry_run_names_the_other_save_and_nothing_of_the_state_it_has_made(tmp_path, host, monkeypatch):
    config = SimpleNamespace(kind="pvh", max_vcpus=1, devices=[], raw={})
    monkeypatch.setattr(host.toolstack, "config_of", lambda _: config)
    findings = dry_run(SaveRequest("web1", str(tmp_path / "b.img")), host=host)
    names = [error.name for error in findings.errors]
    assert ErrorName.DOMAIN_BUSY in names
    assert ErrorName.DOMAIN_NEEDS_RECOVERY not in names
