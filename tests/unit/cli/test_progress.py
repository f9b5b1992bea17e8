"""What a person sees of a save or restore under way."""

from __future__ import annotations

import io

import pytest

from saverestore.cli import progress
from saverestore.engine.policy import RoundStats


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """In the test itself: pytest sets sys.stderr anew between the fixtures and the test."""
    found = Terminal()
    monkeypatch.setattr("sys.stderr", found)
    return found


def test_a_terminal_gets_a_bar_of_bytes_a_file_gets_lines_and_quiet_nothing(monkeypatch):
    on_terminal(monkeypatch)
    assert isinstance(progress.progress_for("pysave", quiet=False), progress.Bar)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert isinstance(progress.progress_for("pysave", quiet=False), progress.Lines)
    assert not isinstance(progress.progress_for("pysave", quiet=True), (progress.Bar, progress.Lines))


def test_the_bar_ends_before_anything_else_is_said(monkeypatch):
    terminal = on_terminal(monkeypatch)
    bar = progress.progress_for("pysave", quiet=False)
    bar.round(0, 1024, final=False)
    bar.pages(512, 2 << 20)
    bar.close()
    print("pysave: an error", file=terminal)
    said = terminal.getvalue()
    assert said.endswith("\npysave: an error\n")
    assert "round 0:  50%" in said
    assert "2 of 4 MiB" in said
    assert "2 MiB written" in said


def test_a_round_ends_with_what_came_of_it(monkeypatch):
    terminal = on_terminal(monkeypatch)
    bar = progress.progress_for("pysave", quiet=False)
    bar.round(1, 1024, final=False)
    bar.round_done(RoundStats(1, 512, 7, 1.5))
    assert terminal.getvalue().endswith("\nround 1: 512 pages sent, 7 dirty\n")


def test_restoring_counts_the_bytes_of_the_image(monkeypatch):
    terminal = on_terminal(monkeypatch)
    bar = progress.progress_for("pyrestore", quiet=False, total_bytes=8 << 20)
    bar.phase("creating web1")
    bar.pages(512, 2 << 20)
    bar.pages(512, 4 << 20)
    bar.close()
    assert "4 of 8 MiB" in terminal.getvalue()


def test_a_name_can_neither_colour_the_terminal_nor_begin_a_line(monkeypatch, capsys):
    out = io.StringIO()
    progress.Lines("pyrestore", out).phase("creating web\x1b[31m1\npyrestore: done")
    assert out.getvalue() == "pyrestore: creating web\\x1b[31m1\\x0apyrestore: done\n"
    terminal = on_terminal(monkeypatch)
    progress.progress_for("pyrestore", quiet=False).phase("creating web\x1b[31m1")
    assert terminal.getvalue() == "creating web\\x1b[31m1\n"


def test_lines_name_the_command_and_the_round():
    out = io.StringIO()
    lines = progress.Lines("pysave", out)
    lines.phase("suspending the domain")
    lines.round(2, 100, final=True)
    lines.round_done(RoundStats(2, 40, None, 1.0))
    lines.close()
    assert out.getvalue().splitlines() == [
        "pysave: suspending the domain",
        "pysave: last round: 100 pages to scan",
        "pysave: round 2: 40 pages sent",
    ]
