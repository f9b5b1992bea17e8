"""What is done before a domain is suspended."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

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
