"""Source and destination as processes of their own: one is killed at a chosen step, then both hosts recover."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from table_host import CONFIG, NAP_S, Pair, TableCopy, TableHost, tcp_sockets

from saverestore import interrupts
from saverestore.engine.progress import Silence
from saverestore.errors import DomainError, ErrorName, SaveRestoreError
from saverestore.migrate.addresses import Unreachable, parse
from saverestore.migrate.cancelling import cancel
from saverestore.migrate.channel import Channel
from saverestore.migrate.destination import receive
from saverestore.migrate.handover import OVER, Event, Role
from saverestore.migrate.journal import Journal, Journals
from saverestore.migrate.linking import door_beside_ssh, door_of
from saverestore.migrate.recovery import RecoverRequest, found, recover
from saverestore.migrate.source import migrate_domain
from saverestore.migrate.source_link import LinkOptions
from saverestore.transport.connection import SocketConnection

TIMEOUT_S = 20.0


def kill_at(step: str) -> None:
    """Let this process be killed there: "before OFFERED", "after GRANTED", "after saying READY" …"""
    when, _, what = step.partition(" ")

    def around(inner: Callable, name_of: Callable[..., str]) -> Callable:
        def outer(*given, **named):
            is_it = name_of(*given) == what
            if is_it and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = inner(*given, **named)
            if is_it:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return outer

    Journal.enter = around(Journal.enter, lambda _self, state: str(state))
    Journals.create = around(Journals.create, lambda _self, _head, state: str(state))
    Channel.say = around(Channel.say, lambda _self, message: f"saying {message.type.name}")


def in_a_child(work: Callable[[], object], step: str | None) -> int:
    """A process that does this: its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            if step is not None:
                kill_at(step)
            work()
        except SaveRestoreError as error:
            os._exit(int(error.exit_code))
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(99)
        os._exit(0)
    return pid


def channel_over(end: socket.socket, peer: str) -> Channel:
    return Channel(SocketConnection(end, peer, timeout_s=TIMEOUT_S), keepalive_s=NAP_S)


def migrate_in_two_processes(
    folder,
    source_step: str | None,
    destination_step: str | None,
    *,
    links: int = 0,
    beside_ssh: bool = False,
) -> tuple[int, int]:
    """What the two ended with. `links`: over so many links, by TCP, or by TLS beside the first connection; 0: over
    one connection that is no link."""
    Pair(folder)  # the domain is there
    by_tcp = links and not beside_ssh
    ours, theirs = tcp_sockets() if by_tcp else socket.socketpair()
    ends = [ours]

    def source() -> None:
        theirs.close()
        pair = Pair(folder)

        @contextmanager
        def connect(*_):
            if not ends:
                raise Unreachable("b cannot be reached")
            with channel_over(ends.pop(), "b") as channel:
                yield channel

        request = pair.request(
            destination=parse("tcp://127.0.0.1:1") if by_tcp else parse("b"),
            link=LinkOptions(streams=max(1, links), resume_for_s=1.0, over_ssh=not beside_ssh),
        )
        migrate_domain(request, Silence(), host=pair.a, journals=pair.a.journals, connect=connect)

    def destination() -> None:
        ours.close()
        host = TableHost(folder / "b")
        door = door_beside_ssh("127.0.0.1") if beside_ssh else door_of(None) if links else None
        with channel_over(theirs, "a") as channel:
            receive(channel, host, Silence(), journals=host.journals, copy_of=TableCopy, open_door=door)

    pids = in_a_child(source, source_step), in_a_child(destination, destination_step)
    ours.close()
    theirs.close()
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return codes[0], codes[1]


def recover_all(pair: Pair, host: TableHost, other: TableHost, force: Event | None = None) -> list[str]:
    """`recover --all` on one host; what it says."""
    logs, errors = found(host.journals, None)
    assert errors == []
    return [
        recover(
            log,
            RecoverRequest(force=force),
            host,
            journals=host.journals,
            copy_of=TableCopy,
            connect=pair.connector(other),
        ).text
        for log in logs
        if log.state not in OVER
    ]


def running(pair: Pair) -> list[str]:
    return [host.folder.name for host in (pair.a, pair.b) if "running" in host.table().values()]


SOURCE_STEPS = {
    "before OFFERED": "a",
    "after OFFERED": "a",
    "after saying OFFER": "a",
    "after STREAMING": "a",
    "before SUSPENDED": "a",
    "after saying STREAM_END": "a",
    "before GRANTED": "a",
    "after GRANTED": "b",
    "after saying GRANT": "b",
    "before DONE": "b",
    "after DONE": "b",
}
DESTINATION_STEPS = {
    "before ACCEPTED": "a",
    "after ACCEPTED": "a",
    "after saying ACCEPTED": "a",
    "after RECEIVING": "a",
    "before READY": "a",
    "after READY": "a",
    "before COMMITTED": "b",
    "after COMMITTED": "b",
    "before RUNNING": "b",
    "after RUNNING": "b",
    "after saying RUNNING": "b",
}


OVER_LINKS = (
    "after STREAMING",
    "after saying STREAM_END",
    "after GRANTED",
    "after RECEIVING",
    "after READY",
    "after COMMITTED",
)
"""Steps at which it makes a difference how many links there are: who waits for one, and who does not."""

ALL_STEPS = [("source", *one) for one in SOURCE_STEPS.items()] + [
    ("destination", *one) for one in DESTINATION_STEPS.items()
]


@pytest.mark.parametrize(
    ("side", "step", "runs_at", "first", "links", "beside_ssh"),
    [(*one, first, 0, False) for one in ALL_STEPS for first in ("a", "b")]
    + [(*one, "a", links, False) for one in ALL_STEPS if one[1] in OVER_LINKS for links in (1, 4)]
    + [(*one, "b", 2, True) for one in ALL_STEPS if one[1] in OVER_LINKS],
)
def test_whichever_side_is_killed_at_any_step_the_domain_runs_on_one_host_after_recovery(
    tmp_path, side, step, runs_at, first, links, beside_ssh
):
    if beside_ssh:
        pytest.importorskip("cryptography")
    steps = (step, None) if side == "source" else (None, step)
    codes = migrate_in_two_processes(tmp_path, *steps, links=links, beside_ssh=beside_ssh)
    assert codes[steps.index(step)] == -signal.SIGKILL
    assert codes[1 - steps.index(step)] != 99
    pair = Pair(tmp_path)
    assert len(running(pair)) <= 1
    order = [(pair.a, pair.b), (pair.b, pair.a)]
    for here, there in order if first == "a" else reversed(order):
        recover_all(pair, here, there)
        assert len(running(pair)) <= 1
    pair.join()
    recover_all(pair, pair.a, pair.b)
    pair.join()
    # After READY, and before GRANTED, either side may have given up first; the domain is at the source then.
    assert running(pair) == [runs_at]
    assert sorted([*pair.a.table(), *pair.b.table()]) == ["web1"]
    assert [state for states in pair.states() for state in states if state not in OVER] == []


def test_recovery_without_the_other_host_keeps_what_is_in_doubt_and_a_person_can_decide(tmp_path):
    codes = migrate_in_two_processes(tmp_path, "after saying GRANT", "before COMMITTED")
    assert codes == (-signal.SIGKILL, -signal.SIGKILL)
    pair = Pair(tmp_path)
    pair.is_cut = True
    before = pair.a.table(), pair.b.table()
    assert before == ({"web1": "suspended"}, {"web1--incoming": "paused"})
    (said,) = recover_all(pair, pair.a, pair.b)
    assert "was granted to b, which has not answered" in said
    (said,) = recover_all(pair, pair.b, pair.a)
    assert "waits, complete and paused" in said
    assert (pair.a.table(), pair.b.table()) == before
    recover_all(pair, pair.b, pair.a, Event.FORCE_DESTROY)
    recover_all(pair, pair.a, pair.b, Event.FORCE_RUN)
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})


def test_a_copy_that_is_gone_is_not_reported_as_suspended(tmp_path):
    migrate_in_two_processes(tmp_path, "after saying GRANT", "before COMMITTED")
    pair = Pair(tmp_path)
    pair.is_cut = True
    pair.a.switch_off()
    (log,) = found(pair.a.journals, None)[0]
    settled = recover(
        log,
        RecoverRequest(),
        pair.a,
        journals=pair.a.journals,
        copy_of=TableCopy,
        connect=pair.connector(pair.b),
    )
    assert settled.error.exit_code == 7
    assert "the copy on this host is gone" in str(settled.error)


def ended_by_hand(pair: Pair) -> None:
    """A person removes what an earlier migration has left at b; later the domain comes there, and runs."""
    for file in pair.b._files():
        file.unlink()
    recover_all(pair, pair.a, pair.b)


@pytest.mark.parametrize("way", ["migrated", "restored"])
@pytest.mark.parametrize("step", ["after RECEIVING", "after READY"])
def test_a_domain_that_has_come_by_another_way_is_not_destroyed_for_an_old_migration(tmp_path, step, way):
    migrate_in_two_processes(tmp_path, None, step)
    pair = Pair(tmp_path)
    ended_by_hand(pair)
    if way == "migrated":
        pair.migrate()
        pair.join()
    else:
        pair.a.switch_off()
        pair.b.add(CONFIG, "running")
    recover_all(pair, pair.b, pair.a)
    assert pair.b.table() == {"web1": "running"}
    assert set(pair.states()[1]) <= {"ABORTED", "RUNNING"}


def test_a_copy_that_another_process_is_filling_is_not_destroyed_for_an_old_migration(tmp_path):
    migrate_in_two_processes(tmp_path, None, "after RECEIVING")
    pair = Pair(tmp_path)

    def busy(*_: object):
        raise DomainError("a domain with this UUID is being restored", name=ErrorName.DOMAIN_BUSY)

    pair.b.restoring = busy
    before = pair.b.table()
    recover_all(pair, pair.b, pair.a)
    assert pair.b.table() == before
    assert pair.states()[1] == ["RECEIVING"]


def test_a_domain_that_crashed_when_its_source_was_killed_is_reported_lost_and_no_boot_is_blamed(tmp_path):
    migrate_in_two_processes(tmp_path, "after STREAMING", None)
    pair = Pair(tmp_path)
    (pair.a.folder / "domains" / "1").unlink()
    (said,) = recover_all(pair, pair.a, pair.b)
    assert "was lost, as its domain is not on this host any more" in said


def test_a_source_that_was_granted_and_switched_off_has_the_destination_run_the_domain(tmp_path):
    migrate_in_two_processes(tmp_path, "after GRANTED", None)
    pair = Pair(tmp_path)
    pair.a.switch_off()
    (said,) = recover_all(pair, pair.b, pair.a)
    pair.join()
    assert "the domain is this host's" in said
    assert running(pair) == ["b"]


def test_a_source_that_was_switched_off_before_the_grant_leaves_the_last_copy_to_a_person(tmp_path):
    migrate_in_two_processes(tmp_path, "before GRANTED", None)
    pair = Pair(tmp_path)
    pair.a.switch_off()
    recover_all(pair, pair.b, pair.a)
    pair.join()
    assert pair.b.table() == {"web1--incoming": "paused"}
    assert pair.states() == (["LOST"], ["READY"])
    recover_all(pair, pair.b, pair.a, Event.FORCE_RUN)
    assert pair.b.table() == {"web1": "running"}


# ---- signals -----------------------------------------------------------------------------------------


def wait_for(holds: Callable[[], object]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def signalled_migration(folder, source_waits_at: str | None) -> tuple[Pair, int, int]:
    """Both processes under way, signals heeded: the source waits at a call of its guest, or the destination before it
    starts the domain, until `folder/go` is there. Their pids."""
    Pair(folder)
    ours, theirs = socket.socketpair()

    def until_go() -> None:
        (folder / "waits").touch()
        wait_for((folder / "go").exists)

    def source() -> None:
        theirs.close()
        pair = Pair(folder)
        save_guest = pair.a.save_guest

        def waiting_guest(*given):
            guest = save_guest(*given)
            if source_waits_at is not None:
                guest.moments.on(source_waits_at, 0, until_go)
            return guest

        pair.a.save_guest = waiting_guest

        @contextmanager
        def connect(*_):
            with channel_over(ours, "b") as channel:
                yield channel

        with interrupts.handled():
            migrate_domain(pair.request(), Silence(), host=pair.a, journals=pair.a.journals, connect=connect)

    def destination() -> None:
        ours.close()
        host = TableHost(folder / "b")
        if source_waits_at is None:
            unpause = host.handles.xen.unpause
            host.handles.xen.unpause = lambda domid: (until_go(), unpause(domid))
        with channel_over(theirs, "a") as channel, interrupts.handled():
            receive(channel, host, Silence(), journals=host.journals, copy_of=TableCopy)

    pids = in_a_child(source, None), in_a_child(destination, None)
    ours.close()
    theirs.close()
    wait_for(lambda: (folder / "waits").exists())
    return Pair(folder), *pids


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("moment", ["suspend", "suspended"])  # calls on the thread that signals reach
def test_cancel_has_the_domain_running_at_the_source_and_leaves_nothing_at_the_destination(tmp_path, moment):
    pair, source, destination = signalled_migration(tmp_path, moment)
    logs, _ = found(pair.a.journals, "web1")
    assert pair.a.journals.holder(Role.SOURCE, logs[0].head.migration) == source
    cancelling = threading.Thread(
        target=cancel, args=(logs, "web1"), kwargs={"journals": pair.a.journals, "wait_s": TIMEOUT_S}
    )
    cancelling.start()
    ended = exit_code(source)
    cancelling.join()
    assert (ended, exit_code(destination)) == (130, 5)
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})
    assert pair.states() == (["ABORTED"], ["ABORTED"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_the_grant_it_is_too_late_to_cancel_and_the_migration_finishes(tmp_path, number):
    pair, source, destination = signalled_migration(tmp_path, None)
    logs, _ = found(pair.a.journals, "web1")
    with pytest.raises(DomainError, match="too late to cancel"):
        cancel(logs, "web1", journals=pair.a.journals, wait_s=TIMEOUT_S)
    os.kill(source, number)
    os.kill(destination, number)
    (tmp_path / "go").touch()
    assert (exit_code(source), exit_code(destination)) == (0, 0)
    assert (pair.a.table(), pair.b.table()) == ({}, {"web1": "running"})


def test_the_destination_is_told_to_end_before_it_is_ready_and_the_domain_stays_at_the_source(tmp_path):
    pair, source, destination = signalled_migration(tmp_path, "suspended")
    wait_for(lambda: "web1--incoming" in pair.b.table())
    os.kill(destination, signal.SIGTERM)
    assert exit_code(destination) == 130
    (tmp_path / "go").touch()
    assert exit_code(source) == 130  # the destination's reason is the source's
    assert (pair.a.table(), pair.b.table()) == ({"web1": "running"}, {})
