"""Recovery of one migration after the other: what ends it, what it only reports, and what a person may say."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from table_host import Pair, TableCopy
from test_unsettled_migrations import OLD, journal, recovered, state_of

from saverestore.errors import ErrorName, Interrupted
from saverestore.migrate.handover import Event, Role, State
from saverestore.migrate.recovery import RecoverRequest, recover

SOURCE_STATES = (State.OFFERED, State.ACCEPTED, State.STREAMING, State.GRANTED)
DESTINATION_STATES = (State.ACCEPTED, State.RECEIVING, State.READY, State.COMMITTED)


@pytest.mark.parametrize(
    ("role", "states"),
    [
        (Role.SOURCE, SOURCE_STATES[:3]),
        (Role.SOURCE, SOURCE_STATES),
        (Role.DESTINATION, DESTINATION_STATES[:3]),
    ],
    ids=["tells the destination", "asks the destination", "asks the source"],
)
def test_ctrl_c_ends_recovery_and_not_only_that_of_one_migration(tmp_path, role, states, monkeypatch):
    pair = Pair(tmp_path)
    journal(pair.a, OLD, role, *states)
    (log,) = pair.a.journals.all()

    @contextmanager
    def connect(*_):
        raise Interrupted("interrupted by Ctrl-C")
        yield

    monkeypatch.setattr(TableCopy, "is_here", lambda _: True)
    with pytest.raises(Interrupted):
        recover(log, RecoverRequest(), pair.a, journals=pair.a.journals, copy_of=TableCopy, connect=connect)


def test_a_journal_that_the_disk_does_not_give_is_reported_like_any_other_failure(tmp_path, monkeypatch):
    pair = Pair(tmp_path)
    journal(pair.a, OLD, Role.SOURCE, State.OFFERED)

    def fails(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fails)
    settled = recovered(pair, OLD)
    assert settled.error is not None
    assert "Input/output error" in str(settled.error)


@pytest.mark.parametrize("force", [Event.FORCE_RUN, Event.FORCE_DESTROY])
@pytest.mark.parametrize(
    ("role", "states"),
    [(Role.SOURCE, SOURCE_STATES[:n]) for n in (1, 2, 3)]
    + [(Role.DESTINATION, DESTINATION_STATES[:n]) for n in (1, 2, 4)],
)
def test_a_person_is_not_obeyed_where_this_host_decides_alone(tmp_path, role, states, force):
    pair = Pair(tmp_path)
    journal(pair.a, OLD, role, *states)
    settled = recovered(pair, OLD, force)
    assert settled.error is not None
    assert settled.error.name is ErrorName.USAGE
    assert "no changes were made" in str(settled.error)
    assert (state_of(pair, OLD), pair.a.table()) == (states[-1], {"web1": "running"})
