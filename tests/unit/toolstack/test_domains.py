"""Finding a domain by what a person calls it, and which domains can be saved."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from saverestore.errors import Advice, DomainError, ErrorName, Remedy
from saverestore.testing.store import MemoryStore
from saverestore.toolstack import domains, lock, memory, stock_helper

WEB = uuid.UUID(int=0xBEEF)


@dataclass
class Info:
    """What of pyxc.DomainInfo is looked at."""

    domid: int
    uuid: uuid.UUID = field(default_factory=uuid.uuid4)
    dying: bool = False
    paused: bool = False
    shutdown: bool = False
    suspended: bool = False
    shutdown_reason: int = 0


def host(*named: tuple[str, Info]) -> Any:
    """Handles of a host with dom0 and these domains."""
    everyone = [("Domain-0", Info(0, uuid.UUID(int=0))), *named]
    names = {f"/local/domain/{info.domid}/name": name for name, info in everyone}
    return SimpleNamespace(
        xen=SimpleNamespace(domains=lambda: [info for _, info in everyone]),
        store=MemoryStore(names),
    )


def test_a_domain_is_found_by_number_uuid_and_name():
    handles = host(("web1", Info(3, WEB)), ("web2", Info(4)))
    for text in ("3", str(WEB), str(WEB).upper(), "web1"):
        assert domains.find(handles, text).domid == 3


def test_a_number_that_is_no_domains_may_be_a_name():
    assert domains.find(host(("17", Info(3))), "17").domid == 3


def test_a_domain_that_is_gone_is_not_found_again_by_another_ones_name_or_number():
    web = Info(17, WEB)
    before = domains.find(host(("web1", web)), "web1")
    assert domains.again(host(("web1", web)), before).info is web
    for others in (host(("17", Info(3))), host(("web1", Info(18, WEB))), host(("web1", Info(17)))):
        with pytest.raises(DomainError, match=r"web1 \(domain 17\) is gone"):
            domains.again(others, before)


def test_names_that_xenstore_has_of_domains_that_are_gone_are_nobodys():
    """Left over by a tool that died: the first node of that name is not the domain."""
    handles = host(("web1", Info(6, WEB)))
    handles.store.write("/local/domain/1/name", "web1")
    assert domains.find(handles, "web1").domid == 6
    domains.check_free(handles, "web1-old", uuid.uuid4())
    handles.store.write("/local/domain/1/name", "web2")
    domains.check_free(handles, "web2", uuid.uuid4())
    with pytest.raises(DomainError, match="there is no domain 'web2'"):
        domains.find(handles, "web2")


def test_a_name_that_several_have_is_refused_with_their_numbers():
    handles = host(("web1", Info(3)), ("web1", Info(5)))
    with pytest.raises(DomainError, match=r"several domains are called 'web1': 3, 5; give the number"):
        domains.find(handles, "web1")
    assert domains.find(handles, "5").domid == 5


@pytest.mark.parametrize("text", ["nobody", "99", "", str(uuid.UUID(int=1))])
def test_what_nobody_is_called_is_refused(text):
    with pytest.raises(DomainError, match="there is no domain"):
        domains.find(host(("web1", Info(3))), text)


def process(folder, pid, *words):
    (folder / str(pid)).mkdir()
    (folder / str(pid) / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))


def test_a_domain_that_stock_xl_saves_is_busy_and_needs_no_recovery(monkeypatch, tmp_path):
    monkeypatch.setattr(stock_helper, "PROC", tmp_path)
    helper = "/usr/lib/xen-4.17/bin/libxl-save-helper"
    (tmp_path / "meminfo").touch()
    (tmp_path / "41").mkdir()  # a process that has ended
    process(tmp_path, 42, helper, "--save-domain", "8", "-1", "33", "1", "0", "0")
    process(tmp_path, 43, helper, "--restore-domain", "8", "-1", "3", "1")
    process(tmp_path, 44, "vi", "--save-domain", "8", "-1", "3")
    suspended = domains.Domain(Info(3, shutdown=True, suspended=True), "web1")
    with pytest.raises(DomainError, match="suspended already"):
        domains.check_can_be_saved(MemoryStore(), suspended)
    process(tmp_path, 45, helper, "--save-domain", "8", "-1", "3", "1", "0", "0")
    with pytest.raises(DomainError, match=r"saved or migrated by xl \(its helper is process 45\)") as caught:
        domains.check_can_be_saved(MemoryStore(), suspended)
    assert (caught.value.name, caught.value.remedies) == (ErrorName.DOMAIN_BUSY, ())


@pytest.mark.parametrize(
    ("info", "said", "name", "remedies"),
    [
        (Info(0), "control domain", ErrorName.DOMAIN_UNSUPPORTED, ()),
        (Info(3, dying=True), "is being destroyed", ErrorName.DOMAIN_STOPPED, ()),
        (
            Info(3, shutdown=True, suspended=True),
            "suspended already",
            ErrorName.DOMAIN_NEEDS_RECOVERY,
            (Advice(Remedy.RECOVER_IF_ABANDONED, 3),),
        ),
        (Info(3, shutdown=True, shutdown_reason=3), "crashed", ErrorName.DOMAIN_STOPPED, ()),
        (Info(3, shutdown=True, shutdown_reason=0), "nothing to save", ErrorName.DOMAIN_STOPPED, ()),
        (Info(3, paused=True), "is paused", ErrorName.DOMAIN_PAUSED, (Advice(Remedy.UNPAUSE, 3),)),
    ],
)
def test_a_domain_that_cannot_suspend_is_refused_with_the_reason(info, said, name, remedies):
    with pytest.raises(DomainError, match=said) as caught:
        domains.check_can_be_saved(MemoryStore(), domains.Domain(info, "web1"))
    assert (caught.value.name, caught.value.remedies) == (name, remedies)


def test_one_that_is_being_restored_is_busy_and_nobody_is_advised_to_unpause_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LOCK_DIR", tmp_path)
    domain = domains.Domain(Info(3, WEB, paused=True), "web1")
    with (
        lock.restoring(WEB, "web1"),
        pytest.raises(DomainError, match=f"is being restored by process {os.getpid()}") as caught,
    ):
        domains.check_can_be_saved(MemoryStore(), domain)
    assert (caught.value.name, caught.value.remedies) == (ErrorName.DOMAIN_BUSY, ())


@pytest.mark.parametrize(
    ("notes", "remedy"),
    [({"pysave/brought-by": "1234"}, Remedy.RECOVER_MIGRATION), ({}, Remedy.LOOK_FOR_OUTGOING)],
    ids=["ours", "xl's"],
)
def test_a_migrations_copy_is_busy_and_nobody_is_advised_to_unpause_it(notes, remedy):
    store = MemoryStore({f"/local/domain/3/{path}": text for path, text in notes.items()})
    store.write("/local/domain/3/name", "web1--incoming")
    domain = domains.Domain(Info(3, WEB, paused=True), "web1--incoming")
    with pytest.raises(DomainError, match="comes from another host, which may still run it") as caught:
        domains.check_can_be_saved(store, domain)
    assert (caught.value.name, caught.value.remedies) == (ErrorName.DOMAIN_BUSY, (Advice(remedy, "web1"),))


def test_a_running_domain_can_be_saved():
    domains.check_can_be_saved(MemoryStore(), domains.Domain(Info(3), "web1"))


def test_a_name_or_uuid_that_is_there_is_not_free():
    handles = host(("web1", Info(3, WEB)))
    with pytest.raises(DomainError, match="there is a domain called 'web1' already"):
        domains.check_free(handles, "web1", uuid.uuid4())
    with pytest.raises(DomainError, match="'Domain-0' already"):
        domains.check_free(handles, "Domain-0", uuid.uuid4())
    for name in ("web2", "web1"):  # another name alone would not help
        with pytest.raises(DomainError, match="same UUID"):
            domains.check_free(handles, name, WEB)
    domains.check_free(handles, "web2", uuid.uuid4())


def test_a_dying_domain_is_no_namesake_and_keeps_no_uuid():
    handles = host(("web1", Info(23, WEB, dying=True)))
    domains.check_free(handles, "web1", WEB)


def test_a_domain_is_found_beside_a_dying_one_of_the_same_name_and_uuid():
    handles = host(("web1", Info(23, WEB, dying=True)), ("web1", Info(24, WEB)))
    assert domains.find(handles, "web1").domid == 24
    assert domains.find(handles, str(WEB)).domid == 24
    assert domains.find(handles, "23").domid == 23


def test_a_dying_domain_alone_is_found_and_named_as_that():
    handles = host(("web1", Info(23, WEB, dying=True)))
    with pytest.raises(DomainError, match="is being destroyed"):
        domains.check_can_be_saved(handles.store, domains.find(handles, "web1"))


def test_a_domain_without_a_name_is_called_by_its_number_once():
    assert str(domains.Domain(Info(23), "23")) == "domain 23"
    assert str(domains.Domain(Info(23), "web1")) == "web1 (domain 23)"


def test_memory_that_dying_domains_hold_is_named_where_it_is_missing():
    dead = SimpleNamespace(domid=23, dying=True, tot_pages=1 << 16, uuid=WEB)
    handles = SimpleNamespace(xen=SimpleNamespace(domains=lambda: [dead]))
    assert memory._held_by_dead(handles) == (
        " (and 256 MiB are still held by domains that are being destroyed: 23)"
    )
    dead.tot_pages = 0
    assert memory._held_by_dead(handles) == ""
