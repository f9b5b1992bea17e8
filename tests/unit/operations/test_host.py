"""What the host of operations puts together for a save and for a restore."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from saverestore.errors import DomainError, ErrorName
from saverestore.operations.host import Host
from saverestore.testing.store import MemoryStore
from saverestore.toolstack.device_model import SuspenderWithDeviceModel
from saverestore.toolstack.domains import Domain

HANDLES = SimpleNamespace(xen=SimpleNamespace(domain=lambda domid: f"info of {domid}"))
CONFIG = SimpleNamespace(gic_version="v3", max_kib=4096)


class FakeKind:
    """Notes what it is given; who suspends does so in `done`."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.given: dict[str, object] = {}

    def suspender(self, handles, domid, *, timeout_s):
        self.given["suspender"] = (handles, domid, timeout_s)
        self.suspending = SimpleNamespace(
            suspend=lambda: self.done.append("guest suspends"),
            resume=lambda: self.done.append("guest resumes"),
        )
        return self.suspending

    def save_guest(self, *given, **named):
        self.given |= {"given": given, **named}
        return "a guest to be saved"

    def last_pfn(self, max_pages):
        return max_pages + 5

    def restore_guest(self, *given, **named):
        self.given |= {"given": given, **named}
        return "a guest to be filled"


class FakeArchitecture:
    """Of its domains all are of one kind."""

    def __init__(self, kind: FakeKind) -> None:
        self.kind = kind

    def of_domain(self, handles, info):
        self.kind.given["of"] = (handles, info)
        return self.kind


@pytest.fixture
def kind() -> FakeKind:
    return FakeKind()


@pytest.fixture
def host(kind) -> Host:
    made = Host(HANDLES)
    made.architecture = FakeArchitecture(kind)
    return made


DOMAIN = SimpleNamespace(domid=7, info="info")


def test_a_domain_is_saved_by_its_kind_and_suspended_in_its_kinds_way(host, kind):
    suspending = host.suspending(DOMAIN, None, 2.5)
    assert host.save_guest(DOMAIN, CONFIG, None, suspending) == "a guest to be saved"
    assert kind.given == {
        "of": (HANDLES, "info"),
        "suspender": (HANDLES, 7, 2.5),
        "given": (HANDLES, "info", kind.suspending, None),
        "gic_version": "v3",
    }


def test_a_device_model_is_stopped_with_the_guest_and_logs_what_it_writes(host, kind):
    model = SimpleNamespace(
        hold=lambda: kind.done.append("device model is held"),
        stop=lambda: kind.done.append("device model stops"),
        resume=lambda: kind.done.append("device model resumes"),
    )
    host.save_guest(DOMAIN, CONFIG, model, host.suspending(DOMAIN, model, None))
    *_, suspending, emulator = kind.given["given"]
    assert emulator is model
    assert isinstance(suspending, SuspenderWithDeviceModel)
    suspending.suspend()
    suspending.resume()
    assert kind.done == [
        "device model is held",
        "guest suspends",
        "device model stops",
        "device model resumes",
        "guest resumes",
    ]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("is_built", [False, True])
def test_a_fresh_domain_is_filled_by_its_kind_within_what_it_may_have(host, kind, force, is_built):
    fresh = SimpleNamespace(domid=9, is_built=is_built)
    reader = SimpleNamespace(max_pfn=None)
    assert host.restore_guest(kind, fresh, CONFIG, reader, force=force) == "a guest to be filled"
    assert reader.max_pfn == 1024 + 5
    assert kind.given == {
        "given": (HANDLES, "info of 9"),
        "max_pages": 1024,
        "gic_version": "v3",
        "check_cpu": not force,
        "is_built": is_built,
    }


def test_a_domain_that_another_program_has_asked_to_power_off_is_refused_before_it_is_touched():
    info = SimpleNamespace(domid=7, dying=False, suspended=False, shutdown=False, paused=False)
    with MemoryStore({"/local/domain/7/control/shutdown": "poweroff"}) as store:
        host = Host(SimpleNamespace(store=store))
        with pytest.raises(
            DomainError, match=r"asked web1 \(domain 7\) to power off, and it has not"
        ) as caught:
            host.check_can_be_saved(Domain(info, "web1"))
        assert caught.value.name is ErrorName.DOMAIN_BUSY
        store.write("/local/domain/7/control/shutdown", "")
        host.check_can_be_saved(Domain(info, "web1"))
        store.write("/local/domain/7/data/cant_suspend_reason", "an old driver")
        with pytest.raises(DomainError, match=r"web1 \(domain 7\) reports that it cannot suspend \(an old"):
            host.check_can_be_saved(Domain(info, "web1"))
