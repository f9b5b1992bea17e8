"""Migrations to stock xl: a scripted receiver that speaks its protocol, and each way in which it can end."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_xl import Receives, Script, uuid_of_another
from table_host import CONFIG, Pair, TableCopy
from test_killed_migrations import in_a_child
from test_migrations import entry_that_fails

from saverestore.engine.progress import Silence
from saverestore.errors import Advice, ErrorName, Interrupted, Remedy, SaveRestoreError
from saverestore.migrate import xl_peer
from saverestore.migrate.addresses import Unreachable, parse
from saverestore.migrate.handover import Event
from saverestore.migrate.peers import InDoubt, MigrationAborted
from saverestore.migrate.recovery import RecoverRequest, Settled, recover
from saverestore.migrate.to_xl import dry_run_to_xl, migrate_to_xl
from saverestore.migrate.xl_words import NotXl
from saverestore.toolstack.given_config import GivenConfig
from saverestore.transport.connection import BrokenPeer, PeerTimeout


@pytest.fixture
def pair(tmp_path) -> Pair:
    return Pair(tmp_path)


def migrate(pair: Pair, there: Receives, **changes):
    try:
        return migrate_to_xl(
            pair.request(**changes),
            Silence(),
            host=pair.a,
            journals=pair.a.journals,
            connect=there.connect,
        )
    finally:
        there.join()


def notes_of(error: BaseException) -> str:
    return "; ".join(getattr(error, "__notes__", []))


def test_a_domain_moves_with_its_memory_to_a_host_with_stock_xl(pair):
    migrated = migrate(pair, Receives(pair.b))
    assert (pair.a.table(), pair.b.table()) == ({}, {"web1": "running"})
    assert pair.states() == (["DONE"], [])
    restored = pair.b.restored.domain
    pfns = pair.a.memory.data_pfns()
    assert (restored.read(pfns) == pair.a.memory.read(pfns)).all()
    assert (migrated.answer.state, migrated.answer.error) == ("running", "")
    assert pair.a.flushed == ["suspended"]


def test_it_can_be_left_paused_and_get_another_name_there(pair):
    assert migrate(pair, Receives(pair.b), paused=True, name="web2").answer.state == "paused"
    assert (pair.a.table(), pair.b.table()) == ({}, {"web2": "paused"})


def test_xl_gets_the_configuration_that_was_given(pair):
    config = GivenConfig("web2.cfg", {"c_info": {"name": "web2"}, "on_crash": "preserve"})
    migrate(pair, Receives(pair.b), config=config)
    assert pair.b.table() == {"web2": "running"}
    assert pair.b._entry(1)["config"]["on_crash"] == "preserve"


def test_a_dry_run_looks_whether_xl_is_there_and_changes_nothing(pair):
    there = Receives(pair.b)
    found = dry_run_to_xl(pair.request(), host=pair.a, connect=there.connect)
    there.join()
    assert found.errors == []
    assert "xl finds out during the migration only" in found.facts[-1]
    assert (pair.a.table(), pair.b.table(), pair.states()) == ({"web1": "running"}, {}, ([], []))


def test_a_disk_that_the_source_would_still_write_to_is_refused_before_xl_is_started(pair):
    pair.a.devices = [{"vdev": "xvda", "pdev_path": "/srv/x", "format": "qcow2"}]
    there = Receives(pair.b)
    with pytest.raises(SaveRestoreError, match="of the format qcow2, which cannot be migrated"):
        migrate(pair, there)
    assert there.errors == []
    assert pair.states() == ([], [])


# ---- failures before the grant: the domain runs here


@pytest.mark.parametrize("step", ["before banner", "after banner", "after header", "amid image"])
def test_an_xl_that_ends_before_it_is_ready_leaves_the_domain_running_here(pair, step):
    with pytest.raises((MigrationAborted, BrokenPeer)) as caught:
        migrate(pair, Receives(pair.b, Script(dies=step)))
    assert pair.a.table() == {"web1": "running"}
    assert caught.value.exit_code == 5
    if step != "before banner":
        assert pair.states() == (["ABORTED"], [])
        assert "b has" in notes_of(caught.value)
        assert "web1 (domain 1) is running" in notes_of(caught.value)
    assert pair.a.store.read("/local/domain/1/pysave/moving") is None


def test_an_xl_that_is_killed_with_a_complete_copy_is_named_with_what_it_may_have_left(pair):
    with pytest.raises(MigrationAborted) as caught:
        migrate(pair, Receives(pair.b, Script(dies="before ready")))
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {"web1--incoming": "paused"})
    assert "b has not confirmed that it removed its copy" in notes_of(caught.value)
    assert Advice(Remedy.DESTROY_THERE, "web1--incoming") in caught.value.remedies


@pytest.mark.parametrize("call", ["memory_reserved", "create", "connect"])
def test_a_host_that_cannot_make_the_domain_leaves_it_running_here(pair, call):
    pair.b.fails[call] = SaveRestoreError("no room", name=ErrorName.HOST_LACKS_MEMORY)
    with pytest.raises(MigrationAborted, match="xl at b ended before it was ready"):
        migrate(pair, Receives(pair.b))
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})
    assert pair.states() == (["ABORTED"], [])


@pytest.mark.parametrize("word", ["banner", "ready"])
@pytest.mark.parametrize(
    "said", [b"\x1b[2JWelcome to b\n", b"xl migration receiver ready, sent", b"domain lost"]
)
def test_a_peer_that_says_what_xl_does_not_say_gets_no_domain(pair, word, said):
    with pytest.raises(NotXl) as caught:
        migrate(pair, Receives(pair.b, Script(says={word: said})))
    assert pair.a.table() == {"web1": "running"}
    assert "running" not in pair.b.table().values()
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("step", ["before banner", "after banner", "before ready"])
def test_a_silent_peer_is_given_up_before_the_grant(pair, monkeypatch, step):
    for name in ("BANNER_S", "IMAGE_S", "READY_S"):
        monkeypatch.setattr(xl_peer, name, 0.2)
    with pytest.raises(PeerTimeout):
        migrate(pair, Receives(pair.b, Script(silent=step)))
    assert pair.a.table() == {"web1": "running"}
    assert "running" not in pair.b.table().values()


@pytest.mark.parametrize("moment", ["static_records", "read_pages", "suspend", "suspended", "end_records"])
def test_cancelled_while_it_is_sent_it_runs_here_and_xl_removes_what_it_has(pair, moment):
    save_guest = pair.a.save_guest

    def guest_that_is_interrupted(*given):
        guest = save_guest(*given)
        guest.moments.fail(moment, 0, Interrupted("interrupted by Ctrl-C"))
        return guest

    pair.a.save_guest = guest_that_is_interrupted
    with pytest.raises(Interrupted) as caught:
        migrate(pair, Receives(pair.b))
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})
    assert "b has an incomplete copy at most, which xl there removes" in notes_of(caught.value)
    assert pair.states() == (["ABORTED"], [])
    assert pair.a.store.read("/local/domain/1/pysave/moving") is None


@pytest.mark.parametrize("heard", [False, True])
def test_cancelled_when_xl_has_all_of_it_xl_says_that_it_removed_its_copy(pair, monkeypatch, heard):
    await_ready = xl_peer.XlReceiver.await_ready

    def interrupted(self) -> None:
        self._all_sent = True
        if heard:
            await_ready(self)
        raise Interrupted("interrupted by Ctrl-C")

    monkeypatch.setattr(xl_peer.XlReceiver, "await_ready", interrupted)
    with pytest.raises(Interrupted) as caught:
        migrate(pair, Receives(pair.b))
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})
    assert "b has nothing left of it" in notes_of(caught.value)


@pytest.mark.parametrize("state", ["ACCEPTED", "STREAMING"])
def test_a_journal_that_cannot_be_written_ends_it_before_it_is_sent(pair, monkeypatch, state):
    entry_that_fails(monkeypatch, pair.a, state, kept=False)
    with pytest.raises(SaveRestoreError, match="the disk is broken"):
        migrate(pair, Receives(pair.b))
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})


@pytest.mark.parametrize("kept", [False, True])
def test_a_grant_that_cannot_be_written_down_is_not_said_and_the_domain_runs_here(pair, monkeypatch, kept):
    entry_that_fails(monkeypatch, pair.a, "GRANTED", kept=kept)
    with pytest.raises(MigrationAborted, match="was not granted the domain: the disk is broken") as caught:
        migrate(pair, Receives(pair.b))
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})
    assert "b has nothing left of it" in notes_of(caught.value)
    assert pair.states() == (["ABORTED"], [])


@pytest.mark.parametrize("taken", [0, 20, 43])
def test_a_grant_of_which_not_all_has_left_this_process_was_none(pair, monkeypatch, taken):
    def grant(self) -> None:
        self._connection.outgoing.write(b"domain is yours, you are cleared to unpause\0"[:taken])
        raise BrokenPeer("b", "is gone")

    monkeypatch.setattr(xl_peer.XlReceiver, "grant", grant)
    with pytest.raises(MigrationAborted, match="was not granted the domain: b is gone"):
        migrate(pair, Receives(pair.b))
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})
    assert pair.states() == (["ABORTED"], [])


# ---- after the grant


@pytest.mark.parametrize("cannot", ["rename", "unpause"])
def test_a_domain_that_xl_cannot_start_is_given_back_and_runs_here(pair, cannot):
    with pytest.raises(MigrationAborted, match="could not start the domain, and gave it back"):
        migrate(pair, Receives(pair.b, Script(cannot=(cannot,))))
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})
    assert pair.states() == (["ABORTED"], [])
    assert pair.a.store.read("/local/domain/1/pysave/moving") is None


def test_a_name_that_is_taken_there_gives_the_domain_back(pair):
    pair.b.add(uuid_of_another(CONFIG), "running")
    with pytest.raises(MigrationAborted):
        migrate(pair, Receives(pair.b))
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {"web1": "running"})


@pytest.mark.parametrize(
    ("script", "there"),
    [
        (Script(dies="after GO"), {"web1--incoming": "paused"}),
        (Script(dies="started"), {"web1": "running"}),
        (Script(lost="report"), {"web1": "running"}),
        (Script(says={"report": b"my copy"}), {"web1": "running"}),
        (Script(says={"report": b"yours is dead"}), {"web1": "running"}),
        (Script(lost="status"), {"web1": "running"}),
        (Script(silent="started"), {"web1": "running"}),
        (Script(cannot=("rename", "destroy")), {"web1--incoming": "paused"}),
        (Script(cannot=("rename",), lost="have it back"), {}),
        (Script(cannot=("rename",), says={"have it back": b"domain is mine"}), {}),
    ],
    ids=str,
)
def test_a_report_that_does_not_come_leaves_the_domain_suspended_here_for_a_person_to_decide(
    pair, script, there, monkeypatch
):
    monkeypatch.setattr(xl_peer, "REPORT_S", 1.0)
    with pytest.raises(InDoubt) as caught:
        migrate(pair, Receives(pair.b, script))
    assert caught.value.exit_code == 7
    assert "must not be resumed before that is known" in str(caught.value)
    assert Advice(Remedy.LOOK_FOR_INCOMING, "web1--incoming") in caught.value.remedies
    assert (pair.a.table(), pair.b.table()) == ({"web1": "suspended"}, there)
    assert pair.states() == (["GRANTED"], [])
    assert (
        pair.a.store.read("/local/domain/1/pysave/moving") is not None
    )  # 'pysave --recover' leaves it alone


def test_an_xl_that_dies_when_it_is_ready_leaves_the_domain_running_here_or_in_doubt(pair):
    with pytest.raises((MigrationAborted, InDoubt)) as caught:
        migrate(pair, Receives(pair.b, Script(dies="after ready")))
    expected = "suspended" if isinstance(caught.value, InDoubt) else "running"
    assert (pair.a.table(), pair.b.table()) == ({"web1": expected}, {"web1--incoming": "paused"})


# ---- recovery


def settled(pair: Pair, force: Event | None = None) -> Settled:
    (log,) = pair.a.journals.all()
    return recover(  # type: ignore[arg-type]
        log, RecoverRequest(force=force), pair.a, journals=pair.a.journals, copy_of=TableCopy
    )


def killed_at(folder, state: str, *, after: bool) -> Pair:
    """A migration whose source is killed before or after this entry; xl follows its own rules."""
    pair = Pair(folder)
    there = Receives(pair.b)

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
        migrate(pair, there)

    pid = in_a_child(work, None)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    return Pair(folder)


@pytest.mark.parametrize(
    ("state", "after"), [("ACCEPTED", True), ("STREAMING", True), ("SUSPENDED", False), ("GRANTED", False)]
)
def test_a_source_that_is_killed_before_the_grant_is_recovered_here(tmp_path, state, after):
    pair = killed_at(tmp_path, state, after=after)
    said = settled(pair)
    assert said.error is None
    assert pair.a.table() == {"web1": "running"}
    assert pair.states() == (["ABORTED"], [])


def test_a_source_that_is_killed_after_the_grant_leaves_it_to_a_person(tmp_path):
    pair = killed_at(tmp_path, "GRANTED", after=True)
    said = settled(pair)
    assert isinstance(said.error, InDoubt)
    assert pair.a.table() == {"web1": "suspended"}
    assert settled(pair, Event.FORCE_RUN).error is None
    assert pair.a.table() == {"web1": "running"}
    assert pair.states() == (["ABORTED"], [])


def test_a_person_who_knows_that_xl_has_it_removes_the_copy_here(tmp_path):
    pair = killed_at(tmp_path, "DONE", after=False)
    error = settled(pair).error
    assert isinstance(error, InDoubt)
    assert "the copy on this host is gone" in str(error)
    assert settled(pair, Event.FORCE_DESTROY).error is None
    assert pair.a.table() == {}
    assert pair.states() == (["DONE"], [])


# ---- ssh

FAKE_SSH = (sys.executable, str(Path(__file__).with_name("fake_ssh.py")))


def test_ssh_is_asked_for_xls_receiver(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    pair = Pair(tmp_path)
    request = pair.request(
        destination=parse(str(tmp_path / "b")), ssh=FAKE_SSH, settle_for_s=20.0, paused=True
    )
    migrate_to_xl(request, Silence(), host=pair.a, journals=pair.a.journals)
    assert (pair.a.table(), pair.b.table()) == ({}, {"web1": "paused"})


def test_a_host_without_xl_is_named_with_what_ssh_ended_with(tmp_path):
    pair = Pair(tmp_path)
    request = pair.request(ssh=("sh", "-c", "echo no xl >&2; exit 127"))
    with pytest.raises(Unreachable, match=r"b has no xl: .* exit code 127"):
        migrate_to_xl(request, Silence(), host=pair.a, journals=pair.a.journals)
    assert pair.a.table() == {"web1": "running"}
    assert pair.states() == ([], [])
