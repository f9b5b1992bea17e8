"""The bandwidth limit of a migration, and changing it from another process."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import time
import uuid
from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from table_host import Pair, tcp_sockets

from saverestore.errors import DomainError, ErrorName
from saverestore.migrate.addresses import parse
from saverestore.migrate.codecs import CodecOptions
from saverestore.migrate.control_socket import ControlSocket, ask
from saverestore.migrate.handover import Role, State
from saverestore.migrate.journal import boot_id, now
from saverestore.migrate.limiting import CHANGE, change_limit
from saverestore.migrate.messages import Offer, pack_body, unpack_body
from saverestore.migrate.records import Head
from saverestore.migrate.recovery import found
from saverestore.migrate.source_link import LimitedSink, LinkOptions, LinkReport, SourceLink, open_link
from saverestore.stream.codecs import Coding

SLOW = 256 << 10
"""The guest has 1 MiB: 4 s at this rate."""


@pytest.fixture
def pair(tmp_path) -> Pair:
    return Pair(tmp_path)


def change(pair: Pair, rate: int | None) -> int | None:
    logs, _ = found(pair.a.journals, "web1")
    return change_limit(logs, "web1", rate, journals=pair.a.journals)


def migrate_meanwhile(pair: Pair, work) -> float:
    """Migrate at a slow rate, do `work` once the image is on its way: how long it took in all."""
    failures = []

    def meanwhile() -> None:
        while pair.b.restored is None:
            time.sleep(0.01)
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=meanwhile)
    thread.start()
    begun = time.monotonic()
    # As they are: coded, its pages are a few KiB.
    pair.migrate(link=LinkOptions(bwlimit=SLOW), codecs=CodecOptions(Coding()))
    took_s = time.monotonic() - begun
    thread.join()
    pair.join()
    assert failures == []
    assert (pair.a.table(), pair.b.table()) == ({}, {"web1": "running"})
    return took_s


@pytest.mark.parametrize("sockets", [socket.socketpair, tcp_sockets])
def test_a_migration_holds_to_its_limit_which_another_process_can_lift(pair, sockets):
    pair.sockets = sockets
    assert migrate_meanwhile(pair, lambda: time.sleep(1.5)) > 1.5
    pair.a, pair.b = pair.b, pair.a
    before = []
    took_s = migrate_meanwhile(pair, lambda: before.append(change(pair, None)))
    assert before == [SLOW]
    assert took_s < 3.5


def test_a_domain_without_a_migration_has_no_limit_to_change(pair):
    with pytest.raises(DomainError) as caught:
        change(pair, SLOW)
    assert caught.value.name is ErrorName.MIGRATION_NOT_FOUND
    pair.migrate()
    pair.join()
    with pytest.raises(DomainError, match="no migration of web1"):
        change(pair, SLOW)


@pytest.mark.parametrize("rate", [0, -5, 100, "fast", 1.5, 1 << 63, True])
def test_what_is_no_rate_is_refused_by_the_process_at_work(pair, rate):
    def refused() -> None:
        log = found(pair.a.journals, "web1")[0][-1]
        with pytest.raises(DomainError, match="is not a rate"):
            ask(Role.SOURCE, log.head.migration, {"what": CHANGE, "rate": rate}, pid=os.getpid())
        change(pair, None)

    migrate_meanwhile(pair, refused)


# ---- the control socket

ID = uuid.UUID(int=77)


def answering(**handlers):
    return ControlSocket(Role.SOURCE, ID, {"echo": lambda request: {"heard": request["text"]}, **handlers})


def ask_it(request, pid=None):
    return ask(Role.SOURCE, ID, request, pid=os.getpid() if pid is None else pid)


def test_a_request_gets_its_answer_also_from_another_process():
    with answering():
        assert ask_it({"what": "echo", "text": "x"}) == {"heard": "x"}
        child = multiprocessing.get_context("fork").Process(
            target=lambda pid: os._exit(ask_it({"what": "echo", "text": 7}, pid)["heard"]),
            args=(os.getpid(),),
        )
        child.start()
        child.join()
        assert child.exitcode == 7


@pytest.mark.parametrize("request_", [{"what": "dance"}, {}, [], "x", {"what": []}])
def test_what_is_not_understood_is_answered_as_such_and_the_next_request_is_served(request_):
    with answering():
        with pytest.raises(DomainError, match="does not know that request"):
            ask_it(request_)
        assert ask_it({"what": "echo", "text": "x"}) == {"heard": "x"}


def test_who_sends_nothing_does_not_keep_others_waiting_for_long(monkeypatch):
    monkeypatch.setattr("saverestore.migrate.control_socket.ANSWER_S", 0.2)
    with answering() as control, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as idle:
        idle.connect(control._name)
        time.sleep(0.3)
        monkeypatch.setattr("saverestore.migrate.control_socket.ANSWER_S", 5.0)
        assert ask_it({"what": "echo", "text": "x"}) == {"heard": "x"}


def test_nobody_is_asked_but_the_process_that_has_the_journal():
    with answering(), pytest.raises(DomainError, match=f"process {os.getpid()} answers for process 1"):
        ask_it({"what": "echo", "text": "x"}, pid=1)


def test_a_process_that_is_gone_does_not_answer():
    with answering():
        pass
    with pytest.raises(DomainError, match="does not answer: Connection refused"):
        ask_it({"what": "echo", "text": "x"})


def test_a_process_that_ends_amid_a_request_has_not_done_it(monkeypatch):
    """It may have read the request by then, so that the kernel reports nothing but the end."""

    def dies(_request):
        raise OSError("it is killed here")

    with answering(echo=dies), pytest.raises(DomainError, match="does not answer: no answer") as caught:
        ask_it({"what": "echo", "text": "x"})
    assert caught.value.name is ErrorName.MIGRATION_BUSY


def test_the_limit_of_a_migration_to_stock_xl_cannot_be_changed_which_is_said(pair):
    head = Head(
        *(Role.SOURCE, ID, "web1", uuid.UUID(int=1), 1, boot_id(), "b", "", now()),
        with_xl=True,
    )
    with pair.a.journals.create(head, State.OFFERED), pytest.raises(DomainError, match="stock xl") as caught:
        change(pair, 1 << 20)
    assert caught.value.name is ErrorName.MIGRATION_UNSUPPORTED


def test_a_socket_that_cannot_be_had_is_a_warning(caplog):
    with answering(), answering():
        assert ask_it({"what": "echo", "text": "x"}) == {"heard": "x"}
    assert "nothing can be changed while this migration runs" in caplog.text


def test_a_limit_that_is_changed_while_links_begin_is_not_undone_by_the_one_before():
    asked = threading.Event()
    paced: list[int | None] = []

    class OneConnection:
        def pace(self, rate: int | None) -> bool:
            if rate == 100_000 and paced:  # as links begin: meanwhile another process asks for another limit
                asked.set()
                other.join(0.5)
            paced.append(rate)
            return True

    class OneChannel:
        peer = "peer"
        connection = OneConnection()

    sink = LimitedSink(OneChannel(), 100_000)  # type: ignore[arg-type]

    def change() -> None:
        assert asked.wait(20)
        assert sink.requested({"rate": 200_000}) == {"before": 100_000}

    other = threading.Thread(target=change)
    other.start()
    sink.limit_again()
    other.join()
    assert (paced[-1], sink.limited_to) == (200_000, 200_000)


@pytest.mark.parametrize(("seconds", "offered"), [(0.0, 0), (0.4, 1), (2.5, 3), (60.0, 60), (1e300, 1 << 31)])
def test_the_destination_waits_for_a_new_connection_no_shorter_than_the_source(seconds, offered):
    """It hears whole seconds: 0 would be not to wait at all."""
    channel = SimpleNamespace(peer="b", connection=SimpleNamespace(pace=lambda _: True))
    options = LinkOptions(streams=2, resume_for_s=seconds)
    link = SourceLink(channel, parse("tcp://b:1"), options, LinkReport(), open_link)  # type: ignore[arg-type]
    offer = link.offering(Offer(uuid.uuid4(), "{}", 1024))
    assert offer.resume_for_s == offered
    assert unpack_body(offer.type, pack_body(offer)) == offer
