"""A migration that nobody has settled yet, and a newer one of the same domain: the old one decides nothing."""

from __future__ import annotations

import errno
import uuid
from contextlib import contextmanager

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from table_host import CONFIG, UUID, Pair, TableCopy
from test_killed_migrations import migrate_in_two_processes, recover_all, running

from pyxc import XenError
from saverestore.errors import DomainError, ErrorName, Interrupted, Remedy
from saverestore.migrate.handover import Event, Role, State
from saverestore.migrate.journal import boot_id, now
from saverestore.migrate.messages import Aborted, Ask
from saverestore.migrate.records import Head, JournalUnread
from saverestore.migrate.recovery import RecoverRequest, recover
from saverestore.migrate.source import dry_run
from saverestore.migrate.to_xl import dry_run_to_xl
from saverestore.migrate.unsettled import check_settled, was_aborted
from saverestore.toolstack import domains, moving

OLD, NEW = uuid.UUID(int=0xA1), uuid.UUID(int=0xA2)


def journal(host, migration: uuid.UUID, role: Role, *states: State, **changed) -> None:
    """A process has written this, and was killed."""
    head = {
        "name": "web1",
        "uuid": uuid.UUID(UUID),
        "domid": 1 if role is Role.SOURCE else -1,
        "boot": boot_id(),
        "peer": "c",
        "peer_journals": "",
        "began": now(),
    }
    first, *others = states
    with host.journals.create(Head(role, migration, **(head | changed)), first) as made:
        for state in others:
            made.enter(state)


def recovered(pair: Pair, migration: uuid.UUID, force: Event | None = None):
    (log,) = [one for one in pair.a.journals.all() if one.head.migration == migration]
    pair.is_cut = True
    return recover(
        log,
        RecoverRequest(force=force),
        pair.a,
        journals=pair.a.journals,
        copy_of=TableCopy,
        connect=pair.connector(pair.b),
    )


@pytest.fixture
def superseded(tmp_path) -> Pair:
    """An old migration is in STREAMING; a newer one has granted the domain, which is suspended here."""
    pair = Pair(tmp_path)
    journal(pair.a, OLD, Role.SOURCE, State.OFFERED, State.ACCEPTED, State.STREAMING)
    journal(pair.a, NEW, Role.SOURCE, State.OFFERED, State.ACCEPTED, State.STREAMING, State.GRANTED)
    moving.note(pair.a.store, 1, str(NEW))
    pair.a.set_state(1, "suspended")
    return pair


def state_of(pair: Pair, migration: uuid.UUID) -> State:
    (state,) = [one.state for one in pair.a.journals.all() if one.head.migration == migration]
    return state


@pytest.mark.parametrize("step", ["after OFFERED", "after STREAMING", "before GRANTED"])
def test_a_domain_whose_last_migration_is_not_settled_is_not_offered_again_until_it_is(tmp_path, step):
    migrate_in_two_processes(tmp_path, step, "after RECEIVING" if step == "after STREAMING" else None)
    pair = Pair(tmp_path)
    pair.a.set_state(1, "running")  # killed a moment earlier, it would have been
    before = pair.states()
    with pytest.raises(DomainError, match="no changes were made") as caught:
        pair.migrate()
    assert caught.value.name is ErrorName.DOMAIN_NEEDS_RECOVERY
    assert [(one.remedy, one.object) for one in caught.value.remedies] == [(Remedy.RECOVER_MIGRATION, "web1")]
    assert (pair.served, pair.states(), running(pair)) == ([], before, ["a"])
    for here, there in ((pair.a, pair.b), (pair.b, pair.a)):
        recover_all(pair, here, there)
    pair.migrate()
    pair.join()
    assert (pair.a.table(), pair.b.table()) == ({}, {"web1": "running"})


def test_a_dry_run_finds_that_the_last_migration_is_not_settled_besides_all_else(tmp_path):
    pair = Pair(tmp_path)
    journal(pair.a, OLD, Role.SOURCE, State.OFFERED, State.ACCEPTED)
    pair.b.fails["memory_reserved"] = DomainError("b lacks memory", name=ErrorName.HOST_LACKS_MEMORY)
    ours = dry_run(pair.request(), host=pair.a, journals=pair.a.journals, connect=pair.connector(pair.b))
    assert [one.name for one in ours.errors] == [ErrorName.DOMAIN_NEEDS_RECOVERY, ErrorName.HOST_LACKS_MEMORY]
    pair.is_cut = True
    xls = dry_run_to_xl(pair.request(), host=pair.a, journals=pair.a.journals, connect=pair.connector(pair.b))
    assert xls.errors[0].name is ErrorName.DOMAIN_NEEDS_RECOVERY


@pytest.mark.parametrize(
    "changed",
    [
        {"domid": 7},
        {"boot": "another"},
        {"uuid": uuid.UUID(int=9)},
        {"role": Role.DESTINATION},  # it has not brought this domain
    ],
)
def test_an_unsettled_migration_of_another_domain_or_another_boot_is_in_nobodys_way(tmp_path, changed):
    pair = Pair(tmp_path)
    role = changed.pop("role", Role.SOURCE)
    journal(pair.a, OLD, role, State.ACCEPTED, **changed)
    pair.migrate()
    pair.join()
    assert (pair.a.table(), pair.b.table()) == ({}, {"web1": "running"})


def test_a_journal_that_the_disk_does_not_give_just_now_may_be_of_this_domain(tmp_path, monkeypatch):
    """A damaged one is in nobody's way, as it can never be recovered; this one may say GRANTED a moment later."""
    pair = Pair(tmp_path)
    journal(pair.a, OLD, Role.SOURCE, State.OFFERED, State.STREAMING)

    def fails(_):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.read_bytes", fails)
        with pytest.raises(JournalUnread, match="Too many open files"):
            check_settled(pair.a.journals, pair.a, pair.a.find("web1"))


def test_a_domain_that_has_come_and_is_not_settled_does_not_leave_again_before(tmp_path):
    """A person has unpaused what could not be started. The host that it came from would hear LOST later."""
    migrate_in_two_processes(tmp_path, "after saying GRANT", "after COMMITTED")
    pair = Pair(tmp_path)
    (domid,) = [int(one.name) for one in pair.b._files()]
    pair.b.store.write(f"/local/domain/{domid}/name", "web1")
    pair.b.set_state(domid, "running")
    pair.a, pair.b = pair.b, pair.a
    with pytest.raises(DomainError) as caught:
        pair.migrate()
    assert caught.value.name is ErrorName.DOMAIN_NEEDS_RECOVERY


def test_recovery_of_an_old_migration_does_not_resume_what_a_newer_one_has_granted(superseded):
    assert recovered(superseded, OLD).error is None
    assert superseded.a.table() == {"web1": "suspended"}
    assert moving.noted(superseded.a.store, 1) == str(NEW)
    assert (state_of(superseded, OLD), state_of(superseded, NEW)) == (State.ABORTED, State.GRANTED)


def test_a_destination_that_asks_of_an_old_migration_does_not_have_the_domain_resumed(superseded):
    with superseded.connector(superseded.a)() as channel:
        channel.greet("b", "b", "b")
        channel.say(Ask(OLD))
        assert isinstance(channel.hear(Aborted), Aborted)
    superseded.join()
    assert superseded.a.table() == {"web1": "suspended"}
    assert moving.noted(superseded.a.store, 1) == str(NEW)
    assert (state_of(superseded, OLD), state_of(superseded, NEW)) == (State.ABORTED, State.GRANTED)


def test_the_newer_migration_is_settled_as_ever(superseded):
    recovered(superseded, OLD)
    assert recovered(superseded, NEW, Event.FORCE_RUN).error is None
    assert superseded.a.table() == {"web1": "running"}
    assert moving.noted(superseded.a.store, 1) is None


@pytest.mark.parametrize("force", [Event.FORCE_RUN, Event.FORCE_DESTROY])
def test_the_note_is_looked_at_and_removed_while_no_other_migration_can_begin(tmp_path, monkeypatch, force):
    pair = Pair(tmp_path)
    journal(pair.a, OLD, Role.SOURCE, State.GRANTED)
    moving.note(pair.a.store, 1, str(OLD))
    held, looks = [], []

    @contextmanager
    def locked(domain):
        held.append(domain.domid)
        yield
        held.remove(domain.domid)

    for name in ("noted", "forget"):
        real = getattr(moving, name)
        monkeypatch.setattr(
            moving,
            name,
            lambda *given, name=name, real=real: (looks.append((name, list(held))), real(*given))[1],
        )
    pair.a.locked = locked
    recovered(pair, OLD, force)
    assert looks == [("noted", [1])] + ([("forget", [1])] if force is Event.FORCE_RUN else [])


@pytest.mark.parametrize("role", [Role.SOURCE, Role.DESTINATION])
def test_an_old_migration_does_not_destroy_what_a_newer_one_moves(tmp_path, role):
    pair = Pair(tmp_path)
    journal(pair.a, OLD, role, State.READY if role is Role.DESTINATION else State.GRANTED)
    if role is Role.DESTINATION:
        moving.note_brought(pair.a.store, 1, str(OLD))
    moving.note(pair.a.store, 1, str(NEW))
    recovered(pair, OLD, Event.FORCE_DESTROY)
    assert pair.a.table() == {"web1": "running"}


def test_an_old_migration_does_not_start_what_a_newer_one_has_granted(tmp_path):
    """A suspended domain of some kinds is paused, too."""
    pair = Pair(tmp_path)
    journal(pair.a, OLD, Role.DESTINATION, State.COMMITTED)
    moving.note_brought(pair.a.store, 1, str(OLD))
    moving.note(pair.a.store, 1, str(NEW))
    pair.a.set_state(1, "paused")
    recovered(pair, OLD)
    assert pair.a.table() == {"web1": "paused"}
    assert state_of(pair, OLD) is State.RUNNING


def test_a_domain_that_came_back_is_not_the_one_that_an_old_migration_granted(tmp_path):
    pair = Pair(tmp_path)
    journal(pair.a, OLD, Role.SOURCE, State.OFFERED, State.GRANTED, domid=1)
    pair.a.add(CONFIG, "running")  # domain 2
    pair.a.destroy(1)
    recovered(pair, OLD, Event.FORCE_DESTROY)
    assert pair.a.table() == {"web1": "running"}


def test_a_note_that_xenstore_did_not_remove_is_known_to_be_stale(tmp_path, monkeypatch):
    pair = Pair(tmp_path)
    save_guest = pair.a.save_guest

    def guest_that_is_interrupted(*given):
        guest = save_guest(*given)
        guest.moments.fail("read_pages", 0, Interrupted("interrupted by Ctrl-C"))
        return guest

    def fails(*_: object) -> None:
        raise XenError("xs_rm", errno.EIO)

    pair.a.save_guest = guest_that_is_interrupted
    with monkeypatch.context() as patched:
        patched.setattr(pair.a.store, "remove", fails)
        with pytest.raises(Interrupted):
            pair.migrate()
    pair.join()
    assert pair.states() == (["ABORTED"], ["ABORTED"])
    migration = moving.noted(pair.a.store, 1)
    assert migration is not None
    (domain,) = domains.all_domains(pair.a.handles)
    assert was_aborted(pair.a.journals, domain, migration)


@pytest.mark.parametrize("last", [state for state in State if state is not State.ABORTED])
def test_a_note_of_a_migration_that_is_not_surely_aborted_is_heeded(tmp_path, last):
    pair = Pair(tmp_path)
    (domain,) = domains.all_domains(pair.a.handles)
    journal(pair.a, OLD, Role.SOURCE, last)
    assert not was_aborted(pair.a.journals, domain, str(OLD))


@pytest.mark.parametrize(
    "changed", [{"domid": 7}, {"boot": "another"}, {"uuid": uuid.UUID(int=9)}, {"role": Role.DESTINATION}]
)
def test_a_note_is_not_taken_for_that_of_another_domain_or_another_boot(tmp_path, changed):
    pair = Pair(tmp_path)
    (domain,) = domains.all_domains(pair.a.handles)
    journal(pair.a, OLD, changed.pop("role", Role.SOURCE), State.ABORTED, **changed)
    assert not was_aborted(pair.a.journals, domain, str(OLD))
    assert not was_aborted(pair.a.journals, domain, str(NEW))


def test_a_journal_that_cannot_be_read_does_not_show_that_a_migration_was_aborted(tmp_path):
    pair = Pair(tmp_path)
    (domain,) = domains.all_domains(pair.a.handles)
    journal(pair.a, OLD, Role.SOURCE, State.ABORTED)
    (path,) = pair.a.journals.directory.glob("*.journal")
    path.write_bytes(b"torn")
    assert not was_aborted(pair.a.journals, domain, str(OLD))
