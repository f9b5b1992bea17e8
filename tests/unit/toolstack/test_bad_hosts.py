"""On a hypervisor that is known to break it, a save or restore is refused before anything is touched."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from pyxc.control import XenVersion
from saverestore.errors import DomainError, ErrorName, Remedy
from saverestore.guest.kinds import ARM64_HOST, X86_HOST
from saverestore.stream.layout import DomainType
from saverestore.toolstack.domains import Domain
from saverestore.toolstack.known_bad import check_restore, check_save


def handles(extra: str) -> SimpleNamespace:
    return SimpleNamespace(xen=SimpleNamespace(version=lambda: XenVersion(4, 21, extra, "")))


def domain(*, hvm: bool) -> Domain:
    return Domain(SimpleNamespace(domid=7, hvm=hvm), "web1")


@pytest.mark.parametrize(("hvm", "resumes"), [(False, False), (False, True), (True, True)])
def test_a_save_that_would_lose_registers_is_refused_unless_it_is_forced(hvm, resumes, caplog):
    with pytest.raises(DomainError, match=r"this Xen, 4\.21\.1, loses r8 to r15") as caught:
        check_save(handles(".1"), X86_HOST, domain(hvm=hvm), resumes=resumes, force=False)
    assert caught.value.name is ErrorName.HOST_UNSUPPORTED
    assert [one.remedy for one in caught.value.remedies] == [Remedy.NEWER_XEN]
    check_save(handles(".1"), X86_HOST, domain(hvm=hvm), resumes=resumes, force=True)
    assert "done all the same" in caplog.text


def test_a_pvh_domain_that_is_destroyed_is_saved_with_a_warning(caplog):
    check_save(handles(".1"), X86_HOST, domain(hvm=True), resumes=False, force=False)
    assert "web1 (domain 7) may crash when it is resumed" in caplog.text


def test_only_pv_domains_are_not_restored():
    with pytest.raises(DomainError, match="cannot be restored"):
        check_restore(handles(".0"), X86_HOST, DomainType.X86_PV, "web1", force=False)
    check_restore(handles(".0"), X86_HOST, DomainType.X86_HVM, "web1", force=False)


@pytest.mark.parametrize(("architecture", "extra"), [(X86_HOST, ".2"), (ARM64_HOST, ".0")])
def test_where_nothing_is_broken_nothing_is_said(architecture, extra, caplog):
    check_save(handles(extra), architecture, domain(hvm=False), resumes=True, force=False)
    assert caplog.text == ""
