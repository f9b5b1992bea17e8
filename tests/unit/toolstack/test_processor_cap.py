"""The processor cap of a domain that is slowed down: lowered, put back, and put back by others after `kill -9`."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from pyxc import XenError
from pyxc.sched import CpuPool, Scheduler, Share
from saverestore.errors import DomainError
from saverestore.testing.store import MemoryStore
from saverestore.toolstack import processor_cap
from saverestore.toolstack.domains import Domain
from saverestore.toolstack.processor_cap import ProcessorCap, put_back, speed_up

NODE = "/local/domain/7/pysave/cap"
NAME = {"/local/domain/7/name": "web1"}


class Host:
    """A pool of four CPUs with domain 7 in it; `when` is called before a share is set."""

    def __init__(self, monkeypatch, scheduler: int = Scheduler.CREDIT2, cap: int = 0, vcpus: int = 2) -> None:
        self.scheduler = scheduler
        self.share = Share(weight=256, cap=cap)
        self.store = MemoryStore(NAME)
        self.handles = SimpleNamespace(xen=None, store=self.store)
        self.domain = Domain(SimpleNamespace(domid=7, cpupool=0, nr_online_vcpus=vcpus), "web1")
        self.when = lambda: None
        monkeypatch.setattr(processor_cap.sched, "cpu_pool", lambda *_: CpuPool(self.scheduler, 4))
        for kind in (Scheduler.CREDIT, Scheduler.CREDIT2):
            monkeypatch.setitem(processor_cap.GETTERS, kind, lambda *_: self.share)
            monkeypatch.setitem(processor_cap.SETTERS, kind, self._set)

    def _set(self, _xen, _domid, share) -> None:
        self.when()
        self.share = share


@pytest.fixture
def host(monkeypatch):
    return lambda **how: Host(monkeypatch, **how)


@pytest.mark.parametrize("scheduler", [Scheduler.CREDIT2, Scheduler.CREDIT])
@pytest.mark.parametrize(
    ("cap", "vcpus", "percent", "lowered"),
    [
        pytest.param(0, 2, 75, 150, id="no cap: of what its vCPUs can use"),
        pytest.param(0, 8, 50, 200, id="more vCPUs than there are CPUs"),
        pytest.param(120, 2, 50, 60, id="of the cap that there was"),
        pytest.param(3, 2, 10, 1, id="never 0, which would be no cap at all"),
    ],
)
def test_the_cap_is_lowered_and_put_back(host, scheduler, cap, vcpus, percent, lowered):
    found = host(scheduler=scheduler, cap=cap, vcpus=vcpus)
    throttle = ProcessorCap(found.handles, found.domain)
    assert (found.share.cap, found.store.contents()) == (cap, NAME)
    throttle.limit(percent)
    assert found.share == Share(256, lowered)
    assert found.store.contents() == {**NAME, NODE: str(cap)}
    throttle.limit(10)
    assert found.store.contents() == {**NAME, NODE: str(cap)}
    for _ in range(2):
        throttle.lift()
        assert found.share == Share(256, cap)
        assert found.store.contents() == NAME


def test_what_the_cap_was_is_written_down_before_it_is_changed(host):
    found = host(cap=80)
    found.when = lambda: seen.append(found.store.read(NODE))
    seen: list[str | None] = []
    throttle = ProcessorCap(found.handles, found.domain)
    throttle.limit(50)
    throttle.lift()
    assert seen == ["80", "80"]


@pytest.mark.parametrize(
    ("scheduler", "name"), [(Scheduler.NULL, "null"), (Scheduler.RTDS, "rtds"), (77, "number 77")]
)
def test_a_scheduler_without_caps_is_named_before_anything_is_done(host, scheduler, name):
    found = host(scheduler=scheduler)
    with pytest.raises(DomainError, match=rf"web1 \(domain 7\).*CPU pool 0 is {name}.*no changes were made"):
        ProcessorCap(found.handles, found.domain)
    assert found.store.contents() == NAME


@pytest.mark.parametrize("cap", [0, 80])
def test_after_a_kill_somebody_else_puts_the_cap_back(host, cap):
    found = host(cap=cap)
    ProcessorCap(found.handles, found.domain).limit(25)
    lowered = found.share.cap
    assert lowered != cap
    done = put_back(found.handles, found.domain)
    assert f"instead of {lowered}%" in done
    assert (found.share.cap, found.store.contents()) == (cap, NAME)
    assert put_back(found.handles, found.domain) == ""


def test_what_a_killed_save_has_written_down_is_what_the_cap_was(host):
    """The cap that there is was lowered by it."""
    found = host(cap=10)
    found.store.write(NODE, "0")
    throttle = ProcessorCap(found.handles, found.domain)
    throttle.limit(50)
    assert (found.share.cap, found.store.read(NODE)) == (100, "0")
    throttle.lift()
    assert (found.share.cap, found.store.contents()) == (0, NAME)


def test_a_note_that_is_no_cap_is_written_anew(host):
    found = host(cap=80)
    found.store.write(NODE, "rubbish")
    throttle = ProcessorCap(found.handles, found.domain)
    throttle.limit(50)
    assert (found.share.cap, found.store.read(NODE)) == (40, "80")


def test_a_cap_that_cannot_be_put_back_is_a_warning_to_who_saves_the_domain(host, caplog):
    found = host(cap=10)
    found.store.write(NODE, "0")

    def fail() -> None:
        raise XenError("xc_sched_credit2_domain_set", errno.EPERM, domid=7)

    found.when = fail
    speed_up(found.handles, found.domain)
    assert "web1 (domain 7) was slowed down by a save that was killed, and still is" in caplog.text
    assert found.store.read(NODE) == "0"


@pytest.mark.parametrize(
    ("node", "scheduler"), [("rubbish", Scheduler.CREDIT2), ("80", Scheduler.NULL), ("0", Scheduler.CREDIT2)]
)
def test_a_note_that_says_nothing_of_now_is_only_removed(host, node, scheduler):
    found = host(scheduler=scheduler)
    found.store.write(NODE, node)
    assert put_back(found.handles, found.domain) == ""
    assert (found.share.cap, found.store.contents()) == (0, NAME)


def test_other_notes_of_the_domain_are_left_alone(host):
    found = host()
    found.store.write("/local/domain/7/pysave/other", "1")
    throttle = ProcessorCap(found.handles, found.domain)
    throttle.limit(50)
    throttle.lift()
    assert found.store.contents() == {**NAME, "/local/domain/7/pysave/other": "1"}


@pytest.mark.parametrize(("number", "is_failure"), [(errno.ESRCH, False), (errno.EPERM, True)])
def test_a_domain_that_somebody_destroyed_meanwhile_needs_nothing_back(host, number, is_failure):
    found = host()
    throttle = ProcessorCap(found.handles, found.domain)
    throttle.limit(50)

    def fail() -> None:
        raise XenError("xc_sched_credit2_domain_set", number, domid=7)

    found.when = fail
    if is_failure:
        with pytest.raises(XenError):
            throttle.lift()
        assert found.store.contents() == {**NAME, NODE: "0"}
    else:
        throttle.lift()
        assert found.store.contents() == NAME
