"""What a benchmark says, of figures that are known: nothing here is timed."""

from __future__ import annotations

import json
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from benchmarks.chart import LEFT, WIDTH, Row, Series, bars
from benchmarks.errors import BenchError
from benchmarks.results import Comparison, compare, comparison_table, median_run, table, write_json
from benchmarks.running import Run

from saverestore.image.drawing import FONT_SIZE


def test_the_ratio_is_how_many_times_better_ours_is():
    assert compare("rate", 300, 200, "MB/s", 1.5) == Comparison("rate", 300, 200, "MB/s", 1.5, 1.5, True)
    assert compare("rate", 299, 200, "MB/s", 1.5).holds is False
    smaller = compare("size", 50, 48.5, "MB", 0.97, less_is_better=True)
    assert (smaller.ratio, smaller.holds) == (0.97, True)


def test_without_a_target_nothing_is_said_to_hold():
    one = compare("rate", 300, 200, "MB/s")
    assert (one.target, one.holds) == (None, None)
    assert comparison_table([one]).splitlines()[-1].replace(" ", "") == "|rate|300MB/s|200MB/s|1.50|||"


@pytest.mark.parametrize("figures", [(0, 1), (1, 0), (-1, 1)])
def test_figures_that_cannot_be_compared_are_refused(figures):
    with pytest.raises(BenchError, match="run it again"):
        compare("rate", *figures, "MB/s")


def test_the_json_has_the_same_fields_for_every_benchmark(tmp_path):
    path = tmp_path / "out.json"
    write_json(path, [compare("rate", 3, 2, "MB/s", 1.0), compare("size", 3, 2, "MB", less_is_better=True)])
    assert json.loads(path.read_text()) == [
        {"what": "rate", "ours": 3, "peer": 2, "unit": "MB/s", "ratio": 1.5, "target": 1.0, "holds": True},
        {"what": "size", "ours": 3, "peer": 2, "unit": "MB", "ratio": 0.667, "target": None, "holds": None},
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_json_that_cannot_be_written_is_one_error_and_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(BenchError, match="cannot write"):
        write_json(tmp_path / "folder", [])
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    with pytest.raises(BenchError, match="No such file"):
        write_json(tmp_path / "not there" / "out.json", [])


def test_the_median_is_taken_of_each_figure():
    runs = [Run(3, 1, 5, 9), Run(1, 2, 7, 8), Run(2, 3, 6, 7)]
    assert median_run(runs) == Run(2, 2, 6, 8)
    with pytest.raises(BenchError):
        median_run([])


def test_a_table_is_straight():
    lines = table(("what", "MB/s"), [("a", "1"), ("longer than that", "12,345")]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "|------------------|-------:|"


def test_the_longest_bar_has_all_the_room_and_others_their_share():
    rows = [Row("a", (100.0, 50.0), "to 30%"), Row("b & <c>", (25.0, 0.0))]
    drawing = bars("Rates", "MB/s", [Series("in", "#111111"), Series("out", "#222222")], rows)
    widths = [
        one.width for one in drawing.elements if getattr(one, "x", None) == LEFT and hasattr(one, "width")
    ]
    assert widths[1:] == [WIDTH, WIDTH // 2, WIDTH // 4, 1]
    figures = [one for one in drawing.elements if getattr(one, "text", "")[:1].isdigit()]
    assert [one.text for one in figures] == ["100, to 30%", "50", "25", "0"]
    assert all(after.y - before.y >= FONT_SIZE for before, after in pairwise(figures))
    ElementTree.fromstring(drawing.as_svg())
