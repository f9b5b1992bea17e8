"""What a killed save leaves is put right on every kind of host: processor cap, log-dirty, the domain itself."""

from __future__ import annotations

import errno
import uuid
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_host import FakeStore

from pyxc import XenError
from pyxc.sched import CpuPool, Scheduler, Share
from saverestore.errors import Advice, DomainError, ErrorName, Remedy, fact_of, remedies_of
from saverestore.guest.arm64 import resuming
from saverestore.guest.kinds import ARM64_HOST, X86_HOST
from saverestore.guest.x86 import kinds as x86_kinds
from saverestore.operations import recover
from saverestore.operations.recover import recover_domain, recover_locked
from saverestore.toolstack import lock, processor_cap, stock_helper
from saverestore.toolstack.domains import Domain

DOMID = 7
CAP = f"/local/domain/{DOMID}/pysave/cap"
REQUEST = f"/local/domain/{DOMID}/control/shutdown"
PUT_BACK = "it had been slowed down: its processor cap was put back (none instead of 40%)"
RUNS = "it is running"


class KilledSave:
    """A domain that a throttled save was at work on when it was killed: its cap is lowered, log-dirty is on."""

    def __init__(self, monkeypatch) -> None:
        self.done: list[str] = []
        self.share = Share(weight=256, cap=40)
        self.store = FakeStore({CAP: "0"})
        self.info = SimpleNamespace(
            domid=DOMID,
            uuid=uuid.uuid4(),
            hvm=True,
            cpupool=0,
            dying=False,
            paused=False,
            shutdown=False,
            suspended=False,
            shutdown_reason=0,
        )
        xen = SimpleNamespace(log_dirty_off=self._log_dirty_off, domain=lambda domid: self.info)
        self.handles = SimpleNamespace(xen=xen, store=self.store)
        self.domain = Domain(self.info, "web1")
        monkeypatch.setattr(processor_cap.sched, "cpu_pool", lambda *_: CpuPool(Scheduler.CREDIT2, 4))
        monkeypatch.setitem(processor_cap.GETTERS, Scheduler.CREDIT2, lambda *_: self.share)
        monkeypatch.setitem(processor_cap.SETTERS, Scheduler.CREDIT2, self._set_share)

    def _log_dirty_off(self, domid: int) -> None:
        self.done.append("log-dirty off")

    def _set_share(self, _xen, _domid, share: Share) -> None:
        self.done.append(f"cap {share.cap}")
        self.share = share


@pytest.fixture
def killed(monkeypatch) -> KilledSave:
    return KilledSave(monkeypatch)


def test_a_domain_that_is_being_destroyed_is_not_resumed(killed):
    killed.info.dying = killed.info.shutdown = killed.info.suspended = True
    with pytest.raises(DomainError, match="is being destroyed"):
        recover_locked(killed.handles, killed.domain, X86_HOST)


BOTH = pytest.mark.parametrize("host", [X86_HOST, ARM64_HOST], ids=["x86", "arm64"])


@BOTH
def test_the_cap_of_a_throttled_save_that_was_killed_is_put_back_and_log_dirty_is_off(killed, host):
    assert recover_locked(killed.handles, killed.domain, host) == [PUT_BACK, RUNS]
    assert killed.share.cap == 0
    assert killed.done == ["cap 0", "log-dirty off"]
    assert killed.store == {}


@BOTH
def test_a_domain_that_runs_as_it_should_is_left_alone(killed, host):
    killed.store.clear()
    assert recover_locked(killed.handles, killed.domain, host) == []
    assert killed.done == ["log-dirty off"]


@BOTH
def test_a_request_to_suspend_is_taken_back(killed, host):
    killed.store[REQUEST] = "suspend"
    assert recover_locked(killed.handles, killed.domain, host) == [
        PUT_BACK,
        "a request to suspend was withdrawn",
        RUNS,
    ]
    assert killed.store[REQUEST] == ""


def test_the_cap_is_put_back_before_an_arm64_domain_is_waited_for(killed, monkeypatch):
    monkeypatch.setattr(resuming.journals, "read", lambda *_: "journal")

    def by_journal(_handles, journal, _directory) -> list[str]:
        killed.done.append(journal)
        return ["its processors are as they were when it suspended"]

    monkeypatch.setattr(resuming, "recover_by_journal", by_journal)
    done = recover_locked(killed.handles, killed.domain, ARM64_HOST)
    assert done == [PUT_BACK, "its processors are as they were when it suspended", RUNS]
    assert killed.done == ["cap 0", "log-dirty off", "journal"]


def test_a_damaged_journal_keeps_nobody_from_putting_the_cap_back(killed, monkeypatch):
    def damaged(*_: object) -> None:
        raise DomainError("the journal cannot be read")

    monkeypatch.setattr(resuming.journals, "read", damaged)
    with pytest.raises(DomainError, match="journal") as caught:
        recover_locked(killed.handles, killed.domain, ARM64_HOST)
    assert killed.share.cap == 0
    assert fact_of(caught.value) == f"the journal cannot be read; done all the same: {PUT_BACK}"


@BOTH
def test_a_cap_that_cannot_be_put_back_keeps_nobody_from_recovering_the_domain(killed, monkeypatch, host):
    def refused(*_: object) -> None:
        raise XenError("xc_sched_credit2_domain_set", errno.EPERM, domid=DOMID)

    monkeypatch.setitem(processor_cap.SETTERS, Scheduler.CREDIT2, refused)
    killed.store[REQUEST] = "suspend"
    with pytest.raises(XenError, match="credit2") as caught:
        recover_locked(killed.handles, killed.domain, host)
    assert killed.done == ["log-dirty off"]
    assert killed.store == {REQUEST: "", CAP: "0"}
    assert fact_of(caught.value).endswith("; done all the same: a request to suspend was withdrawn")


def test_two_failures_are_both_reported(killed, monkeypatch):
    def refused(*_: object) -> None:
        raise DomainError("no cap can be set", remedies=[Advice(Remedy.TRY_AGAIN)])

    def damaged(*_: object) -> None:
        raise DomainError("the journal cannot be read")

    monkeypatch.setitem(processor_cap.SETTERS, Scheduler.CREDIT2, refused)
    monkeypatch.setattr(resuming.journals, "read", damaged)
    with pytest.raises(DomainError) as caught:
        recover_locked(killed.handles, killed.domain, ARM64_HOST)
    assert fact_of(caught.value) == "the journal cannot be read; no cap can be set"
    assert remedies_of(caught.value) == (Advice(Remedy.TRY_AGAIN),)


def test_a_domain_that_is_paused_is_not_said_to_run_when_it_has_been_resumed(killed, monkeypatch, caplog):
    """By pysave -p that was killed between pausing and resuming it, or by xl pause."""
    killed.store.clear()
    killed.info.suspended = killed.info.shutdown = killed.info.paused = True

    def resume(*_: object) -> SimpleNamespace:
        def do() -> None:
            killed.info.suspended = killed.info.shutdown = False

        return SimpleNamespace(resume=do)

    monkeypatch.setattr(x86_kinds, "Resumption", resume)
    done = recover_locked(killed.handles, killed.domain, X86_HOST)
    assert done == ["it was suspended and has been resumed"]
    assert "web1 (domain 7) is paused" in caplog.text
    assert [one.remedies for one in caplog.records] == [(Advice(Remedy.UNPAUSE_NOW, DOMID),)]


@pytest.fixture
def found(killed, monkeypatch, tmp_path) -> KilledSave:
    @contextmanager
    def opened():
        yield killed.handles

    monkeypatch.setattr(recover, "open_handles", opened)
    monkeypatch.setattr(recover.domains, "find", lambda *_: killed.domain)
    monkeypatch.setattr(recover.domains, "again", lambda *_: killed.domain)
    monkeypatch.setattr(lock, "LOCK_DIR", tmp_path)
    monkeypatch.setattr(recover, "this_host", lambda: X86_HOST)
    return killed


def never(*_: object) -> bool:
    return False


MOVING = f"/local/domain/{DOMID}/pysave/moving"


def test_a_domain_that_moves_is_left_to_its_migration(found):
    found.store[MOVING] = "1234"
    with pytest.raises(DomainError, match="moves to another host, which may run it") as caught:
        recover_domain("web1", was_aborted=never)
    assert caught.value.remedies == (Advice(Remedy.RECOVER_MIGRATION, "web1"),)
    assert (found.done, found.store[MOVING]) == ([], "1234")


def test_the_note_of_a_migration_that_was_aborted_is_in_nobodys_way_and_is_removed(found):
    """Xenstore failed just as the migration wanted to remove it."""
    found.store[MOVING] = "1234"
    asked = []
    done = recover_domain("web1", was_aborted=lambda *given: not asked.append(given))
    assert asked == [(found.domain, "1234")]
    assert done == [PUT_BACK, RUNS, "a note that it moves, of a migration that was aborted, was removed"]
    assert MOVING not in found.store


def test_the_note_stays_until_the_domain_is_put_right(found, monkeypatch):
    def fails(*_: object) -> None:
        raise DomainError("no")

    found.store[MOVING] = "1234"
    monkeypatch.setattr(recover, "recover_locked", fails)
    with pytest.raises(DomainError):
        recover_domain("web1", was_aborted=lambda *_: True)
    assert found.store[MOVING] == "1234"


def test_a_domain_that_is_being_restored_is_left_to_its_restore(found):
    """A device model that waits for its state would be told to run."""
    found.info.paused = True
    with (
        lock.restoring(found.info.uuid, None),
        pytest.raises(DomainError, match=r"is being restored by process .*; no changes were made") as caught,
    ):
        recover_domain("web1", was_aborted=never)
    assert caught.value.name is ErrorName.DOMAIN_BUSY
    assert found.done == []
    assert recover_domain("web1", was_aborted=never) == [PUT_BACK]


def test_a_domain_that_stock_xl_saves_is_left_to_xl(found, monkeypatch, tmp_path):
    """Its helper holds no lock of ours; resumed now, the domain might run here and where xl sends it."""
    monkeypatch.setattr(stock_helper, "PROC", tmp_path)
    (tmp_path / "42").mkdir()
    words = (
        "/usr/lib/xen-4.17/bin/libxl-save-helper",
        "--save-domain",
        "14",
        "11",
        str(DOMID),
        "0",
        "136",
        "0",
    )
    (tmp_path / "42" / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
    found.info.shutdown = found.info.suspended = True
    with pytest.raises(DomainError, match=r"its helper is process 42.*; no changes were made") as caught:
        recover_domain("web1", was_aborted=never)
    assert (caught.value.name, caught.value.remedies) == (ErrorName.DOMAIN_BUSY, ())
    assert (found.done, found.info.suspended) == ([], True)


def test_a_domain_whose_restore_was_killed_is_not_called_one_to_unpause(found):
    found.info.paused = True
    found.store |= {f"/libxl/{DOMID}/type": "hvm"}
    with pytest.raises(DomainError, match=r"is incomplete: .*; no changes were made") as caught:
        recover_domain("web1", was_aborted=never)
    assert caught.value.remedies == (Advice(Remedy.DESTROY_IF_ABANDONED, DOMID),)
    assert found.done == []


def test_a_copy_that_another_host_may_run_is_left_to_its_migration(found):
    found.info.paused = True
    found.store |= {f"/local/domain/{DOMID}/name": "web1--incoming"}
    found.store |= {f"/local/domain/{DOMID}/pysave/brought-by": "1234"}
    with pytest.raises(DomainError, match="comes from another host") as caught:
        recover_domain("web1--incoming", was_aborted=never)
    assert caught.value.remedies == (Advice(Remedy.RECOVER_MIGRATION, "web1"),)
    assert found.done == []
