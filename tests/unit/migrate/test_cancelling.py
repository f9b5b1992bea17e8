"""Cancelling a migration whose process ends meanwhile: the signal meets no other process, and the error is true."""

from __future__ import annotations

import subprocess
import sys
import uuid

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from saverestore.errors import DomainError, ErrorName, Remedy
from saverestore.migrate.cancelling import cancel, source_at_work
from saverestore.migrate.handover import Role, State
from saverestore.migrate.journal import Journals, boot_id, now
from saverestore.migrate.records import Head, Log


class WithHolders(Journals):
    """Who works on a migration, each time that is asked."""

    def __init__(self, directory, *holders: int | None) -> None:
        super().__init__(directory)
        self._holders = list(holders)

    def holder(self, role: Role, migration: uuid.UUID) -> int | None:
        return self._holders.pop(0) if self._holders else None


def log_of(journals: Journals, *states: State) -> Log:
    head = Head(Role.SOURCE, uuid.uuid4(), "web1", uuid.UUID(int=1), 1, boot_id(), "b", "", now())
    with journals.create(head, State.OFFERED) as journal:
        for state in states:
            journal.enter(state)
        return journal.log


@pytest.fixture
def bystander():
    """A process that has the number of one that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.communicate(b"\n")
        assert process.returncode == 0


def test_a_process_that_got_the_number_of_one_that_has_ended_gets_no_signal(tmp_path, bystander):
    journals = WithHolders(tmp_path, bystander.pid, None)
    log = log_of(journals, State.STREAMING, State.ABORTED)
    log = Log(log.head, log.entries[:2], log.length_bytes)  # as it was when it was looked at
    cancel([log], "web1", journals=journals, wait_s=1.0)


@pytest.mark.parametrize("state", [State.STREAMING, State.LOST])
def test_one_that_was_killed_meanwhile_is_not_reported_as_granted(tmp_path, state):
    with subprocess.Popen(["true"]) as process:
        process.wait()
    journals = WithHolders(tmp_path, process.pid, None)
    log = log_of(journals, State.STREAMING)
    if state is not State.STREAMING:
        with journals.open(Role.SOURCE, log.head.migration) as journal:
            journal.enter(state)
    with pytest.raises(DomainError, match=f"not settled .state {state}") as caught:
        cancel([log], "web1", journals=journals, wait_s=1.0)
    assert caught.value.name is ErrorName.DOMAIN_NEEDS_RECOVERY
    assert [advice.remedy for advice in caught.value.remedies] == [Remedy.RECOVER_MIGRATION]


@pytest.mark.parametrize("is_there", [False, True], ids=["removed", "damaged"])
def test_a_migration_whose_journal_cannot_be_read_afterwards_is_not_reported_as_cancelled(tmp_path, is_there):
    with subprocess.Popen(["true"]) as process:
        process.wait()
    journals = WithHolders(tmp_path, process.pid, None)
    log = log_of(journals, State.STREAMING)
    (path,) = tmp_path.glob("*.journal")
    path.unlink()
    if is_there:
        path.write_bytes(b"rubbish")
    with pytest.raises(DomainError, match="not known") as caught:
        cancel([log], "web1", journals=journals, wait_s=1.0)
    assert caught.value.name is ErrorName.DOMAIN_NEEDS_RECOVERY


def test_the_migration_that_a_process_works_on_is_meant_whatever_the_clock_said_when_others_began(tmp_path):
    """The clock was set back since an earlier boot, whose migration nobody has settled."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    journals = WithHolders(tmp_path, None, process.pid, None)
    stale, live = log_of(journals, State.STREAMING), log_of(journals, State.STREAMING)
    found = source_at_work([live, stale], "web1", journals=journals)
    assert found == (live, process.pid)


def test_one_that_ends_while_it_is_looked_up_is_said_to_be_over(tmp_path):
    journals = WithHolders(tmp_path, None)
    log = log_of(journals, State.STREAMING, State.ABORTED)
    log = Log(log.head, log.entries[:2], log.length_bytes)  # as it was when it was looked at
    with pytest.raises(DomainError, match="no migration of web1 to another host is under way"):
        source_at_work([log], "web1", journals=journals)
