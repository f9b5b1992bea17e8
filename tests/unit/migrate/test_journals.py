"""Journals on the disk: what is there after a crash, what is ignored, and what is damage."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from saverestore.errors import ErrorName, TransportError
from saverestore.migrate import journal as journal_module
from saverestore.migrate import records
from saverestore.migrate.handover import Role, State
from saverestore.migrate.journal import JournalBusy, JournalExists, Journals
from saverestore.migrate.records import Head, JournalError, JournalUnread, Log

ID = uuid.UUID("11111111-2222-4333-8444-555555555555")
HEAD = Head(
    Role.SOURCE, ID, "web1", uuid.UUID(int=1), 7, "b001", "host2", "bbbb", "2026-11-28T12:00:00.000+00:00"
)


@pytest.fixture
def journals(tmp_path) -> Journals:
    return Journals(tmp_path / "pymigrate")


def whole(journals: Journals) -> Path:
    """A journal with three states, closed: its file."""
    with journals.create(HEAD, State.OFFERED) as journal:
        journal.enter(State.ACCEPTED, host="host2")
        journal.enter(State.GRANTED)
        return journal.path


def test_a_journal_reads_back_as_it_was_written(journals):
    whole(journals)
    with journals.open(Role.SOURCE, ID) as journal:
        assert journal.log.head == HEAD
        assert [one.state for one in journal.log.entries] == [State.OFFERED, State.ACCEPTED, State.GRANTED]
        assert journal.log.note("host") == "host2"
        journal.enter(State.DONE)
    (log,) = journals.all()
    assert log.state is State.DONE
    assert journals.open(Role.DESTINATION, ID) is None


def test_only_root_may_look_at_journals(journals):
    path = whole(journals)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_person_can_read_it(journals):
    lines = whole(journals).read_bytes().rstrip(b"\0").decode().splitlines()
    assert [line.split('"state":')[1][:10] for line in lines[1:]] == [
        '"OFFERED",',
        '"ACCEPTED"',
        '"GRANTED",',
    ]


def test_a_text_that_is_not_unicode_is_written_and_reads_back(journals):
    """A file's name in an error, for example: what is not UTF-8 in it, Python has as half a surrogate pair."""
    reason = os.fsdecode(b"/srv/\xff.cfg: no such file")
    with journals.create(HEAD, State.OFFERED) as journal:
        journal.enter(State.ABORTED, reason=reason)
    (log,) = journals.all()
    assert (log.state, log.note("reason")) == (State.ABORTED, reason)


def test_a_state_that_matters_to_nobody_later_is_not_written(journals):
    with journals.create(HEAD, State.OFFERED) as journal:
        journal.enter(State.SUSPENDED)
        assert journal.state is State.SUSPENDED
    (log,) = journals.all()
    assert log.state is State.OFFERED


def test_everything_is_synced_before_it_is_relied_on(journals, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(
        journal_module.os,
        "fsync",
        lambda fd: (synced.append(str(Path(f"/proc/self/fd/{fd}").readlink())), fsync(fd)),
    )
    with journals.create(HEAD, State.OFFERED) as journal:
        folder = str(journals.directory)
        assert folder in synced and str(journals.directory.parent) in synced
        synced.clear()
        journal.enter(State.GRANTED)
    assert len(synced) == 1 and "11111111" in synced[0]


def test_a_torn_last_line_is_ignored_and_overwritten(journals):
    path = whole(journals)
    whole_data = path.read_bytes()
    end = len(whole_data.rstrip(b"\0"))
    last = whole_data.rstrip(b"\0").rfind(b"\n", 0, end - 1) + 1
    for cut in range(last, end):
        for rest in (b"\0", b"x"):  # what had not been written yet, or a sector that had
            torn = (whole_data[:cut] + rest * (end - cut - 1)).ljust(len(whole_data), b"\0")
            path.write_bytes(torn)
            with journals.open(Role.SOURCE, ID) as journal:
                assert journal.state is State.ACCEPTED
                journal.enter(State.LOST)
            (log,) = journals.all()
            assert [one.state for one in log.entries] == [State.OFFERED, State.ACCEPTED, State.LOST]


def test_any_other_change_is_damage_and_is_not_guessed_at(journals):
    path = whole(journals)
    data = path.read_bytes()
    last = data.rstrip(b"\0").rfind(b"\n", 0, len(data.rstrip(b"\0")) - 1) + 1
    for at in range(0, last, 3):
        changed = bytearray(data)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(JournalError):
            journals.open(Role.SOURCE, ID)
    assert all(isinstance(one, JournalError) for one in journals.all())


def test_a_line_left_out_is_damage(journals):
    lines = whole(journals).read_bytes().rstrip(b"\0").splitlines(keepends=True)
    with pytest.raises(JournalError, match="line 2 where line 1 belongs"):
        records.unpack(lines[0] + b"".join(lines[2:]), "x")


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"rubbish\n", b"\xff" * 9000])
def test_what_is_no_journal_is_reported(data):
    with pytest.raises(JournalError) as caught:
        records.unpack(data, "x.journal")
    assert str(caught.value).startswith("x.journal ")
    assert caught.value.name is ErrorName.JOURNAL_UNREADABLE


def test_a_journal_of_a_newer_version_is_called_that():
    line = records._line({"journal": 2, "anything": "else"})
    with pytest.raises(
        JournalError, match="by a newer version of this program: format 2, and 1 is known here"
    ):
        records.unpack(line, "x.journal")


def test_one_process_at_a_time_works_on_a_migration(journals):
    with journals.create(HEAD, State.OFFERED):
        with pytest.raises(JournalBusy) as caught:
            journals.open(Role.SOURCE, ID)
        assert caught.value.pid == os.getpid()
        assert journals.holder(Role.SOURCE, ID) == os.getpid()
        with pytest.raises(JournalExists):
            journals.create(HEAD, State.ABORTED)
    assert journals.holder(Role.SOURCE, ID) is None


def test_who_works_on_a_migration_is_known_where_the_kernel_calls_the_file_system_otherwise(
    journals, tmp_path, monkeypatch
):
    """btrfs and overlayfs give each subvolume or file a device number of its own, which /proc/locks does not have."""
    path = whole(journals)
    monkeypatch.setattr(journal_module, "LOCKS", tmp_path / "locks")
    inode = path.stat().st_ino

    def locked_by(*pids: int) -> None:
        lines = [f"{n}: FLOCK  ADVISORY  WRITE {pid} fe:ff:{inode} 0 EOF\n" for n, pid in enumerate(pids)]
        journal_module.LOCKS.write_text("".join(lines))

    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as another:
        locked_by(another.pid, os.getpid())
        with journals.open(Role.SOURCE, ID):
            assert journals.holder(Role.SOURCE, ID) == os.getpid()
        assert journals.holder(Role.SOURCE, ID) is None  # locks of other files, whose number is the same
        another.communicate()
    locked_by(another.pid)  # it has ended meanwhile
    assert journals.holder(Role.SOURCE, ID) is None


def test_a_disk_that_fills_up_later_has_room_for_every_line(journals):
    with journals.create(HEAD, State.OFFERED) as journal:
        before = journal.path.stat().st_size
        for state in (State.ACCEPTED, State.STREAMING, State.GRANTED, State.ABORTED):
            journal.enter(state, reason="x" * 1000, error="y" * 1000)
        assert journal.path.stat().st_size == before


def test_a_journal_that_cannot_be_written_is_an_error_with_the_state_that_may_be_there(journals, monkeypatch):
    with journals.create(HEAD, State.OFFERED) as journal:
        monkeypatch.setattr(
            journal_module.os, "fsync", lambda _fd: (_ for _ in ()).throw(OSError(5, "I/O error"))
        )
        with pytest.raises(TransportError, match="the journal of a migration cannot be"):
            journal.enter(State.GRANTED)
        assert journal.state is State.GRANTED


def failing_once(monkeypatch, call: str, written: int = 0) -> None:
    """The next call fails, after so many bytes were written all the same."""
    real = getattr(os, call)

    def fail(descriptor, *given):
        monkeypatch.setattr(journal_module.os, call, real)
        if written:
            data, at = given
            real(descriptor, data[:written], at)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal_module.os, call, fail)


@pytest.mark.parametrize(("call", "written"), [("pwrite", 0), ("pwrite", 30), ("pwrite", 4096), ("fsync", 0)])
@pytest.mark.parametrize("length", [0, 200])
def test_an_entry_that_failed_is_replaced_by_the_next_one(journals, monkeypatch, call, written, length):
    with journals.create(HEAD, State.OFFERED) as journal:
        journal.enter(State.STREAMING)
        before = journal.log
        failing_once(monkeypatch, call, written)
        with pytest.raises(TransportError):
            journal.enter(State.GRANTED, reason="x" * 100)
        assert (journal.state, journal.log) == (State.GRANTED, before)
        journal.enter(State.ABORTED, reason="y" * length)
    (log,) = journals.all()
    assert [one.state for one in log.entries] == [State.OFFERED, State.STREAMING, State.ABORTED]
    data = journal.path.read_bytes()
    assert not data[log.length_bytes :].strip(b"\0")
    with journals.open(Role.SOURCE, ID) as journal:
        assert journal.state is State.ABORTED


def test_an_entry_that_failed_and_none_behind_it_is_there_or_not(journals, monkeypatch):
    for number, written in enumerate((0, 30, 4096)):
        head = replace(HEAD, migration=uuid.UUID(int=number))
        with journals.create(head, State.STREAMING) as journal:
            failing_once(monkeypatch, "pwrite", written)
            with pytest.raises(TransportError):
                journal.enter(State.GRANTED)
        with journals.open(Role.SOURCE, head.migration) as journal:
            assert journal.state is (State.GRANTED if written == 4096 else State.STREAMING)


def test_two_entries_that_failed_are_replaced_both_of_them(journals, monkeypatch):
    with journals.create(HEAD, State.STREAMING) as journal:
        for state, reason in ((State.GRANTED, "x" * 200), (State.ABORTED, "")):
            failing_once(monkeypatch, "fsync")
            with pytest.raises(TransportError):
                journal.enter(state, reason=reason)
        journal.enter(State.ABORTED)
    (log,) = journals.all()
    assert [one.state for one in log.entries] == [State.STREAMING, State.ABORTED]
    assert not journal.path.read_bytes()[log.length_bytes :].strip(b"\0")


def test_a_journal_that_the_disk_does_not_give_hides_no_other(journals, monkeypatch):
    whole(journals)
    bad = journals.directory / f"source-{uuid.UUID(int=9)}.journal"
    bad.write_bytes(b"unread")
    read = Path.read_bytes

    def fails(path):
        if path == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fails)
    error, log = journals.all()
    assert isinstance(log, Log)
    assert isinstance(error, JournalUnread)
    assert f"{bad}: Input/output error" in str(error)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EMFILE, errno.EIO])
def test_a_folder_that_cannot_be_listed_is_not_one_without_journals(journals, monkeypatch, code):
    """Else who is not root is told that there are none, and a new migration begins beside one that is not settled."""
    whole(journals)

    def fails(*_):
        raise OSError(code, os.strerror(code))

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, fails)
    with pytest.raises(TransportError, match=os.strerror(code)):
        list(journals.all())


def test_where_nothing_was_migrated_there_are_no_journals(journals):
    assert list(journals.all()) == []


def test_what_is_no_file_is_no_journal_and_hides_no_other(journals):
    whole(journals)
    (journals.directory / "old.journal").mkdir()
    error, log = journals.all()
    assert isinstance(log, Log)
    assert isinstance(error, JournalError)
    assert not isinstance(error, JournalUnread)
    assert "old.journal is a directory" in str(error)


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TransportError):
        Journals(tmp_path / "file" / "pymigrate").create(HEAD, State.OFFERED)


def test_a_folder_keeps_its_name_to_other_hosts_until_it_is_removed(journals, tmp_path):
    assert journals.identity() == Journals(journals.directory).identity()
    assert journals.identity() != Journals(tmp_path / "another").identity()


def test_journals_come_in_the_order_in_which_the_migrations_began(journals):
    import dataclasses

    for number, began in enumerate(("2026-11-28T12", "2026-11-28T10", "2026-11-28T11")):
        head = dataclasses.replace(HEAD, migration=uuid.UUID(int=number), began=began)
        journals.create(head, State.OFFERED).close()
    assert [one.head.migration.int for one in journals.all() if isinstance(one, Log)] == [1, 2, 0]
