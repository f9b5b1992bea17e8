"""`tools/bench start`: real processes begin, and the right things are compared. None is judged by its time."""

from __future__ import annotations

import json
import subprocess

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from benchmarks import cli, start
from benchmarks.errors import BenchError
from benchmarks.start import FIRST_BYTE, NUMPY, PASS, Figures, Subject, comparisons, measure, report


def test_every_command_begins_and_one_writes_a_first_byte():
    measured = measure(1, lambda _: None)
    assert list(measured) == [one.name for one in start.subjects()]
    assert all(one.cpu_s > 0 for one in measured.values())
    assert measured[NUMPY].whole_s > measured[PASS].whole_s
    first = measured[FIRST_BYTE]
    assert first.first_s is not None
    assert first.whole_s > first.first_s > measured[PASS].whole_s
    assert FIRST_BYTE in report(measured)


def test_what_is_measured_to_its_first_byte_writes_an_image():
    (subject,) = [one for one in start.subjects() if one.name == FIRST_BYTE]
    environment = {"PYTHONPATH": f"{start.CHECKOUT}:{start.CHECKOUT / 'tools'}"}
    done = subprocess.run(subject.argv, env=environment, capture_output=True, check=True)
    assert done.stdout.startswith(b"Xen saved domain, xl format")
    assert len(done.stdout) > 256 * 4096
    assert done.stderr == b""


def test_the_first_byte_has_a_bound_and_processor_time_is_held_against_numpys():
    figures = {PASS: Figures(None, 0.02, 0.01), NUMPY: Figures(None, 0.1, 0.05)}
    found = comparisons(figures | {FIRST_BYTE: Figures(0.11, 0.2, 0.1)})
    assert [(one.ours, one.ratio, one.target, one.holds) for one in found] == [
        (0.11, None, 0.12, True),
        (0.1, 0.5, None, None),
    ]
    assert not comparisons(figures | {FIRST_BYTE: Figures(0.13, 0.2, 0.1)})[0].holds


def test_the_least_of_all_rounds_is_told(monkeypatch):
    rounds = iter([Figures(None, 9, 9), Figures(0.3, 2, 3), Figures(0.2, 3, 1)])
    monkeypatch.setattr(start, "subjects", lambda: [Subject("one", ())])
    monkeypatch.setattr(start, "_run", lambda *_: next(rounds))
    assert measure(2, lambda _: None) == {"one": Figures(0.2, 2, 1)}


def test_a_command_that_ends_in_another_way_is_an_error(monkeypatch):
    monkeypatch.setattr(start, "subjects", lambda: [Subject("one", ("/bin/false",))])
    with pytest.raises(BenchError, match="one: exit 1: run it by itself: /bin/false"):
        measure(1, lambda _: None)


def test_the_figures_are_written_as_every_benchmarks_are(tmp_path, monkeypatch, capsys):
    figures = {PASS: Figures(None, 0.02, 0.01), NUMPY: Figures(None, 0.1, 0.05)}
    figures[FIRST_BYTE] = Figures(0.11, 0.2, 0.1)
    monkeypatch.setattr(start, "measure", lambda *_: figures)
    monkeypatch.setattr(cli.environment, "enter", lambda _: None)
    assert cli.main(["start", "--json", str(tmp_path / "out.json")]) == 0
    assert len(json.loads((tmp_path / "out.json").read_text())) == 2
    assert "first byte" in capsys.readouterr().out
