"""Migrations of in-memory guests between two hosts in this process, over real sockets."""

from __future__ import annotations

import json
import os
import signal
import threading
import uuid
from collections.abc import Callable
from contextlib import contextmanager

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from table_host import CONFIG, Pair

from saverestore import interrupts
from saverestore.errors import (
    Advice,
    DomainError,
    ErrorName,
    ExitCode,
    Interrupted,
    Remedy,
    TransportError,
    UsageError,
    XenRefused,
)
from saverestore.migrate import source_link
from saverestore.migrate.addresses import parse
from saverestore.migrate.handover import Event, Role, State
from saverestore.migrate.journal import boot_id, now
from saverestore.migrate.peers import InDoubt, MigrationAborted, MigrationRefused, NotStarted
from saverestore.migrate.receiving import Received
from saverestore.migrate.records import Head
from saverestore.migrate.side import NoCopy, Side
from saverestore.migrate.source import dry_run
from saverestore.migrate.source_link import LinkOptions
from saverestore.toolstack.config import GuestConfig
from saverestore.toolstack.given_config import GivenConfig
from saverestore.transport.route import Route
from saverestore.transport.sockets import Way


@pytest.fixture
def pair(tmp_path) -> Pair:
    return Pair(tmp_path)


def test_a_domain_moves_with_its_memory_and_runs_at_the_destination_only(pair):
    migrated = pair.migrate()
    pair.join()
    assert (pair.a.table(), pair.b.table()) == ({}, {"web1": "running"})
    assert pair.states() == (["DONE"], ["RUNNING"])
    restored = pair.b.restored.domain
    pfns = pair.a.memory.data_pfns()
    assert (restored.read(pfns) == pair.a.memory.read(pfns)).all()
    assert pair.b.watched == [(1, "web1")]
    assert migrated.answer.state == "running"


def test_it_moves_there_and_back(pair):
    pair.migrate()
    pair.join()
    pair.a, pair.b = pair.b, pair.a
    pair.migrate()
    pair.join()
    assert (pair.a.table(), pair.b.table()) == ({}, {"web1": "running"})


def test_it_can_be_left_paused_and_get_another_name(pair):
    pair.migrate(paused=True, name="web2")
    pair.join()
    assert pair.b.table() == {"web2": "paused"}


def test_it_gets_the_configuration_that_was_given_and_the_source_keeps_its_own(pair):
    flushed: list[GuestConfig] = []
    pair.a.flush_disks = flushed.append
    pair.migrate(config=given())
    pair.join()
    assert (pair.a.table(), pair.b.table()) == ({}, {"web2": "running"})
    made = pair.b._entry(1)["config"]
    assert (made["on_crash"], made["c_info"]["uuid"]) == ("preserve", CONFIG["c_info"]["uuid"])
    assert [(one.name, one.raw.get("on_crash")) for one in flushed] == [("web1", None)]


def test_disks_are_compared_by_their_paths_on_each_host(pair, monkeypatch):
    pair.a.devices = [{"vdev": "xvda", "pdev_path": "/srv/web1", "format": "raw"}]
    lengths = {"/srv/web1": 4096, "/dev/drbd7": 8192}
    monkeypatch.setattr("saverestore.toolstack.shared_disks._length", lengths.get)
    disk = {"vdev": "xvda", "pdev_path": "/dev/drbd7", "format": "raw"}
    with pytest.raises(MigrationRefused, match="/dev/drbd7 has 8192 bytes here, and 4096 at the source"):
        pair.migrate(config=given(disks=[disk]))
    pair.join()
    assert pair.a.table() == {"web1": "running"}


def test_a_name_goes_before_the_configuration_that_was_given(pair):
    pair.migrate(config=given(), name="web3")
    pair.join()
    assert pair.b.table() == {"web3": "running"}


def test_a_configuration_for_another_machine_is_refused_before_the_other_host_is_asked(pair):
    with pytest.raises(UsageError, match="max_vcpus is 2, and the domain has 1; no changes were made"):
        pair.migrate(config=given(b_info={"max_vcpus": 2}))
    assert (pair.a.table(), pair.b.table(), pair.served) == ({"web1": "running"}, {}, [])


def given(**changes) -> GivenConfig:
    """Another configuration for web1, with a name of its own."""
    return GivenConfig(
        "web2.cfg", {"c_info": {"type": "pvh", "name": "web2"}, "on_crash": "preserve", **changes}
    )


def test_a_destination_refuses_with_all_that_it_has_found_and_nothing_is_touched(pair):
    pair.b.fails["memory_reserved"] = DomainError("b lacks memory", name=ErrorName.HOST_LACKS_MEMORY)
    pair.b.add(CONFIG, "running")
    with pytest.raises(MigrationRefused) as caught:
        pair.migrate()
    pair.join()
    assert [one.name for one in caught.value.findings] == [
        ErrorName.DOMAIN_EXISTS,
        ErrorName.HOST_LACKS_MEMORY,
    ]
    assert "b lacks memory" in str(caught.value)
    assert "confirmed" not in " ".join(getattr(caught.value, "__notes__", []))
    assert caught.value.exit_code == 3
    assert pair.a.table() == {"web1": "running"}
    assert "suspend" not in pair.a.guest.moments.calls
    assert pair.states() == (["ABORTED"], [])


def test_a_dry_run_reports_what_both_hosts_find_and_leaves_no_journal(pair):
    def findings():
        return dry_run(pair.request(), host=pair.a, journals=pair.a.journals, connect=pair.connector(pair.b))

    found = findings()
    assert found.errors == []
    assert any(fact.startswith("the clock") for fact in found.facts)
    assert any(fact.startswith("link: ") and "MiB/s" in fact for fact in found.facts)
    pair.join()
    assert pair.served[-1] == Received()
    pair.b.fails["memory_reserved"] = DomainError("b lacks memory", name=ErrorName.HOST_LACKS_MEMORY)
    assert [str(one) for one in findings().errors] == ["b lacks memory"]
    assert pair.states() == ([], [])


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (LinkOptions(), "b"),
        (LinkOptions(data_address="10.0.0.2"), "10.0.0.2"),
        (LinkOptions(over_ssh=True), None),
    ],
)
def test_a_dry_run_tells_by_which_interface_connections_would_leave(pair, monkeypatch, options, asked):
    hosts = []

    def route_to(host: str, _way: Way) -> Route:
        hosts.append(host)
        return Route("eth7", mtu=9000)

    monkeypatch.setattr(source_link, "route_to", route_to)
    found = dry_run(
        pair.request(link=options, destination=parse("root@b")),
        host=pair.a,
        journals=pair.a.journals,
        connect=pair.connector(pair.b),
    )
    assert ("route to root@b: by eth7, MTU 9000" in found.facts) == (asked is not None)
    assert hosts == ([asked] if asked else [])
    pair.join()


def test_a_disk_that_the_source_would_still_write_to_is_refused_before_anything_is_done(pair):
    pair.a.devices = [{"vdev": "xvda", "pdev_path": "/srv/x", "format": "qcow2"}]
    with pytest.raises(DomainError, match="disk xvda of the format qcow2, which cannot be migrated"):
        pair.migrate()
    assert pair.states() == ([], [])


def test_disks_are_flushed_while_the_domain_is_suspended(pair):
    pair.migrate()
    pair.join()
    assert pair.a.flushed == ["suspended"]
    assert pair.b.flushed == []


def test_a_domain_that_is_given_a_device_while_it_moves_stays_and_leaves_nothing_there(pair):
    devices = iter([{"vbd 51712": "phy:/a"}, {"vbd 51712": "phy:/a", "vif 0": ""}])
    pair.a.devices_of = lambda _domain: next(devices)
    with pytest.raises(DomainError, match="changed while it was being saved: vif 0 was attached"):
        pair.migrate()
    pair.join()
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})


def test_the_destination_looks_for_as_much_memory_as_the_domain_has_and_not_as_its_target(pair):
    """A guest that was asked to give memory back and has not."""
    pair.a.switch_off()
    pair.a.add(CONFIG | {"b_info": CONFIG["b_info"] | {"target_memkb": 512}}, "running")
    pair.migrate()
    pair.join()
    assert set(pair.b.pages_asked) == {pair.a.guest.populated_pages}
    assert pair.a.guest.populated_pages > 512 // 4


def test_what_another_host_sees_of_a_disks_times_ends_no_migration(pair, tmp_path):
    """NFS may show the destination what was so a minute ago. Disks are compared when the domain is offered."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(4096))
    pair.a.noted_disks = [
        {"vdev": "xvda", "path": str(disk), "bytes": 4096, "mtime_ns": 1, "written": "then"}
    ]
    pair.migrate()
    pair.join()
    assert pair.b.table() == {"web1": "running"}
    assert pair.a.settled == [[]]


def test_a_domain_that_is_being_destroyed_there_has_no_name(pair):
    """A process may hold a page of it for long. It has had the domain's name before, and while it came in."""
    names = {CONFIG["c_info"]["name"], "web1--incoming"}
    for name in names:
        pair.b.dying.add(pair.b.add({**CONFIG, "c_info": CONFIG["c_info"] | {"name": name}}, "suspended"))
    pair.migrate()
    pair.join()
    assert pair.b.watched == [(3, "web1")]
    assert pair.b.state_of(3) == "running"


def test_a_disk_that_is_another_one_there_is_refused_before_anything_is_done(pair, monkeypatch):
    pair.a.devices = [{"vdev": "xvda", "pdev_path": "/dev/x", "format": "raw"}]
    seen = iter([4096, 8192])
    monkeypatch.setattr("saverestore.toolstack.shared_disks._length", lambda _path: next(seen))
    with pytest.raises(
        DomainError, match="xvda: /dev/x has 8192 bytes here, and 4096 at the source"
    ) as caught:
        pair.migrate()
    pair.join()
    assert ErrorName.DISKS_DIFFER in [one.name for one in caught.value.findings]
    assert pair.a.table() == {"web1": "running"}


def test_a_host_does_not_migrate_to_itself(pair):
    pair.b.journals = pair.a.journals
    with pytest.raises(UsageError, match="b is this host"):
        pair.migrate()
    assert pair.a.table() == {"web1": "running"}


@pytest.mark.parametrize("call", ["create", "connect"])
def test_what_fails_at_the_destination_is_reported_at_the_source_with_its_own_name(pair, call):
    pair.b.fails[call] = XenRefused("b has no room", name=ErrorName.LIBXL_FAILED)
    with pytest.raises(MigrationAborted) as caught:
        pair.migrate()
    pair.join()
    assert "b aborted the migration: b has no room" in str(caught.value)
    assert (caught.value.name, caught.value.exit_code) == (ErrorName.LIBXL_FAILED, 6)
    assert "web1 (domain 1) is running" in " ".join(caught.value.__notes__)
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})
    assert pair.states() == (["ABORTED"], ["ABORTED"])


@pytest.mark.parametrize("moment", ["static_records", "read_pages", "suspend", "suspended", "end_records"])
def test_cancelled_before_the_grant_it_runs_at_the_source_and_nothing_is_left_at_the_destination(
    pair, moment
):
    save_guest = pair.a.save_guest

    def guest_that_is_interrupted(*given):
        guest = save_guest(*given)
        guest.moments.fail(moment, 0, Interrupted("interrupted by Ctrl-C"))
        return guest

    pair.a.save_guest = guest_that_is_interrupted
    with pytest.raises(Interrupted) as caught:
        pair.migrate()
    pair.join()
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})
    assert "b has nothing left of it" in caught.value.__notes__
    assert pair.states() == (["ABORTED"], ["ABORTED"])
    assert pair.a.store.read("/local/domain/1/pysave/moving") is None


def test_a_domain_that_does_not_start_is_the_destinations_all_the_same(pair):
    pair.b.fails["unpause"] = XenRefused("no")
    with pytest.raises(NotStarted, match="web1 is at b, but could not be started there: no") as caught:
        pair.migrate()
    pair.join()
    assert caught.value.exit_code is ExitCode.IN_DOUBT  # any other but 0 says that it is at the source
    assert caught.value.remedies == (Advice(Remedy.RECOVER_THERE, "web1"),)
    assert (pair.a.table(), pair.b.table()) == ({}, {"web1": "paused"})
    assert pair.states() == (["DONE"], ["COMMITTED"])


def name_taken_meanwhile(pair) -> None:
    """A domain of this name is made at the destination while ours is filled."""
    connect = pair.b.connect

    def taken(*given):
        other = json.loads(json.dumps(CONFIG))
        other["c_info"]["uuid"] = "00000000-0000-4000-8000-000000000002"
        pair.b.add(other, "running")
        connect(*given)

    pair.b.connect = taken


def test_a_name_taken_meanwhile_gives_the_domain_back_to_the_source(pair):
    name_taken_meanwhile(pair)
    with pytest.raises(MigrationAborted, match="called 'web1' already") as caught:
        pair.migrate()
    pair.join()
    assert caught.value.name is ErrorName.DOMAIN_NAME_TAKEN
    assert pair.a.table() == {"web1": "running"}
    assert pair.b.table() == {"web1": "running"}
    assert pair.states() == (["ABORTED"], ["ABORTED"])


def test_a_name_that_another_restore_is_about_to_give_gives_the_domain_back_to_the_source(pair):
    """It has found the name free, and has not made its domain yet."""

    @contextmanager
    def restoring(_uuid: object, name: str | None):
        if name == "web1" and "web1--incoming" in pair.b.table():
            raise DomainError("a domain called 'web1' is being restored", name=ErrorName.DOMAIN_BUSY)
        yield

    pair.b.restoring = restoring
    with pytest.raises(MigrationAborted, match="'web1' is being restored"):
        pair.migrate()
    pair.join()
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})
    assert pair.states() == (["ABORTED"], ["ABORTED"])


def test_a_person_need_not_wait_until_the_end_of_the_image_has_been_sent(pair):
    """It may have to wait for all that was sent before it: at a bandwidth limit, for long."""
    sent: list[str] = []

    class Slow(NoCopy):
        def say(self, message) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            sent.append("all of it")

    journals = pair.a.journals
    head = Head(Role.SOURCE, uuid.uuid4(), "web1", uuid.UUID(int=1), 1, boot_id(), "b", "", now())
    copy = Slow()
    with journals.create(head, State.OFFERED) as journal, interrupts.handled():
        side = Side(Role.SOURCE, head.migration, copy, journal=journal, say=copy.say)
        side.journal.state = State.STREAMING
        with pytest.raises(Interrupted):
            side.happen(Event.STREAM_ENDED, length_bytes=1)
        assert sent == []
        side.happen(Event.FAILED, reason="Ctrl-C")  # in a shield, as that is written down
    assert sent == ["all of it"]


def entry_that_fails(monkeypatch, host, state: str, *, kept: bool, then: Callable = lambda: None) -> None:
    """The journal reports a failure for this state, whether or not the disk has it. `then`: what happens besides."""
    import saverestore.migrate.journal as journal

    enter = journal.Journal.enter

    def failing(self, entered, **notes):
        if str(entered) != state or self.path.parent != host.journals.directory:
            return enter(self, entered, **notes)
        if kept:
            enter(self, entered, **notes)
        self.state = entered
        then()
        raise TransportError("the disk is broken")

    monkeypatch.setattr(journal.Journal, "enter", failing)


@pytest.mark.parametrize("kept", [False, True])
def test_a_grant_that_cannot_be_written_is_given_up_on_both_sides(pair, monkeypatch, kept):
    entry_that_fails(monkeypatch, pair.a, "GRANTED", kept=kept)
    with pytest.raises(MigrationAborted, match="the disk is broken"):
        pair.migrate()
    pair.join()
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})
    assert pair.states() == (["ABORTED"], ["ABORTED"])


def test_why_it_was_given_back_is_reported_though_that_cannot_be_written_down(pair, monkeypatch):
    name_taken_meanwhile(pair)
    entry_that_fails(monkeypatch, pair.a, "ABORTED", kept=False)
    with pytest.raises(MigrationAborted, match="called 'web1' already") as caught:
        pair.migrate()
    pair.join()
    assert caught.value.__notes__ == ["that could not be written down: the disk is broken"]
    assert pair.a.table() == {"web1": "running"}


def test_no_failure_after_the_grant_resumes_the_domain_at_the_source(pair, monkeypatch):
    """Whatever is raised there: by another thread, a debugger, Python itself."""

    def fail() -> None:
        if (
            threading.current_thread() is threading.main_thread()
        ):  # not the destination, which is another process
            raise KeyboardInterrupt

    monkeypatch.setattr("saverestore.operations.save.interrupts.too_late", fail)
    with pytest.raises(KeyboardInterrupt):
        pair.migrate()
    pair.join()
    assert (pair.a.table(), pair.b.table()) == ({"web1": "suspended"}, {"web1": "running"})
    assert pair.states() == (["GRANTED"], ["RUNNING"])


@pytest.mark.parametrize("kept", [False, True])
def test_a_commit_that_cannot_be_written_starts_nothing(pair, monkeypatch, kept):
    entry_that_fails(monkeypatch, pair.b, "COMMITTED", kept=kept)
    with pytest.raises(InDoubt) as caught:
        pair.migrate()
    pair.join()
    assert caught.value.exit_code == 7
    assert "must not be resumed before that is known" in str(caught.value)
    assert (pair.a.table(), pair.b.table()) == ({"web1": "suspended"}, {"web1--incoming": "paused"})
    assert pair.states() == (["GRANTED"], ["COMMITTED" if kept else "READY"])
