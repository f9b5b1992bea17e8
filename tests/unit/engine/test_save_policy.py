"""When a live save stops sending rounds."""

from __future__ import annotations

import pytest

from saverestore.engine.policy import Decision, Limits, RoundStats, decide

GO, STOP = Decision.CONTINUE, Decision.STOP
ALL = 100_000


def rounds(*sent_and_dirty: tuple[int, int | None]) -> list[RoundStats]:
    return [RoundStats(number, *one, 1.0) for number, one in enumerate(sent_and_dirty)]


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
        pytest.param([(100, 5000), (5000, 2500)], GO, id="the first round is not compared"),
        pytest.param([(ALL, 5000), (5000, 5000), (5000, 5000)], STOP, id="as fast as we send"),
        pytest.param([(ALL, 5000), (5000, 5000), (4999, 5000)], GO, id="a little less each round"),
        pytest.param([(ALL, None), (5000, None), (6000, None)], STOP, id="stalled by digests"),
        pytest.param([(ALL, 9), (9, 8), (8, 7)], STOP, id="few left at any round"),
        pytest.param(
            [(ALL, 900), (900, 800), (800, 700), (700, 600), (600, 500)], STOP, id="limit of rounds"
        ),
        pytest.param(
            [(ALL, 900), (900, 800), (800, 700), (700, 600)], GO, id="one below the limit of rounds"
        ),
    ],
)
def test_decision(seen, wanted):
    assert decide(rounds(*seen), Limits()) is wanted


def test_limits_are_the_callers():
    assert decide(rounds((ALL, 1000)), Limits(few_pages=1001)) is STOP
    assert decide(rounds((ALL, 1000)), Limits(max_rounds=1)) is STOP
