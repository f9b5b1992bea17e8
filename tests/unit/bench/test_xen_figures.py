"""What `tools/bench xen` makes of the times that were taken in dom0."""

from __future__ import annotations

from benchmarks.xen import comparisons, put_together


def saved(tool: str, pair: int, seconds: float, mib: int = 1024) -> dict:
    return {
        "what": "save", "tool": tool, "pair": pair, "stream_s": seconds, "whole_s": seconds + 2,
        "stream_bytes": 1, "kind": "pv", "mib": mib,
    }  # fmt: skip


def test_pairs_are_compared_by_themselves_and_their_median_counts():
    found = [
        saved(tool, pair, seconds)
        for pair, (ours, xl) in enumerate([(1, 2), (10, 10), (1, 3)])
        for tool, seconds in (("ours", ours), ("xl", xl))
    ]
    stream, whole = put_together(found)
    assert stream.what == "pv, 1024 MiB, save: stream"
    assert stream.ratios == (2, 1, 3)
    assert stream.ratio == 2
    assert (whole.ours_s, whole.xl_s) == (3, 5)


def test_streams_of_a_gib_and_downtimes_have_targets():
    found = [
        saved(tool, 0, seconds, mib) for mib in (256, 1024) for tool, seconds in (("ours", 1), ("xl", 1.2))
    ]
    found += [
        {"what": "live", "rate": 200, "tool": tool, "pair": 0, "downtime_s": s, "kind": "pvh", "mib": 256}
        for tool, s in (("ours", 0.5), ("xl", 1.0))
    ]
    told = {one.what: (one.target, one.holds) for one in comparisons(put_together(found))}
    assert told == {
        "pv, 256 MiB, save: stream": (None, None),
        "pv, 256 MiB, save: whole process": (None, None),
        "pv, 1024 MiB, save: stream": (1.3, False),
        "pv, 1024 MiB, save: whole process": (None, None),
        "pvh, 256 MiB, live, 200 pages/s: downtime": (1.0, True),
    }


def test_a_pair_that_was_cut_short_is_left_out():
    found = [saved("ours", 0, 1), saved("xl", 0, 2), saved("xl", 1, 9)]
    stream, _ = put_together(found)
    assert stream.ratios == (2,)
    assert put_together([saved("ours", 0, 1)]) == []
