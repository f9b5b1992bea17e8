"""Migrations from stock xl: a scripted `xl migrate` at the other end, and each way in which either side can end."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import threading
from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_xl import FakeMigrate, Script, uuid_of_another
from stream_samples import golden, source_of
from table_host import CONFIG, Pair, TableCopy
from test_killed_migrations import in_a_child
from test_migrations import entry_that_fails

from saverestore.engine.progress import Silence
from saverestore.errors import (
    Advice,
    DomainError,
    ErrorName,
    Interrupted,
    Remedy,
    SaveRestoreError,
    TransportError,
    XenRefused,
)
from saverestore.migrate import xl_peer
from saverestore.migrate.from_xl import receive_from_xl
from saverestore.migrate.handover import Event
from saverestore.migrate.peers import InDoubt, MigrationAborted
from saverestore.migrate.recovery import RecoverRequest, Settled, recover
from saverestore.migrate.xl_peer import XlSender
from saverestore.migrate.xl_words import AskedFor
from saverestore.operations.image import opened_in
from saverestore.stream.libxl import CONTEXT_HEAD
from saverestore.stream.xl import XlHeader
from saverestore.transport.connection import PipeConnection, SocketConnection
from saverestore.transport.relay import Relay


@pytest.fixture
def pair(tmp_path) -> Pair:
    return Pair(tmp_path)


class Migration:
    """`xl migrate` on a thread; `receive` serves it here."""

    def __init__(self, pair: Pair, script: Script | None = None, *, timeout_s: float = 20.0) -> None:
        self.pair = pair
        ours, theirs = socket.socketpair()
        self.xl = FakeMigrate(theirs, pair.a, script or Script())
        self.connection = SocketConnection(ours, "10.0.9.1", timeout_s=timeout_s)
        self._thread = threading.Thread(target=self.xl.run, daemon=True)

    def receive(self, asked: AskedFor | None = None):
        self._thread.start()
        try:
            with self.connection:
                return receive_from_xl(
                    XlSender(self.connection),
                    asked or AskedFor(),
                    self.pair.b,  # type: ignore[arg-type]
                    Silence(),
                    journals=self.pair.b.journals,
                    copy_of=TableCopy,
                )
        finally:
            self._thread.join(30)
            assert not self._thread.is_alive()


def notes_of(error: BaseException) -> str:
    return "; ".join(getattr(error, "__notes__", []))


def test_a_domain_comes_with_its_memory_from_a_host_with_stock_xl(pair):
    migration = Migration(pair)
    received = migration.receive()
    assert (pair.a.table(), pair.b.table()) == ({}, {"web1": "running"})
    assert migration.xl.outcome == "successful"
    assert pair.states() == ([], ["RUNNING"])
    restored = pair.b.restored.domain
    pfns = pair.a.memory.data_pfns()
    assert (restored.read(pfns) == pair.a.memory.read(pfns)).all()
    assert (received.name, received.domid) == ("web1", 1)
    assert pair.b.watched == [(1, "web1")]


def test_it_is_paused_and_unwatched_where_xl_is_asked_for_that(pair):
    migration = Migration(pair)
    migration.receive(AskedFor(paused=True, watched=False))
    assert pair.b.table() == {"web1": "paused"}
    assert migration.xl.outcome == "successful"
    assert pair.b.watched == []


def test_what_libxl_reads_of_the_image_ends_where_the_image_ends(pair):
    """libxl reads from a pipe into which the image is passed on: what xl says behind the image stays where it is."""
    image = golden("hvm-v2-xl")
    with source_of(image) as old, io.BytesIO() as new:
        XlHeader.read(old)
        XlHeader.write(SimpleNamespace(writev=new.writelines), json.dumps(CONFIG).encode())  # type: ignore[arg-type]
        image = new.getvalue() + image[old.offset :]
    ours, theirs = socket.socketpair()
    theirs.sendall(image + b"domain is yours")
    with SocketConnection(ours, "10.0.9.1", timeout_s=5) as connection, theirs:
        source = XlSender(connection).source
        with opened_in(source) as opened, Relay(source, opened.follow, head=CONTEXT_HEAD) as relay:
            read = b""
            while part := os.read(relay.fileno(), 1 << 16):
                read += part
            relay.finish()
        assert image.endswith(read)
        assert source.read(15) == b"domain is yours"


# ---- failures here before READY: xl resumes its own


@pytest.mark.parametrize("call", ["memory_reserved", "check_free", "create", "connect"])
def test_what_this_host_lacks_leaves_the_domain_to_xl(pair, call):
    pair.b.fails[call] = DomainError("no room", name=ErrorName.HOST_LACKS_MEMORY)
    migration = Migration(pair)
    with pytest.raises(DomainError, match="no room"):
        migration.receive()
    assert migration.xl.outcome.startswith("resumed")
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})


def test_all_that_this_host_lacks_is_reported_at_once_and_no_journal_is_made(pair):
    pair.b.fails["memory_reserved"] = DomainError("no room", name=ErrorName.HOST_LACKS_MEMORY)
    pair.b.add(uuid_of_another(CONFIG), "running")
    with pytest.raises(DomainError) as caught:
        Migration(pair).receive()
    assert "called 'web1' already" in str(caught.value)
    assert "no room" in notes_of(caught.value)
    assert pair.states() == ([], [])


def test_a_disk_that_is_not_raw_is_refused(pair):
    pair.a.devices = [{"vdev": "xvda", "pdev_path": "/srv/x", "format": "qcow2"}]
    with pytest.raises(DomainError, match="of the format qcow2"):
        Migration(pair).receive()
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})


@pytest.mark.parametrize("state", ["ACCEPTED", "RECEIVING", "READY"])
@pytest.mark.parametrize("kept", [False, True])
def test_a_journal_that_cannot_be_written_before_ready_leaves_the_domain_to_xl(
    pair, monkeypatch, state, kept
):
    if state == "ACCEPTED":
        fails = TransportError("the disk is broken")
        monkeypatch.setattr(pair.b.journals, "create", lambda *_, **__: (_ for _ in ()).throw(fails))
    entry_that_fails(monkeypatch, pair.b, state, kept=kept)
    migration = Migration(pair)
    with pytest.raises(TransportError, match="the disk is broken"):
        migration.receive()
    assert migration.xl.outcome.startswith("resumed")
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})


def test_ctrl_c_while_it_comes_leaves_nothing_here_and_the_domain_to_xl(pair):
    pair.b.fails["connect"] = Interrupted("interrupted by SIGTERM")
    migration = Migration(pair)
    with pytest.raises(Interrupted):
        migration.receive()
    assert migration.xl.outcome.startswith("resumed")
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})
    assert pair.states() == ([], ["ABORTED"])


# ---- failures there before the grant


@pytest.mark.parametrize("step", ["before image", "image sent"])
def test_an_xl_that_ends_before_this_host_is_ready_leaves_nothing_here_or_a_doubt(pair, step):
    migration = Migration(pair, Script(dies=step))
    with pytest.raises(SaveRestoreError):
        migration.receive()
    assert "running" not in pair.b.table().values()
    if step == "before image":
        assert pair.b.table() == {}
        assert pair.states() == ([], [])


@pytest.mark.parametrize("moment", ["static_records", "read_pages", "suspended", "end_records"])
def test_an_image_that_breaks_off_leaves_nothing_here(pair, moment):
    save_guest = pair.a.save_guest

    def guest_that_fails(*given):
        guest = save_guest(*given)
        guest.moments.fail(moment, 0, XenRefused("no"))
        return guest

    pair.a.save_guest = guest_that_fails
    with pytest.raises(SaveRestoreError):
        Migration(pair).receive()
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})
    assert set(pair.states()[1]) <= {"ABORTED"}


@pytest.mark.parametrize("said", [b"", b"\0" * 100, b"Xen saved domain, xl format\n \0 \r" + b"\xff" * 100])
def test_what_is_no_image_is_refused(pair, said):
    ours, theirs = socket.socketpair()
    theirs.sendall(said)
    theirs.shutdown(socket.SHUT_WR)
    with (
        SocketConnection(ours, "10.0.9.1", timeout_s=5) as connection,
        theirs,
        pytest.raises(SaveRestoreError),
    ):
        receive_from_xl(XlSender(connection), AskedFor(), pair.b, Silence(), journals=pair.b.journals)  # type: ignore[arg-type]
    assert pair.b.table() == {}


class HalfClosing(FakeMigrate):
    """Its ssh is still there when it ends before the grant: this host finds the end, and can still write."""

    def step(self, name: str) -> None:
        if name == "before GO":
            self.connection.outgoing.close()
            heard = b""
            while part := self.connection.incoming.read_some(100):
                heard += part
            self.heard = heard
        super().step(name)


def test_an_xl_that_ends_instead_of_granting_has_the_domain_and_nothing_is_left_here(pair, monkeypatch):
    monkeypatch.setattr(xl_peer, "GONE_S", 0.1)
    migration = Migration(pair, Script(dies="before GO"))
    migration.xl.__class__ = HalfClosing
    with pytest.raises(
        MigrationAborted, match=r"web1 was not granted to this host: 10\.0\.9\.1 has ended"
    ) as caught:
        migration.receive()
    assert pair.b.table() == {}
    assert "nothing is left of it here, and xl has it back" in notes_of(caught.value)
    assert pair.states() == ([], ["ABORTED"])
    assert migration.xl.heard.startswith(b"my copy unpause results are as follows\0\1domain is yours")


@pytest.mark.parametrize("said", [b"domain is mine", b"\0", b"xl migration receiver"])
def test_another_word_than_the_grant_starts_nothing(pair, said):
    migration = Migration(pair, Script(says={"GO": said}))
    with pytest.raises(MigrationAborted, match="where xl's permission to start belongs"):
        migration.receive()
    assert migration.xl.outcome == "given back"
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})


@pytest.mark.parametrize(
    "script", [Script(dies="before GO"), Script(says={"GO": b"domain is yours"}, dies="after GO")]
)
def test_a_connection_that_breaks_instead_of_the_grant_keeps_the_copy_paused_for_a_person_to_decide(
    pair, script
):
    with pytest.raises(InDoubt) as caught:
        Migration(pair, script).receive()
    assert caught.value.exit_code == 7
    assert Advice(Remedy.LOOK_FOR_OUTGOING, "web1") in caught.value.remedies
    assert pair.b.table() == {"web1--incoming": "paused"}
    assert pair.states() == ([], ["READY"])


def test_an_xl_that_is_silent_instead_of_granting_keeps_the_copy_paused(pair, monkeypatch):
    monkeypatch.setattr(xl_peer, "GRANT_S", 0.2)
    with pytest.raises(InDoubt, match="sent nothing"):
        Migration(pair, Script(silent="before GO")).receive()
    assert pair.b.table() == {"web1--incoming": "paused"}


def test_pipes_of_an_ssh_that_is_gone_are_told_from_an_xl_that_has_ended(pair):
    incoming, there = os.pipe()
    gone, outgoing = os.pipe()
    os.close(there)
    with PipeConnection(incoming, outgoing, "10.0.9.1", timeout_s=5) as connection:
        peer = XlSender(connection)
        assert "has ended" in str(peer.await_grant())
        os.close(gone)
        with pytest.raises(xl_peer.XlEnded):
            peer.await_grant()


# ---- after the grant


@pytest.mark.parametrize("call", ["unpause"])
def test_a_domain_that_does_not_start_is_given_back_to_xl(pair, call):
    pair.b.fails[call] = XenRefused("no")
    migration = Migration(pair)
    with pytest.raises(XenRefused, match="could not be started") as caught:
        migration.receive()
    assert migration.xl.outcome == "given back"
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})
    assert "xl has it back" in notes_of(caught.value)
    assert pair.states() == ([], ["ABORTED"])


def test_a_copy_that_can_be_neither_started_nor_removed_is_not_given_back(pair):
    pair.b.fails |= {"unpause": XenRefused("no"), "destroy": XenRefused("never")}
    migration = Migration(pair)
    with pytest.raises(XenRefused) as caught:
        migration.receive()
    assert migration.xl.outcome == "undefined"
    assert pair.a.table() == {"web1--migratedaway": "suspended"}
    assert "running" not in pair.b.table().values()
    assert "a copy is still here, paused; xl at 10.0.9.1 does not resume its own" in notes_of(caught.value)


def test_a_name_taken_meanwhile_gives_the_domain_back(pair):
    connect = pair.b.connect

    def taken(*given):
        pair.b.add(uuid_of_another(CONFIG), "running")
        connect(*given)

    pair.b.connect = taken
    migration = Migration(pair)
    with pytest.raises(DomainError, match="called 'web1' already"):
        migration.receive()
    assert migration.xl.outcome == "given back"
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {"web1": "running"})


@pytest.mark.parametrize("kept", [False, True])
def test_a_commit_that_cannot_be_written_gives_the_domain_back(pair, monkeypatch, kept):
    entry_that_fails(monkeypatch, pair.b, "COMMITTED", kept=kept)
    migration = Migration(pair)
    with pytest.raises(TransportError, match="the disk is broken"):
        migration.receive()
    assert migration.xl.outcome == "given back"
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})


def test_a_domain_that_runs_is_reported_though_that_cannot_be_written_down(pair, monkeypatch):
    entry_that_fails(monkeypatch, pair.b, "RUNNING", kept=False)
    migration = Migration(pair)
    migration.receive()
    assert migration.xl.outcome == "successful"
    assert (pair.a.table(), pair.b.table()) == ({}, {"web1": "running"})


def test_an_xl_that_dies_after_the_grant_changes_nothing_here(pair):
    Migration(pair, Script(dies="after GO")).receive()
    assert pair.b.table() == {"web1": "running"}
    assert pair.a.table() == {"web1--migratedaway": "suspended"}
    assert pair.states() == ([], ["RUNNING"])


# ---- recovery


def settled(pair: Pair, force: Event | None = None) -> Settled:
    (log,) = pair.b.journals.all()
    return recover(  # type: ignore[arg-type]
        log, RecoverRequest(force=force), pair.b, journals=pair.b.journals, copy_of=TableCopy
    )


def killed_at(folder, state: str, *, after: bool) -> tuple[Pair, str]:
    """This side is killed before or after this entry; xl follows its own rules: what it prints."""
    pair = Pair(folder)
    migration = Migration(pair)

    def work() -> None:
        import saverestore.migrate.journal as journal

        enter = journal.Journal.enter

        def entering(self, entered, **notes):
            if str(entered) == state and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            enter(self, entered, **notes)
            if str(entered) == state:
                os.kill(os.getpid(), signal.SIGKILL)

        journal.Journal.enter = entering
        os.close(migration.xl.connection._socket.detach())
        receive_from_xl(
            XlSender(migration.connection),
            AskedFor(),
            pair.b,  # type: ignore[arg-type]
            Silence(),
            journals=pair.b.journals,
            copy_of=TableCopy,
        )

    pid = in_a_child(work, None)
    os.close(migration.connection._socket.detach())  # a shutdown would be the child's end, too
    migration.xl.run()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    return Pair(folder), migration.xl.outcome


@pytest.mark.parametrize(("state", "after"), [("RECEIVING", True), ("READY", False)])
def test_killed_before_ready_recovery_removes_what_is_here_and_xl_has_it(tmp_path, state, after):
    pair, outcome = killed_at(tmp_path, state, after=after)
    assert outcome.startswith("resumed")
    assert settled(pair).error is None
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})


def test_killed_when_ready_recovery_leaves_it_to_a_person(tmp_path):
    pair, outcome = killed_at(tmp_path, "READY", after=True)
    assert outcome.startswith("resumed")
    assert isinstance(settled(pair).error, InDoubt)
    assert pair.b.table() == {"web1--incoming": "paused"}
    assert settled(pair, Event.FORCE_DESTROY).error is None
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})


@pytest.mark.parametrize(("state", "after"), [("COMMITTED", True), ("RUNNING", False)])
def test_killed_after_the_grant_recovery_starts_it_here_as_xl_never_resumes_it(tmp_path, state, after):
    pair, outcome = killed_at(tmp_path, state, after=after)
    assert outcome == "undefined"
    assert settled(pair).error is None
    assert pair.b.table() == {"web1": "running"}
    assert pair.a.table() == {"web1--migratedaway": "suspended"}
