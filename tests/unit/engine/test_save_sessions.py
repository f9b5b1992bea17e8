"""A save as a session: its phases, its downtime by a clock of ours, checkpoints, and what a failure undoes."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager

import pytest
from memory_guests import MAKERS, image_of, opened
from stream_samples import MemorySink, source_of

from saverestore.engine.downtime import Downtime
from saverestore.engine.progress import DomainState
from saverestore.engine.save import write_up_to_end
from saverestore.engine.session import OutOfPhase, SaveSession
from saverestore.engine.settings import SaveSettings
from saverestore.errors import DomainError, Interrupted, TransportError
from saverestore.interrupts import handled
from saverestore.stream.digest_algorithms import DigestAlgorithm
from saverestore.stream.layout import RecordType
from saverestore.stream.reader import LibxcReader, PageData
from saverestore.stream.trailer import TrailerBuffer
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemorySave

LIVE = SaveSettings(live=True, dirty="log")


class Clock:
    """Moves on only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: float) -> None:
        self.now += seconds


@contextmanager
def session_of(guest: MemorySave, settings: SaveSettings = LIVE, clock: Clock | None = None, sink=None):
    with SaveSession(guest, sink or MemorySink(), settings, clock=clock or Clock()) as session:
        yield session


def records_of(image: bytes) -> list:
    found = []
    with source_of(image) as source:
        reader = LibxcReader(source)
        while not reader.ended:
            record = reader.next()
            if isinstance(record, PageData):
                reader.skip_pages()
            found.append(record)
    return found


def test_each_figure_of_the_downtime_is_what_the_clock_showed_in_its_phase():
    clock = Clock()
    with opened(MemoryDomain.pvh(64)) as guest:
        guest.moments.on("suspend", 0, lambda: clock.takes(2.0))
        guest.moments.on("check_layout", 1, lambda: clock.takes(3.0))
        guest.moments.on("end_records", 0, lambda: clock.takes(4.0))
        guest.moments.on("resume", 0, lambda: clock.takes(5.0))
        with session_of(guest, clock=clock) as session:
            write_up_to_end(session, live=True)
            clock.takes(1.0)  # a device model
            session.end()
            assert session.report.downtime == Downtime(2.0, 3.0, 5.0, 0.0, 10.0)
            clock.takes(50.0)  # the disk
            session.resume()
        assert session.report.downtime == Downtime(2.0, 3.0, 5.0, 5.0, 65.0)


def test_a_domain_that_stays_suspended_has_no_downtime_after_its_stream():
    clock = Clock()
    with opened(MemoryDomain.pvh(64)) as guest, session_of(guest, clock=clock) as session:
        write_up_to_end(session, live=True)
        session.end()
        clock.takes(50.0)
    assert session.report.downtime.total_s == 0.0
    assert session.report.domain_state is DomainState.SUSPENDED


def test_a_failure_after_the_stream_resumes_the_domain_and_its_downtime_ends_there():
    clock = Clock()
    with opened(MemoryDomain.pvh(64)) as guest:
        with pytest.raises(TransportError), session_of(guest, clock=clock) as session:
            write_up_to_end(session, live=True)
            session.end()
            assert guest.domain.suspended
            clock.takes(7.0)
            raise TransportError("the disk is full")
        assert not guest.domain.suspended
        assert session.report.domain_state is DomainState.RUNNING
        assert session.report.downtime.total_s == 7.0


def test_a_failure_once_the_domain_runs_again_adds_nothing_to_its_downtime():
    clock = Clock()
    with opened(MemoryDomain.pvh(64)) as guest:
        with pytest.raises(TransportError), session_of(guest, clock=clock) as session:
            write_up_to_end(session, live=True)
            session.end()
            session.resume()
            clock.takes(7.0)
            raise TransportError("the disk is full")
        assert session.report.downtime.total_s == 0.0
        assert session.report.domain_state is DomainState.RUNNING


def test_a_domain_that_is_to_be_paused_has_no_downtime_after_its_stream():
    clock = Clock()
    with opened(MemoryDomain.pvh(64)) as guest, session_of(guest, clock=clock) as session:
        write_up_to_end(session, live=True)
        session.end()
        clock.takes(7.0)
        session.resume(paused=True)
    assert session.report.downtime.total_s == 0.0
    assert session.report.domain_state is DomainState.PAUSED


def test_the_length_of_the_stream_is_that_without_what_comes_behind_it():
    lengths = []
    for state in (b"", bytes(100_000)):
        trailer = TrailerBuffer("image")
        trailer.write(state)
        with opened(MemoryDomain.pvh(64)) as guest, session_of(guest, SaveSettings()) as session:
            write_up_to_end(session, live=False)
            session.end(trailer)
        lengths.append(session.report.stream_bytes)
    assert lengths[0] == lengths[1] > 64 * 4096


@pytest.mark.parametrize("steps", [[], ["begin"], ["begin", "send_rounds"]])
def test_a_session_that_is_left_before_its_end_leaves_no_log_dirty_on(steps):
    with opened(MemoryDomain.pvh(64)) as guest:
        with session_of(guest) as session:
            for step in steps:
                getattr(session, step)()
        assert guest.domain.dirty is None
        assert (session.report.stream_bytes > 0) == bool(steps)


def test_a_signal_while_a_session_is_left_resumes_the_domain():
    with opened(MemoryDomain.pvh(64)) as guest:
        guest.moments.on("log_dirty.close", 0, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted), handled(), session_of(guest) as session:
            session.begin()
            session.suspend()
            assert guest.domain.suspended
        assert not guest.domain.suspended
        assert guest.domain.dirty is None


def test_a_domain_that_was_never_asked_to_suspend_is_reported_as_it_was():
    with opened(MemoryDomain.pvh(64)) as guest:
        guest.moments.fail("read_pages", 0, DomainError("no"))
        with pytest.raises(DomainError), session_of(guest) as session:
            write_up_to_end(session, live=True)
        assert session.report.domain_state is DomainState.UNTOUCHED
        assert session.report.downtime is None


def test_a_domain_that_cannot_be_resumed_at_first_is_resumed_by_a_second_attempt():
    with opened(MemoryDomain.pvh(64)) as guest:
        guest.moments.fail("end_records", 0, DomainError("no"))
        guest.moments.fail("resume", 0, DomainError("busy"))
        with pytest.raises(DomainError, match="no") as caught, session_of(guest) as session:
            write_up_to_end(session, live=True)
        assert caught.value.__notes__ == [
            "the domain was resumed by a second attempt only (busy)",
        ]
        assert session.report.domain_state is DomainState.RUNNING
        assert not guest.domain.suspended


def test_one_that_can_never_be_resumed_is_reported_so():
    with opened(MemoryDomain.pvh(64)) as guest:
        guest.moments.fail("end_records", 0, DomainError("no"))
        for number in range(2):
            guest.moments.fail("resume", number, DomainError("gone"))
        with pytest.raises(DomainError, match="no") as caught, session_of(guest) as session:
            write_up_to_end(session, live=True)
        assert caught.value.__notes__ == [
            "the domain could not be resumed (gone)",
        ]
        assert session.report.domain_state is DomainState.STUCK


def test_phases_out_of_order_are_refused_and_leave_the_domain_running():
    steps = ["send_rounds", "suspend", "send_last_round", "write_state", "end", "checkpoint", "resume"]
    for step in steps:
        with opened(MemoryDomain.pvh(64)) as guest:
            with pytest.raises(OutOfPhase), session_of(guest) as session:
                getattr(session, step)()
            assert not guest.domain.suspended
            assert guest.domain.dirty is None


def test_what_comes_behind_the_stream_is_covered_by_its_digest_and_written():
    for digest in (DigestAlgorithm.XXH3, None):
        trailer, sink = TrailerBuffer("image"), MemorySink()
        trailer.write(b"a device model's state")
        settings = SaveSettings(digest=digest)
        with opened(MemoryDomain.pvh(64)) as guest, session_of(guest, settings, sink=sink) as session:
            write_up_to_end(session, live=False)
            session.end(trailer)
        assert bytes(sink.data).endswith(b"a device model's state")
        types = [record.type for record in records_of(bytes(sink.data)) if not isinstance(record, PageData)]
        assert (RecordType.FOLLOWING in types) == (digest is not None)


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("dirty", ["log", "digest"])
def test_a_checkpoint_is_followed_by_what_was_written_since_and_the_domain_runs_in_between(kind, dirty):
    sink = MemorySink()
    with opened(MAKERS[kind]()) as guest:
        written = guest.domain.data_pfns()[:20]
        with session_of(guest, SaveSettings(live=True, dirty=dirty), sink=sink) as session:
            write_up_to_end(session, live=True)
            session.checkpoint()
            assert guest.domain.suspended
            session.resume()
            assert not guest.domain.suspended
            guest.domain.write(written, 7)
            session.suspend()
            session.send_last_round()
            session.write_state()
            session.end()
        assert guest.domain.dirty is None
    records = records_of(bytes(sink.data))
    checkpoint = next(
        i for i, record in enumerate(records)
        if not isinstance(record, PageData) and record.type == RecordType.CHECKPOINT
    )  # fmt: skip
    sent = [pfn for record in records[checkpoint:] if isinstance(record, PageData) for pfn in record.pfns]
    assert set(written.tolist()) <= set(sent)
    assert len(sent) <= len(written) + 1  # a PV guest's start info is written when it is resumed


def test_a_failure_after_a_checkpoint_resumes_the_domain():
    with opened(MemoryDomain.pvh(64)) as guest:
        with pytest.raises(TransportError), session_of(guest) as session:
            write_up_to_end(session, live=True)
            session.checkpoint()
            raise TransportError("the backup is gone")
        assert not guest.domain.suspended
        assert guest.domain.dirty is None


def test_a_save_that_is_not_live_has_no_checkpoints():
    with opened(MemoryDomain.pvh(64)) as guest:
        with pytest.raises(OutOfPhase, match="not live"), session_of(guest, SaveSettings()) as session:
            write_up_to_end(session, live=False)
            session.checkpoint()
        assert not guest.domain.suspended


def test_the_story_of_one_image_is_a_session_to_its_end():
    with opened(MemoryDomain.pvh(64)) as guest:
        sink = MemorySink()
        with session_of(guest, SaveSettings(), sink=sink) as session:
            write_up_to_end(session, live=False)
            session.end()
    with opened(MemoryDomain.pvh(64)) as guest:
        assert image_of(guest) == bytes(sink.data)
