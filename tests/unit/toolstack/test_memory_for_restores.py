"""Memory for two restores at once: what one was promised the other does not get, until it has it or is gone."""

from __future__ import annotations

import errno
import os
import signal
import uuid
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from pyxc import XenError
from saverestore.errors import DomainError, ErrorName, ExitCode, TransportError
from saverestore.toolstack import lock, memory, promised

MIB = 256  # pages
OVERHEAD = memory.HYPERVISOR_OVERHEAD_KIB >> 10


class FakeXen:
    """A host with free memory, and domains that take it."""

    def __init__(self, free_mib: int) -> None:
        self.free_pages = free_mib * MIB
        self.infos: dict[int, SimpleNamespace] = {}
        self.refuses: int | None = None

    def host(self) -> SimpleNamespace:
        claimed = sum(info.outstanding_pages for info in self.infos.values())
        return SimpleNamespace(free_pages=self.free_pages, outstanding_pages=claimed)

    def domains(self):
        return list(self.infos.values())

    def domain(self, domid: int) -> SimpleNamespace:
        return self.infos[domid]

    def add(self, domid: int, config, *, mib: int = 0, dying: bool = False) -> None:
        self.infos[domid] = SimpleNamespace(
            domid=domid,
            uuid=config.uuid,
            dying=dying,
            tot_pages=0,
            outstanding_pages=0,
            max_pages=config.target_kib // 4 + MIB,
        )
        self.fill(domid, mib)

    def fill(self, domid: int, mib: int) -> None:
        info = self.infos[domid]
        self.free_pages -= mib * MIB
        info.tot_pages += mib * MIB
        info.outstanding_pages = max(0, info.outstanding_pages - mib * MIB)

    def claim_pages(self, domid: int, nr_pages: int) -> None:
        if self.refuses is not None:
            raise XenError("xc_domain_claim_pages", self.refuses, domid=domid)
        info, host = self.infos[domid], self.host()
        wanted = nr_pages - info.tot_pages if nr_pages else 0
        if wanted > host.free_pages - host.outstanding_pages:
            raise XenError("xc_domain_claim_pages", errno.ENOMEM, domid=domid)
        assert nr_pages <= info.max_pages
        info.outstanding_pages = wanted


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LOCK_DIR", tmp_path / "locks")
    kind = SimpleNamespace(paging_pool_kib=lambda _config: 0)
    monkeypatch.setattr(memory, "this_host", lambda: SimpleNamespace(of_config=lambda _kind: kind))
    return tmp_path / "locks"


def config(name: str, mib: int) -> SimpleNamespace:
    domain_uuid = uuid.uuid5(uuid.NAMESPACE_DNS, name)
    return SimpleNamespace(name=name, uuid=domain_uuid, kind="pvh", target_kib=mib << 10)


def handles_of(xen: FakeXen) -> SimpleNamespace:
    return SimpleNamespace(xen=xen)


@contextmanager
def another(xen: FakeXen, wanted):
    """Another process that is restoring this: its pid."""
    ready, told = os.pipe()
    wait, end = os.pipe()
    child = os.fork()
    if child == 0:
        with memory.reserved(handles_of(xen), wanted):
            os.write(told, b"x")
            os.close(end)
            os.read(wait, 1)
        os._exit(0)
    os.close(wait)
    assert os.read(ready, 1)
    try:
        yield child
    finally:
        os.close(end)
        os.waitpid(child, 0)
        for fd in (ready, told):
            os.close(fd)


def test_a_host_needs_memory_for_what_the_image_holds_not_for_its_target():
    handles = handles_of(FakeXen(200))
    with memory.reserved(handles, config("web1", 128)):
        pass
    with (
        pytest.raises(DomainError, match="needs 260 MiB, this host has 200 MiB free; no domain was created"),
        memory.reserved(handles, config("web1", 128), 256 * MIB),
    ):
        pass


def test_of_two_restores_at_once_the_one_that_does_not_fit_any_more_is_refused_before_it_begins(folder):
    xen = FakeXen(200)
    with another(xen, config("web1", 128)):
        with (
            pytest.raises(
                DomainError, match="needs 132 MiB, this host has 200 MiB free, 132 MiB of it"
            ) as caught,
            memory.reserved(handles_of(xen), config("web2", 128)),
        ):
            pass
        assert "for domains that are being restored (web1)" in str(caught.value)
        assert (caught.value.name, caught.value.exit_code) == (ErrorName.HOST_LACKS_MEMORY, ExitCode.DOMAIN)
        with memory.reserved(handles_of(xen), config("small", 32)):
            pass
    with memory.reserved(handles_of(xen), config("web2", 128)):
        pass
    assert list(folder.glob("*.promise")) == []


def test_what_a_killed_restore_was_promised_is_free_again(folder):
    xen = FakeXen(200)
    with another(xen, config("web1", 128)) as pid:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with memory.reserved(handles_of(xen), config("web2", 128)):
            assert len(list(folder.glob("*.promise"))) == 1


def test_what_a_domain_has_got_already_is_not_counted_twice():
    xen, web1 = FakeXen(270), config("web1", 128)
    with ExitStack() as stack:
        stack.enter_context(memory.reserved(handles_of(xen), web1))
        xen.add(1, web1)
        xen.free_pages -= OVERHEAD * MIB
        for _ in range(4):
            with memory.reserved(handles_of(xen), config("web2", 128)):
                xen.fill(1, 32)
        assert xen.free_pages == (270 - 128 - OVERHEAD) * MIB


def test_what_xen_has_claimed_for_a_domain_is_not_counted_twice():
    xen, web1 = FakeXen(270), config("web1", 128)
    with memory.reserved(handles_of(xen), web1):
        xen.add(1, web1)
        xen.free_pages -= OVERHEAD * MIB
        with (
            memory.claimed(handles_of(xen), 1, "web1", 128 * MIB),
            memory.reserved(handles_of(xen), config("web2", 128)),
        ):
            pass


def test_one_of_the_same_uuid_that_is_being_destroyed_is_not_the_one_that_is_filled():
    xen, web1 = FakeXen(200), config("web1", 128)
    xen.add(1, web1, dying=True)
    xen.infos[1].tot_pages = 128 * MIB
    with (
        memory.reserved(handles_of(xen), web1),
        pytest.raises(DomainError, match="132 MiB of it") as caught,
        memory.reserved(handles_of(xen), config("web2", 128)),
    ):
        pass
    assert "128 MiB are still held by domains that are being destroyed: 1" in str(caught.value)


def test_a_claim_keeps_memory_from_others_until_the_domain_is_filled():
    xen, web1 = FakeXen(200), config("web1", 128)
    xen.add(1, web1)
    with memory.claimed(handles_of(xen), 1, "web1", 128 * MIB):
        assert xen.host().outstanding_pages == 128 * MIB
        xen.fill(1, 100)
        assert xen.host().outstanding_pages == 28 * MIB
    assert xen.host().outstanding_pages == 0


def test_a_claim_asks_for_no_more_than_the_domain_may_have():
    xen = FakeXen(500)
    xen.add(1, config("web1", 128))
    with memory.claimed(handles_of(xen), 1, "web1", 256 * MIB):
        assert xen.host().outstanding_pages == 129 * MIB


def test_memory_that_somebody_else_has_taken_is_found_before_the_domain_is_filled():
    xen = FakeXen(100)
    xen.add(1, config("web1", 128))
    with (
        pytest.raises(DomainError, match="needs 128 MiB, which somebody else has taken") as caught,
        memory.claimed(handles_of(xen), 1, "web1", 128 * MIB),
    ):
        pass
    assert caught.value.name is ErrorName.HOST_LACKS_MEMORY


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS])
def test_a_xen_that_cannot_keep_memory_fills_the_domain_all_the_same(number):
    xen = FakeXen(200)
    xen.add(1, config("web1", 128))
    xen.refuses = number
    with memory.claimed(handles_of(xen), 1, "web1", 128 * MIB):
        xen.fill(1, 128)


def test_a_claim_of_a_domain_that_is_gone_is_no_error():
    xen = FakeXen(200)
    xen.add(1, config("web1", 128))
    with (
        pytest.raises(KeyError, match="why it failed"),
        memory.claimed(handles_of(xen), 1, "web1", 128 * MIB),
    ):
        xen.refuses = errno.ESRCH
        raise KeyError("why it failed")


def test_a_domain_that_xl_restores_is_counted_too():
    xen, web1 = FakeXen(200), config("web1", 128)
    xen.add(1, web1)
    with (
        memory.counted(xen.infos[1]),
        pytest.raises(DomainError, match=r"being restored \(domain 1\)"),
        memory.reserved(handles_of(xen), config("web2", 128)),
    ):
        pass


def test_a_file_that_holds_no_promise_is_passed_over(folder):
    folder.mkdir()
    (folder / "memory-x.promise").write_text("torn")
    with memory.reserved(handles_of(FakeXen(200)), config("web1", 128)):
        assert not (folder / "memory-x.promise").exists()


def test_a_promise_that_cannot_be_entered_leaves_no_file(folder, monkeypatch):
    monkeypatch.setattr(promised.os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    folder.mkdir()
    with pytest.raises(TransportError, match="full"):
        promised._entered("memory", {})
    assert list(folder.glob("*.promise")) == []
