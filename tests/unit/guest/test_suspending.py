"""What is done before a domain is suspended."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from pyxc.memory import PodTarget
from saverestore.errors import fact_of
from saverestore.guest.arm64 import resuming
from saverestore.guest.arm64 import save as arm64_save
from saverestore.guest.common import suspend
from saverestore.guest.common.suspend import Suspender
from saverestore.guest.x86 import hvm


def test_a_pvh_domain_whose_state_cannot_be_read_is_not_suspended(monkeypatch):
    asked = []
    monkeypatch.setattr(hvm.xen_memory, "nr_gpfns", lambda *_: 4)
    monkeypatch.setattr(hvm.xen_memory, "pod_target", lambda *_: PodTarget(4, 0, 0))
    xen = SimpleNamespace(version=lambda: SimpleNamespace(major=4, minor=17))
    guest = hvm.HvmSave(
        SimpleNamespace(xen=xen),
        SimpleNamespace(domid=7, tot_pages=4),
        SimpleNamespace(suspend=lambda: asked.append("suspend")),
    )

    def unreadable() -> None:
        raise OSError("no context")

    guest.end_records = unreadable
    with pytest.raises(OSError, match="no context"):
        guest.suspend()
    assert asked == []
    guest.end_records = lambda: asked.append("read")
    guest.suspend()
    assert asked == ["read", "suspend"]


class FakeDomain:
    """Xen and xenstore, as far as they know of a domain that suspends as soon as it is asked."""

    def __init__(self) -> None:
        self.suspended = False
        self.resumed = 0

    def domain(self, _domid: int) -> SimpleNamespace:
        return SimpleNamespace(dying=False, shutdown=self.suspended, suspended=self.suspended)

    def write(self, path: str, value: str) -> None:
        self.suspended = value == "suspend"

    def read(self, path: str) -> str:
        return ""

    @contextmanager
    def transaction(self):
        yield self

    def watch(self, *_: str) -> None:
        pass

    def unwatch(self, *_: str) -> None:
        pass

    def resume(self) -> None:
        self.suspended = False
        self.resumed += 1


def test_a_domain_that_suspended_is_resumed_once():
    domain = FakeDomain()
    suspender = Suspender(domain, domain, 7, resume_domain=domain.resume)
    suspender.resume()
    assert domain.resumed == 0
    suspender.suspend()
    suspender.resume()
    suspender.resume()
    assert (domain.suspended, domain.resumed) == (False, 1)


def test_nobody_waits_for_a_domain_that_was_resumed_in_another_way():
    """An arm64 domain's own contexts are put back by its journal, and it runs then."""
    domain = FakeDomain()
    suspender = Suspender(domain, domain, 7, timeout_s=3600, resume_domain=domain.resume)
    for _ in range(2):
        suspender.suspend()
        domain.suspended = False
        suspender.resume()
    assert domain.resumed == 0


# ---- what is called again after a failure ------------------------------------------------------------


class Domain:
    """An x86 or arm64 domain that is suspended when asked; `failing`: calls that fail, once each."""

    def __init__(self, monkeypatch) -> None:
        self.failing: list[str] = []
        self.done: list[str] = []
        self.suspended = self.paused = False
        self.registers = b"avx"
        monkeypatch.setattr(suspend.cpu, "vcpu_xsave", lambda *_: self.registers)
        monkeypatch.setattr(suspend.cpu, "set_vcpu_xsave", lambda xen, domid, n, state: self._put_back(state))
        monkeypatch.setattr(resuming, "get_context", lambda *_: SimpleNamespace(with_x0=lambda x0: x0))
        monkeypatch.setattr(resuming, "set_context", lambda *_: self._do("context"))
        self.xen = SimpleNamespace(
            domain=lambda _: SimpleNamespace(
                dying=False, shutdown=self.suspended, suspended=self.suspended, paused=self.paused
            ),
            pause=lambda _: self._pause(True),
            unpause=lambda _: self._pause(False),
            resume=lambda _: self._resume(),
        )
        self.store = SimpleNamespace(
            read=lambda _: "",
            write=lambda path, value: self._suspend(),
            watch=lambda *_: None,
            unwatch=lambda *_: None,
            transaction=lambda: nullcontext(self.store),
            resume_domain=lambda _: self._do("xenstored"),
        )
        self.handles = SimpleNamespace(xen=self.xen, store=self.store)

    def _do(self, what: str) -> None:
        if what in self.failing:
            self.failing.remove(what)
            raise OSError(what)
        self.done.append(what)

    def _suspend(self) -> None:
        self.suspended = True

    def _pause(self, wanted: bool) -> None:
        assert self.paused != wanted, "Xen counts pauses"
        self._do("pause" if wanted else "unpause")
        self.paused = wanted

    def _resume(self) -> None:
        self._do("resume")
        self.suspended, self.registers = False, b""

    def _put_back(self, state: bytes) -> None:
        assert self.paused, "it has run without them"
        self._do("registers")
        self.registers = state

    @property
    def runs_as_before(self) -> bool:
        return (self.suspended, self.paused, self.registers) == (False, False, b"avx")


@pytest.mark.parametrize("step", ["pause", "resume", "registers", "xenstored", "unpause"])
def test_a_second_attempt_to_resume_an_x86_domain_does_what_is_missing(monkeypatch, step):
    domain = Domain(monkeypatch)
    suspender = Suspender(domain.xen, domain.store, 7)
    for _ in range(2):  # and so for the next checkpoint
        suspender.suspend()
        domain.failing, domain.done = [step], []
        with pytest.raises(OSError, match=step):
            suspender.resume()
        suspender.resume()
        assert domain.runs_as_before
        assert "xenstored" in domain.done
        assert domain.done.count("resume") == domain.done.count("registers") == 1
        domain.done.clear()
        suspender.resume()
        assert domain.done == []


def test_an_x86_domain_does_not_run_without_its_registers(monkeypatch):
    domain = Domain(monkeypatch)
    suspender = Suspender(domain.xen, domain.store, 7)
    suspender.suspend()
    domain.failing = ["registers", "registers"]
    for _ in range(2):
        with pytest.raises(OSError, match="registers") as caught:
            suspender.resume()
        assert "it is left paused: its AVX registers could not be put back" in fact_of(caught.value)
        assert domain.paused
    suspender.resume()
    assert domain.runs_as_before


@pytest.mark.parametrize("step", ["context", "resume", "xenstored"])
def test_a_second_attempt_to_resume_an_untouched_arm64_domain_does_what_is_missing(monkeypatch, step):
    domain = Domain(monkeypatch)
    suspender = Suspender(
        domain.xen,
        domain.store,
        7,
        resume_domain=lambda: resuming.resume_untouched(domain.handles, 7),
    )
    suspender.suspend()
    domain.failing = [step]
    with pytest.raises(OSError, match=step):
        suspender.resume()
    suspender.resume()
    assert domain.done == ["context", *(["context"] if step == "resume" else []), "resume", "xenstored"]


def test_an_arm64_save_keeps_its_journal_until_the_domain_is_as_it_was(monkeypatch):
    done: list[str] = []
    guest = object.__new__(arm64_save.Arm64Save)
    guest._handles = guest._scratch = None
    guest._journal = "journal"
    guest._suspender = SimpleNamespace(resume=lambda: done.append("suspender"))
    attempts = iter([OSError("vCPU 1 did not end"), None])

    def recover(_handles, journal) -> None:
        done.append(journal)
        if (error := next(attempts)) is not None:
            raise error

    monkeypatch.setattr(arm64_save, "recover_by_journal", recover)
    with pytest.raises(OSError, match="did not end"):
        guest.resume()
    guest.resume()
    assert done == ["journal", "journal", "suspender"]
    guest.resume()
    assert done == ["journal", "journal", "suspender", "suspender"]
