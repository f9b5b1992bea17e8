"""Live saves with an aim: domains that write too fast are suspended, given up, or slowed down and put right again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from memory_guests import assert_same, opened, restored_from
from stream_samples import MemorySink

from saverestore.engine.policy import Limits, OnStall
from saverestore.engine.progress import SaveReport, Silence
from saverestore.engine.save import save
from saverestore.engine.session import Stalled
from saverestore.engine.settings import SaveSettings
from saverestore.errors import DomainError
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemorySave, MemoryThrottle

HOW = pytest.mark.parametrize("how", ["log", "digest"])
PAGES = 1000


def writing(guest: MemorySave) -> MemorySave:
    """In each round it writes as many pages as its processor time allows, differently each time."""
    plain, domain, seen = guest.domain.data_pfns(), guest.domain, []

    def write() -> None:
        if not domain.suspended:
            seen.append(0)
            domain.write(plain[: PAGES * domain.cpu_percent // 100], len(seen) % 251)

    for number in range(40):
        guest.moments.on("check_layout", number, write)
    return guest


def settings_for(guest: MemorySave, how: str, on_stall: OnStall, **more: float) -> SaveSettings:
    return SaveSettings(
        live=True,
        dirty=how,
        limits=Limits(on_stall=on_stall, **more),
        throttle=MemoryThrottle(guest.domain, guest.moments),
    )


class Told(Silence):
    def __init__(self) -> None:
        self.phases: list[str] = []

    def phase(self, text: str) -> None:
        self.phases.append(text)


@HOW
def test_a_domain_that_writes_too_fast_is_suspended(how):
    with opened(MemoryDomain.pvh(5000)) as guest:
        sink = MemorySink()
        report = save(writing(guest), sink, settings_for(guest, how, OnStall.STOP))
        assert "throttle.limit" not in guest.moments.calls
        assert len(report.rounds) == (3 if how == "log" else 4)
        assert [one.final for one in report.rounds] == [False] * (len(report.rounds) - 1) + [True]
        assert "leaves as many dirty pages as it sends" in report.verdict.why
        assert_same(guest.domain, restored_from(bytes(sink.data), guest.domain))


@HOW
def test_or_the_save_is_given_up_and_it_runs_as_before(how):
    with opened(MemoryDomain.pvh(5000)) as guest:
        report = SaveReport()
        with pytest.raises(Stalled, match=r"pages per second are dirtied.*was ended") as caught:
            save(writing(guest), MemorySink(), settings_for(guest, how, OnStall.ABORT), None, report)
        assert isinstance(caught.value, DomainError)
        assert caught.value.exit_code == 3
        assert guest.domain.dirty is None
        assert not guest.domain.suspended
        assert "suspend" not in guest.moments.calls
        # What was done is known all the same.
        assert report.pages_sent == sum(one.sent_pages for one in report.rounds) > 5000
        assert report.verdict.prediction.downtime_s > 0


@HOW
def test_or_it_is_slowed_down_until_rounds_help(how):
    with opened(MemoryDomain.pvh(5000)) as guest:
        sink, told = MemorySink(), Told()
        limits = {"few_pages": 200}
        report = save(writing(guest), sink, settings_for(guest, how, OnStall.THROTTLE, **limits), told)
        percents = [one.cpu_percent for one in report.rounds if not one.final]
        assert percents[0] == 100
        assert percents[-1] == 15
        assert percents == sorted(percents, reverse=True)
        assert guest.domain.cpu_percent == 100
        calls = guest.moments.calls
        assert calls.index("throttle.lift") < calls.index("suspend")
        assert any("left 75% of its processor time" in text for text in told.phases)
        assert_same(guest.domain, restored_from(bytes(sink.data), guest.domain))


@HOW
def test_a_domain_that_no_step_helps_is_suspended_in_the_end_at_full_speed(how):
    with opened(MemoryDomain.pvh(5000)) as guest:
        told = Told()
        report = save(writing(guest), MemorySink(), settings_for(guest, how, OnStall.THROTTLE), told)
        assert report.rounds[-2].cpu_percent == 10
        assert guest.domain.cpu_percent == 100
        assert any("all the same" in text for text in told.phases)


def test_what_was_sent_may_arrive_before_the_domain_is_suspended():
    with opened(MemoryDomain.pvh(500)) as guest:
        before: list[list[str]] = []
        settings = SaveSettings(live=True, catch_up=lambda: before.append(list(guest.moments.calls)))
        save(guest, MemorySink(), settings)
        (calls,) = before
        assert "read_pages" in calls
        assert "suspend" not in calls


def test_of_a_domain_that_writes_as_fast_as_is_sent_nothing_is_waited_for():
    with opened(MemoryDomain.pvh(5000)) as guest:
        settings = settings_for(guest, "log", OnStall.STOP)
        settings = replace(settings, catch_up=lambda: pytest.fail("it would only have more to send"))
        save(writing(guest), MemorySink(), settings)


class Cuts:
    """How long the link has been broken so far; a cut is one of 30 s, in which the domain writes."""

    def __init__(self, guest: MemorySave) -> None:
        self._guest = guest
        self.broken_s = 0.0
        self.nr = 0

    def cut(self) -> None:
        self.nr += 1
        domain = self._guest.domain
        domain.write(domain.data_pfns()[: 4 * PAGES], self.nr)
        self.broken_s += 30.0

    def settings(self, how: str, on_stall: OnStall, **more) -> SaveSettings:
        return replace(settings_for(self._guest, how, on_stall, **more), broken_s=lambda: self.broken_s)


def calming_down(guest: MemorySave) -> MemorySave:
    """Of each round it leaves half as many pages as of the one before."""
    plain, domain = guest.domain.data_pfns(), guest.domain
    for number, pages in enumerate((1000, 500, 250, 125)):
        guest.moments.on("check_layout", number, lambda n=number, to=pages: domain.write(plain[:to], 100 + n))
    return guest


@HOW
@pytest.mark.parametrize("on_stall", OnStall)
def test_a_round_in_which_the_link_was_broken_ends_no_save_and_slows_no_domain(how, on_stall):
    with opened(MemoryDomain.pvh(5000)) as guest:
        sink, cuts = MemorySink(), Cuts(guest)
        calming_down(guest).moments.on("check_layout", 1, cuts.cut)
        report = save(guest, sink, cuts.settings(how, on_stall, few_pages=200))
        assert "throttle.limit" not in guest.moments.calls
        assert [one.broken_s for one in report.rounds][:3] == [0.0, 30.0, 0.0]
        assert report.rounds[2].sent_pages >= 4 * PAGES  # while it runs, not while it is suspended
        assert report.rounds[-1].final
        assert report.rounds[-1].sent_pages < 500
        assert_same(guest.domain, restored_from(bytes(sink.data), guest.domain))


@HOW
def test_a_link_that_breaks_in_every_round_has_an_end(how):
    with opened(MemoryDomain.pvh(5000)) as guest:
        sink, cuts = MemorySink(), Cuts(guest)
        for number in range(40):
            guest.moments.on("check_layout", number, lambda: None if guest.domain.suspended else cuts.cut())
        report = save(guest, sink, cuts.settings(how, OnStall.STOP, max_rounds=3))
        assert len(report.rounds) == 2 * 3 + 1
        assert "the limit of 3 rounds" in report.verdict.why
        assert_same(guest.domain, restored_from(bytes(sink.data), guest.domain))


def test_a_link_that_breaks_while_what_was_sent_arrives_makes_for_one_more_round():
    with opened(MemoryDomain.pvh(5000)) as guest:
        sink, cuts = MemorySink(), Cuts(guest)
        settings = cuts.settings("log", OnStall.ABORT)
        arrivals = [cuts.cut, lambda: None]
        report = save(guest, sink, replace(settings, catch_up=lambda: arrivals.pop(0)()))
        assert not arrivals
        assert [one.sent_pages for one in report.rounds] == [5000, 4 * PAGES, 0]
        assert [one.final for one in report.rounds] == [False, False, True]
        assert_same(guest.domain, restored_from(bytes(sink.data), guest.domain))


def test_a_link_that_breaks_each_time_before_the_domain_is_suspended_has_an_end():
    with opened(MemoryDomain.pvh(5000)) as guest:
        sink, cuts = MemorySink(), Cuts(guest)
        settings = cuts.settings("log", OnStall.STOP, max_rounds=3)
        report = save(guest, sink, replace(settings, catch_up=cuts.cut))
        assert len(report.rounds) == 2 * 3 + 1
        assert_same(guest.domain, restored_from(bytes(sink.data), guest.domain))


def test_a_save_that_fails_while_the_rest_arrives_leaves_the_domain_running():
    with opened(MemoryDomain.pvh(500)) as guest:

        def fail() -> None:
            raise DomainError("the other host has given up")

        with pytest.raises(DomainError, match="has given up"):
            save(guest, MemorySink(), SaveSettings(live=True, dirty="log", catch_up=fail))
        assert (guest.domain.suspended, guest.domain.dirty) == (False, None)


def test_a_save_that_is_not_live_has_nothing_to_catch_up_with():
    with opened(MemoryDomain.pvh(64)) as guest:
        save(guest, MemorySink(), SaveSettings(catch_up=lambda: pytest.fail("it is suspended already")))


def test_whatever_fails_at_whatever_call_the_domain_gets_its_processor_time_back():
    with opened(MemoryDomain.pvh(2000)) as guest:
        save(writing(guest), MemorySink(), settings_for(guest, "log", OnStall.THROTTLE))
        calls = list(guest.moments.calls)
    first = calls.index("throttle.limit")
    for fail_at in range(first, len(calls)):
        with opened(MemoryDomain.pvh(2000)) as guest:

            def fail(name: str, total: int, fail_at: int = fail_at) -> None:
                if total == fail_at:
                    raise DomainError(f"{name} failed")

            writing(guest).moments.on_every(fail)
            with pytest.raises(DomainError, match="failed"):
                save(guest, MemorySink(), settings_for(guest, "log", OnStall.THROTTLE))
            assert guest.domain.cpu_percent == 100, calls[fail_at]
            assert not guest.domain.suspended
            assert guest.domain.dirty is None


def test_what_cannot_be_taken_back_is_told_besides_the_first_failure():
    with opened(MemoryDomain.pvh(2000)) as guest:
        for number in range(9):
            guest.moments.fail("throttle.lift", number, DomainError("it is gone"))
        guest.moments.fail("static_records", 0, DomainError("the first failure"))
        with pytest.raises(DomainError, match="the first failure") as caught:
            save(guest, MemorySink(), settings_for(guest, "log", OnStall.THROTTLE))
        assert caught.value.__notes__ == ["the domain is still slowed down (it is gone)"]
        assert guest.domain.dirty is None


def test_a_save_that_is_to_throttle_needs_something_to_do_it_with():
    with pytest.raises(ValueError, match="nothing to throttle"):
        SaveSettings(live=True, limits=Limits(on_stall=OnStall.THROTTLE))


@HOW
def test_an_aim_that_is_met_ends_the_rounds(how):
    with opened(MemoryDomain.pvh(5000)) as guest:
        report = save(writing(guest), MemorySink(), settings_for(guest, how, OnStall.ABORT, downtime_s=60.0))
        assert len(report.rounds) == 2
        assert "fits into 60000 ms" in report.verdict.why
        assert report.verdict.prediction.downtime_s <= 60


def test_the_report_counts_pages_that_went_out_more_than_once():
    with opened(MemoryDomain.pvh(3000)) as guest:
        report = save(writing(guest), MemorySink(), settings_for(guest, "log", OnStall.STOP))
        assert report.pages_sent == 3000 + report.resent_pages
        assert report.resent_pages == sum(one.sent_pages for one in report.rounds[1:]) == 2 * PAGES
        assert sum(one.sent_bytes for one in report.rounds) < report.stream_bytes
        assert sum(one.sent_bytes for one in report.rounds) > report.pages_sent * 4096
        downtime = report.downtime
        assert downtime.total_s == pytest.approx(
            downtime.suspend_s + downtime.last_round_s + downtime.state_s
        )
        assert downtime.last_round_s >= report.rounds[-1].seconds
        assert report.peak_memory_bytes > 1 << 20
