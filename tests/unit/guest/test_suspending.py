"""What is done before a domain is suspended."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from saverestore.guest.common.suspend import Suspender
from saverestore.guest.x86 import hvm


def test_a_pvh_domain_whose_state_cannot_be_read_is_not_suspended(monkeypatch):
    asked = []
    monkeypatch.setattr(hvm.xen_memory, "nr_gpfns", lambda *_: 4)
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
