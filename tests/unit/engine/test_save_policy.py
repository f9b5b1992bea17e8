"""When a live save stops sending rounds, and how long the domain is expected to stand still then."""

from __future__ import annotations

from dataclasses import replace

import pytest

from saverestore.engine.policy import (
    Decision,
    Limits,
    OnStall,
    RoundStats,
    catches_up,
    decide,
    dirty_rate,
    is_stalled,
    predict,
)

GO, STOP, SLOWER, GIVE_UP = Decision.CONTINUE, Decision.STOP, Decision.THROTTLE, Decision.ABORT
ALL = 100_000


def rounds(*seen: tuple[float, ...]) -> list[RoundStats]:
    """(sent, dirty), a second each; or more of (sent, dirty, seconds, percent, seconds without a link)."""
    made = []
    for number, (sent, dirty, *more) in enumerate(seen):
        seconds, percent, broken_s = [*more, *[1.0, 100, 0.0][len(more) :]]
        made.append(RoundStats(number, sent, dirty, seconds, cpu_percent=percent, broken_s=broken_s))
    return made


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        pytest.param([(ALL, 1000)], GO, id="the first round leaves much"),
        pytest.param([(ALL, 49)], STOP, id="the first round leaves little"),
        pytest.param([(ALL, 50)], GO, id="as many as the threshold is not fewer"),
        pytest.param([(ALL, 0)], STOP, id="nothing is dirty"),
        pytest.param([(ALL, None)], GO, id="digests know nothing after the first round"),
        pytest.param([(0, None)], GO, id="an empty first round by digests tells nothing"),
        pytest.param([(ALL, None), (49, None)], STOP, id="a round by digests found little"),
        pytest.param([(ALL, None), (5000, None)], GO, id="a round by digests found much"),
        pytest.param([(ALL, 5000), (5000, 2500)], GO, id="converging"),
        pytest.param([(ALL, ALL)], GO, id="the first round is not compared with what it left"),
        pytest.param([(ALL, 5000), (5000, 5000)], STOP, id="as fast as we send"),
        pytest.param([(ALL, 5000), (5000, 4760)], STOP, id="hardly less than was sent"),
        pytest.param([(ALL, 5000), (5000, 4740)], GO, id="less than was sent"),
        pytest.param([(ALL, None), (5000, None), (6000, None)], STOP, id="stalled by digests"),
        pytest.param([(ALL, None), (5000, None), (4000, None)], GO, id="less by digests"),
        pytest.param([(ALL, 9), (9, 8), (8, 7)], STOP, id="few left at any round"),
        pytest.param(
            [(ALL, 900), (900, 800), (800, 700), (700, 600), (600, 500)], STOP, id="limit of rounds"
        ),
        pytest.param(
            [(ALL, 900), (900, 800), (800, 700), (700, 600)], GO, id="one below the limit of rounds"
        ),
    ],
)
def test_decision_without_an_aim(seen, wanted):
    verdict = decide(rounds(*seen), Limits())
    assert verdict.decision is wanted
    assert verdict.wanted
    assert verdict.why


def test_limits_are_the_callers():
    assert decide(rounds((ALL, 1000)), Limits(few_pages=1001)).decision is STOP
    assert decide(rounds((ALL, 1000)), Limits(max_rounds=1)).decision is STOP
    assert decide(rounds((ALL, 1000)), Limits(max_rounds=1)).why == "the limit of 1 round is reached"
    assert decide(rounds((ALL, 1000)), Limits(max_time_s=1.0)).decision is STOP
    assert decide(rounds((ALL, 1000)), Limits(max_time_s=1.1)).decision is GO


@pytest.mark.parametrize(
    ("limits", "rounds_at_most"),
    [
        (Limits(), 5),
        (Limits(max_rounds=7), 7),
        (Limits(downtime_s=0.3), 30),
        (Limits(on_stall=OnStall.THROTTLE), 30),
        (Limits(on_stall=OnStall.ABORT), 5),
        (Limits(downtime_s=0.3, max_rounds=2), 2),
    ],
)
def test_who_has_an_aim_has_more_rounds_unless_a_number_is_said(limits, rounds_at_most):
    assert limits.rounds_at_most == rounds_at_most


# ---- an aim for the downtime -------------------------------------------------------------------------

AIM = {"downtime_s": 0.3, "suspend_s": 0.1, "state_s": 0.05}


@pytest.mark.parametrize(
    ("seen", "on_stall", "wanted", "is_wanted"),
    [
        # 100,000 pages a second; 150 ms are left for pages, of which some are written during the suspend.
        pytest.param([(ALL, 13_000)], "stop", STOP, True, id="it fits after the first round"),
        pytest.param([(ALL, 14_000)], "stop", GO, True, id="it does not fit yet"),
        pytest.param([(ALL, 13_000)], "abort", STOP, True, id="what fits is never given up"),
        pytest.param([(ALL, 50_000), (50_000, 50_000, 0.5)], "stop", STOP, False, id="stalled, stop"),
        pytest.param([(ALL, 50_000), (50_000, 50_000, 0.5)], "abort", GIVE_UP, False, id="stalled, abort"),
        pytest.param([(ALL, 50_000), (50_000, 50_000, 0.5)], "throttle", SLOWER, False, id="stalled, slower"),
        pytest.param([(ALL, 50_000), (50_000, 40_000, 0.5)], "abort", GO, True, id="not stalled"),
        pytest.param([(ALL, 49)], "abort", STOP, True, id="few pages are suspended for, whatever the aim"),
        # By digests everything is read once more, which alone takes longer than the aim.
        pytest.param(
            [(ALL, None, 2.0), (5000, None), (5000, None)], "throttle", STOP, False, id="never, slower"
        ),
        pytest.param(
            [(ALL, None, 2.0), (5000, None), (5000, None)], "abort", GIVE_UP, False, id="never, abort"
        ),
        pytest.param([(ALL, None, 2.0), (5000, None, 0.1)], "abort", STOP, True, id="by digests, it fits"),
    ],
)
def test_decision_with_an_aim(seen, on_stall, wanted, is_wanted):
    verdict = decide(rounds(*seen), Limits(**AIM, on_stall=OnStall(on_stall)))
    assert (verdict.decision, verdict.wanted) == (wanted, is_wanted)


@pytest.mark.parametrize("more", [{"max_rounds": 3}, {"max_time_s": 2.5}], ids=str)
@pytest.mark.parametrize(
    ("on_stall", "wanted"), [(OnStall.STOP, STOP), (OnStall.ABORT, GIVE_UP), (OnStall.THROTTLE, STOP)]
)
def test_limits_that_come_before_the_aim_are_a_failure_only_for_who_wants_to_give_up(more, on_stall, wanted):
    seen = rounds((ALL, 90_000), (90_000, 80_000), (80_000, 70_000))
    verdict = decide(seen, Limits(**AIM, on_stall=on_stall, **more))
    assert (verdict.decision, verdict.wanted) == (wanted, False)
    assert decide(seen, Limits(on_stall=on_stall, **more)).decision is STOP


# ---- slower, step by step ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("percent", "left", "wanted", "next_percent"),
    [
        (100, 5000, SLOWER, 60),
        (60, 5000, SLOWER, 20),
        (60, 2000, GO, 100),
        (20, 5000, STOP, 100),
    ],
)
def test_a_stall_takes_the_next_step_and_after_the_last_one_suspends(percent, left, wanted, next_percent):
    limits = Limits(on_stall=OnStall.THROTTLE, throttle_steps=(60, 20))
    verdict = decide(rounds((ALL, 5000, 1.0, percent), (5000, left, 1.0, percent)), limits)
    assert (verdict.decision, verdict.cpu_percent) == (wanted, next_percent)


def test_by_digests_a_step_is_judged_by_two_rounds_under_it():
    limits = Limits(on_stall=OnStall.THROTTLE, throttle_steps=(60, 20))
    seen = rounds((ALL, None), (5000, None), (5000, None), (5000, None, 1.0, 60))
    assert decide(seen, limits).decision is GO
    seen = rounds((ALL, None), (5000, None), (5000, None), (5000, None, 1.0, 60), (5000, None, 1.0, 60))
    assert decide(seen, limits).cpu_percent == 20


# ---- rates and prediction ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "rate"),
    [
        ([(ALL, 5000, 2.0)], 2500.0),
        ([(ALL, 5000, 2.0), (5000, 100, 0.1)], 1000.0),
        ([(ALL, None, 2.0)], None),
        ([(ALL, None, 3.0), (5000, None, 1.0)], 2500.0),  # half of each
        ([(ALL, 5, 0.0)], None),
    ],
)
def test_the_rate_at_which_a_domain_writes(seen, rate):
    assert dirty_rate(rounds(*seen)) == rate


@pytest.mark.parametrize(
    ("seen", "rest_s", "least_s"),
    [
        # 1,000 left, and 100 more during the 0.1 s of the suspend, at 100,000 a second.
        pytest.param([(ALL, 1000)], 0.011, 0.15, id="at the first round's rate"),
        # Later rounds are slower, as pages are here and there: 20,000 a second.
        pytest.param([(ALL, 10_000), (10_000, 1000, 0.5)], 0.06, 0.15, id="at the later rate"),
        # 0.1 s for a round as such, and 10,000 a second.
        pytest.param(
            [(ALL, 4000), (4000, 2000, 0.5), (2000, 0, 0.3)], 0.1, 0.25, id="a round has a cost of its own"
        ),
        pytest.param([(ALL, 4000), (2000, 0, 0.5), (4000, 0, 0.3)], 0.0, 0.15, id="no line fits: the last"),
        pytest.param([(0, 0, 0.2)], 0.2, 0.35, id="nothing was sent"),
        pytest.param([(ALL, None, 3.0)], 3.0, 0.15, id="by digests at first: at most that"),
        # Reading takes 1.0 s, each page sent 20 µs.
        pytest.param([(ALL, None, 3.0), (5000, None, 1.1)], 1.1, 1.15, id="by digests: read and send again"),
        pytest.param([(5, None, 1.0), (5, None, 1.0)], 1.0, 0.15, id="by digests: cannot be told apart"),
    ],
)
def test_prediction(seen, rest_s, least_s):
    found = predict(rounds(*seen), Limits(suspend_s=0.1, state_s=0.05))
    assert found.rest_s == pytest.approx(rest_s)
    assert found.least_s == pytest.approx(least_s)
    assert found.downtime_s == pytest.approx(rest_s + 0.15)


def test_what_suspending_takes_is_the_callers_to_say():
    assert predict(rounds((ALL, 0)), Limits(suspend_s=1.0, state_s=2.0)).downtime_s == pytest.approx(3.0)


def test_a_stall_needs_rounds_that_compare():
    assert not is_stalled(rounds((ALL, None), (ALL, None)))
    assert is_stalled(rounds((ALL, None), (ALL, None), (ALL, None)))


# ---- rounds in which the link was broken -----------------------------------------------------------

CUT = (31.0, 100, 30.0)
"""Of its 31 s, 30 were without a link."""


@pytest.mark.parametrize("on_stall", OnStall)
@pytest.mark.parametrize(
    "seen",
    [
        pytest.param([(ALL, 3000), (3000, 60_000, *CUT)], id="by the log"),
        pytest.param([(ALL, None), (3000, None), (3000, None, *CUT)], id="by digests"),
        pytest.param([(ALL, None), (3000, None, *CUT), (60_000, None)], id="by digests, the round behind it"),
        pytest.param([(ALL, None), (49, None, *CUT)], id="by digests: few were found before the cut"),
    ],
)
def test_a_round_in_which_the_link_was_broken_is_no_stall(seen, on_stall):
    assert not is_stalled(rounds(*seen))
    assert decide(rounds(*seen), Limits(on_stall=on_stall)).decision is GO


def test_the_reason_to_go_on_says_for_how_long_there_was_no_link():
    assert "30.0 s" in decide(rounds((ALL, 3000), (3000, 60_000, *CUT)), Limits()).why


def test_a_domain_that_writes_too_fast_is_found_out_by_the_next_whole_round():
    assert decide(rounds((ALL, 3000), (3000, 60_000, *CUT), (60_000, 60_000)), Limits()).decision is STOP


def test_few_pages_that_are_left_are_few_also_after_a_cut():
    assert decide(rounds((ALL, 3000), (3000, 49, *CUT)), Limits()).decision is STOP


@pytest.mark.parametrize(
    ("broken", "whole", "wanted"),
    [
        pytest.param(0, 3, STOP, id="without a cut"),
        pytest.param(1, 2, GO, id="one more"),
        pytest.param(1, 3, STOP, id="but one only"),
        pytest.param(3, 2, GO, id="one for each cut"),
        pytest.param(4, 2, STOP, id="up to twice as many in all"),
        pytest.param(6, 0, STOP, id="also where it breaks in every round"),
    ],
)
@pytest.mark.parametrize("is_last", [False, True], ids=["first", "last"])
def test_rounds_in_which_the_link_was_broken_do_not_count_for_the_limit(broken, whole, wanted, is_last):
    cut, good = [(9000, 8000, *CUT)] * broken, [(9000, 8000)] * whole
    seen = good + cut if is_last else cut + good
    assert decide(rounds(*seen), Limits(max_rounds=3)).decision is wanted


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        pytest.param([(ALL, 3000), (3000, 2000, *CUT), (2000, 1000)], GO, id="3 s with a link"),
        pytest.param([(ALL, 3000), (3000, 2000, *CUT), (2000, 1000, 2.0)], STOP, id="4 s with a link"),
        pytest.param([(ALL, 3000), (3000, 2000, 5.0, 100, 0.1)], GO, id="it breaks at the limit: one more"),
        pytest.param(
            [(ALL, 3000, 4.0), (3000, 2000, 0.1, 100, 30.0), (2000, 1000, 0.1)],
            STOP,
            id="it broke before the round: no more than the round's time is left out",
        ),
    ],
)
def test_time_without_a_link_does_not_count_for_the_longest_time(seen, wanted):
    assert decide(rounds(*seen), Limits(max_time_s=4.0)).decision is wanted


@pytest.mark.parametrize(
    ("seen", "rest_s", "least_s"),
    [
        # 1,000 left, and 100 more during the 0.1 s of the suspend, at 100,000 a second.
        pytest.param([(ALL, 1000), (1000, 1000, *CUT)], 0.011, 0.15, id="at the first round's rates"),
        # 20,000 a second; 10,000 left, and 200 more.
        pytest.param(
            [(ALL, 10_000), (10_000, 1000, 0.5), (1000, 10_000, *CUT)], 0.51, 0.15, id="at the later rates"
        ),
        pytest.param(
            [(ALL, 9000, *CUT), (10_000, 1000, 0.5)], 0.06, 0.15, id="a cut of the first leaves the later"
        ),
        # 10,000 pages in a second, which is too slow; 10,000 left, and 1,000 more.
        pytest.param(
            [(10_000, 10_000, 1.0, 100, 0.5)], 1.1, 0.15, id="no other round: too slow, not too fast"
        ),
        pytest.param(
            [(ALL, None, 3.0), (5000, None, *CUT), (5000, None, 1.1), (5000, None, *CUT)],
            3.0,
            1.15,
            id="by digests: at most all",
        ),
    ],
)
def test_a_round_in_which_the_link_was_broken_is_not_what_is_predicted_from(seen, rest_s, least_s):
    found = predict(rounds(*seen), Limits(suspend_s=0.1, state_s=0.05))
    assert found.rest_s == pytest.approx(rest_s)
    assert found.least_s == pytest.approx(least_s)


# ---- room where the image goes ---------------------------------------------------------------------

MIB = 1 << 20
PAGE = 4096


def stored(room: int | None, *seen: tuple[int, int | None]) -> list[RoundStats]:
    """(sent, dirty), each a page on the disk; then so much room is left."""
    made = [
        RoundStats(number, sent, dirty, 1.0, stored_bytes=sent * PAGE)
        for number, (sent, dirty) in enumerate(seen)
    ]
    return [*made[:-1], replace(made[-1], room_bytes=room)]


@pytest.mark.parametrize(
    ("room", "seen", "wanted", "lacks_room"),
    [
        pytest.param(None, [(ALL, 1000)], GO, False, id="nothing is known of the room"),
        pytest.param(2000 * PAGE + MIB, [(ALL, 1000)], GO, False, id="room for a round and the last one"),
        pytest.param(2000 * PAGE, [(ALL, 1000)], STOP, False, id="room for the last one only"),
        pytest.param(900 * PAGE, [(ALL, 1000)], GIVE_UP, True, id="not even for that"),
        pytest.param(900 * PAGE, [(ALL, 10)], STOP, False, id="little is left, which fits"),
        pytest.param(ALL * PAGE, [(ALL, None)], GO, False, id="digests, and room"),
        pytest.param(MIB, [(ALL, None)], STOP, False, id="digests know too little to give up"),
        pytest.param(
            900 * PAGE, [(ALL, None), (1000, None)], GIVE_UP, True, id="digests after a second round"
        ),
    ],
)
def test_rounds_end_where_room_does(room, seen, wanted, lacks_room):
    verdict = decide(stored(room, *seen), Limits())
    assert verdict.decision is wanted
    assert verdict.lacks_room is lacks_room


def test_what_a_page_takes_is_as_it_was_stored():
    """Compressed to a tenth, ten times as many fit."""
    first = RoundStats(0, ALL, 5000, 1.0, stored_bytes=ALL * PAGE // 10)
    assert decide([replace(first, room_bytes=2000 * PAGE)], Limits()).decision is GO


def test_zero_pages_that_took_no_room_do_not_make_dirty_ones_look_small():
    first = RoundStats(0, ALL, 1000, 1.0, zero_pages=ALL * 9 // 10, stored_bytes=ALL // 10 * PAGE)
    assert decide([replace(first, room_bytes=900 * PAGE)], Limits()).lacks_room


def test_an_aim_that_room_does_not_let_the_rounds_reach_is_a_stall():
    limits = Limits(downtime_s=0.001, on_stall=OnStall.ABORT)
    verdict = decide(stored(2000 * PAGE, (ALL, 1000)), limits)
    assert verdict.decision is GIVE_UP
    assert not verdict.lacks_room


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        ([(ALL, 0)], True),
        ([(ALL, ALL // 2)], True),
        ([(ALL, ALL)], False),
        ([(ALL, 5000), (5000, 2500)], True),
        ([(ALL, 5000), (5000, 2501)], False),
        ([(0, 0)], True),
        ([(ALL, None)], False),  # by digests nobody knows yet
        ([(ALL, None), (5000, None)], False),
        ([(ALL, 5000), (0, 0, 0.0)], False),  # no time at all
        ([(ALL, 5000), (5000, 2500), (2500, 60_000, *CUT)], True),  # as before the cut
        ([(ALL, 5000), (5000, 2501), (2501, 10, *CUT)], False),
        ([(ALL, 49, *CUT)], True),  # even so
        ([(ALL, None), (5000, None, 0.01), (5000, None, *CUT)], True),
    ],
)
def test_what_was_sent_is_waited_for_where_clearly_less_is_dirtied_meanwhile(seen, wanted):
    assert catches_up(rounds(*seen)) is wanted
