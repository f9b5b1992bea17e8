"""What `tools/bench migrate` makes of the migrations that were timed on two hosts."""

from __future__ import annotations

from benchmarks.migrate import Moved, comparisons, spread_table


def moved(tool: str, turn: int, downtime_s: float, whole_s: float = 10.0, rate: int = 200) -> Moved:
    return Moved(tool, rate, turn, downtime_s, whole_s, 60.0, 0.002)


def test_medians_are_compared_with_those_of_xl_and_half_of_its_downtime_is_the_target():
    found = [
        moved(tool, turn, downtime_s)
        for tool, downtimes in {"ssh": (0.4, 0.5, 9.0), "TLS": (0.8, 0.8, 0.8), "xl": (1.0, 1.0, 1.2)}.items()
        for turn, downtime_s in enumerate(downtimes)
    ]
    told = {one.what: (one.ours, one.peer, one.ratio, one.holds) for one in comparisons(found)}
    assert told["200 pages/s, over ssh: downtime"] == (0.5, 1.0, 2.0, True)
    assert told["200 pages/s, over TLS: downtime"] == (0.8, 1.0, 1.25, False)
    assert told["200 pages/s, over ssh: whole command"] == (10.0, 10.0, 1.0, True)
    assert told["200 pages/s, over ssh: sent over the cable"][-1] is None


def test_each_rate_is_compared_by_itself_and_what_was_not_run_is_left_out():
    found = [moved("ssh", 0, 0.5), moved("xl", 0, 1.0), moved("ssh", 0, 0.5, rate=4000)]
    assert {one.what.partition(",")[0] for one in comparisons(found)} == {"200 pages/s"}
    assert not any("TLS" in one.what for one in comparisons(found))


def test_least_and_most_are_shown_and_how_far_the_clocks_may_be_wrong():
    text = spread_table([moved("xl", 0, 0.5), moved("xl", 1, 0.9)])
    assert "0.50 to 0.90" in text
    assert "2 ms" in text
