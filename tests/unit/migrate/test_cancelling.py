"""Cancelling a migration whose process ends meanwhile: the signal meets no other process, and the error is true."""

from __future__ import annotations

import subprocess
import sys
import uuid

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from saverestore.errors import DomainError, ErrorName, Remedy
from saverestore.migrate.cancelling import cancel
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
