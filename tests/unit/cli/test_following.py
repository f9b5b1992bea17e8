"""--events and --metrics: what programs can follow, and never a reason for the work to fail or to wait."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from hypothesis import given
from hypothesis import strategies as st

from saverestore.cli import pysave
from saverestore.engine.policy import RoundStats
from saverestore.engine.progress import DomainState, Silence
from saverestore.errors import DomainError, ErrorName, ExitCode
from saverestore.operations import save
from saverestore.report import events as module
from saverestore.report.events import LONGEST_LINE, Events


@pytest.fixture
def saving(monkeypatch):
    """What `pysave` calls to do the work: a round, and then `end`."""
    found = SimpleNamespace(end=lambda: None)

    def save_domain(_request, progress, report, **_):
        progress.phase("sending")
        progress.round(0, 100, final=False)
        progress.pages(50, 204800)
        report.rounds.append(RoundStats(0, 100, 5, 0.5, sent_bytes=409600))
        report.pages_sent, report.stream_bytes = 100, 409600
        progress.round_done(report.rounds[0])
        found.end()
        report.domain_state = DomainState.DESTROYED

    monkeypatch.setattr(save, "save_domain", save_domain)
    monkeypatch.setattr(module, "EVERY_S", 0.0)
    return found


def lines_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def fail() -> None:
    raise DomainError("web1 does not suspend", name=ErrorName.DOMAIN_UNRESPONSIVE)


def test_events_are_lines_from_the_begin_to_the_end(tmp_path, saving):
    path = tmp_path / "events"
    assert pysave.main(["--live", "-q", "--events", str(path), "web1", str(tmp_path / "a.img")]) == 0
    found = lines_of(path.read_text())
    assert [one["event"] for one in found] == ["begin", "phase", "round", "progress", "round_done", "end"]
    assert found[3] | {"at": 0, "bytes_per_s": 0} == {
        "event": "progress", "at": 0, "round": None, "done_pages": 50, "round_pages": 100, "bytes": 204800,
        "bytes_per_s": 0,
    }  # fmt: skip
    assert found[-1] | {"at": 0, "seconds": 0} == {
        "event": "end", "at": 0, "tool": "pysave", "domain": "web1", "result": "done", "exit_code": 0, "error": None,
        "error_name": None, "domain_state": "destroyed", "seconds": 0, "bytes": 409600, "downtime": None,
    }  # fmt: skip
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_failure_is_the_last_event(tmp_path, saving):
    saving.end = fail
    path = tmp_path / "events"
    assert pysave.main(["-q", "--events", str(path), "web1", str(tmp_path / "a.img")]) == ExitCode.DOMAIN
    end = lines_of(path.read_text())[-1]
    assert (end["event"], end["result"], end["exit_code"], end["error_name"]) == (
        *("end", "failed", 3, "domain_unresponsive"),
    )


def test_events_go_to_a_descriptor_which_stays_open(tmp_path, saving):
    read, write = os.pipe()
    assert pysave.main(["-q", "--events", str(write), "web1", str(tmp_path / "a.img")]) == 0
    os.write(write, b"open")
    os.close(write)
    with os.fdopen(read) as file:
        *lines, last = file.read().splitlines()
    assert (len(lines), last) == (6, "open")


def test_a_reader_that_is_gone_or_slow_does_not_hold_the_work_up(tmp_path, saving):
    read, write = os.pipe()
    os.close(read)
    assert pysave.main(["-q", "--events", str(write), "web1", str(tmp_path / "a.img")]) == 0
    os.close(write)
    read, write = os.pipe()
    events = Events(write, close_fd=True)
    for _ in range(5000):  # more than a pipe holds
        events.say("phase", text="x" * 100)
    os.set_blocking(read, False)
    with contextlib.suppress(BlockingIOError):
        while os.read(read, 1 << 16):
            pass
    events.say("phase", text="after")
    (line,) = lines_of(os.read(read, 1 << 16).decode())
    assert line["left_out"] > 0
    events.close_file()
    os.close(read)


@given(st.text(max_size=5000), st.integers(0, 1 << 62), st.one_of(st.none(), st.integers(0, 1 << 62)))
def test_every_line_is_one_of_json_that_a_pipe_takes_whole(text, pages, dirty):
    read, write = os.pipe()
    events = Events(write, close_fd=True)
    progress = events.over(Silence())
    progress.phase(text)
    progress.round(pages, pages, final=True)
    progress.round_done(RoundStats(pages, pages, dirty, 0.5))
    events.close_file()
    with os.fdopen(read, "rb") as file:
        lines = file.read().splitlines(keepends=True)
    assert all(len(line) <= LONGEST_LINE for line in lines)
    assert [json.loads(line)["event"] for line in lines][-2:] == ["round", "round_done"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--events", "99999"], "there is no such descriptor"),
        (["--events", "/no/such/file"], "cannot be opened"),
        (["--metrics", "/tmp/x.txt"], "must end in .prom"),
        (["--metrics", "/no/such/x.prom"], "there is no directory"),
        (["--dry-run", "--metrics", "/tmp/x.prom"], "--dry-run makes no changes"),
    ],
)
def test_what_cannot_be_written_is_found_before_anything_is_done(tmp_path, saving, capsys, words, said):
    pytest.importorskip("prometheus_client")
    saving.end = fail
    try:
        code = pysave.main([*words, "web1", str(tmp_path / "a.img")])
    except SystemExit as error:
        code = error.code
    assert code in (ExitCode.USAGE, ExitCode.IO)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("fails", [False, True])
def test_metrics_are_what_prometheus_reads(tmp_path, saving, fails):
    pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    saving.end = fail if fails else saving.end
    path = tmp_path / "web1.prom"
    path.write_text("old")
    pysave.main(["-q", "--metrics", str(path), "web1", str(tmp_path / "a.img")])
    found = {
        sample.name: (sample.labels, sample.value)
        for family in text_string_to_metric_families(path.read_text())
        for sample in family.samples
    }
    assert found["pysave_last_success"] == ({"domain": "web1"}, 0.0 if fails else 1.0)
    assert found["pysave_last_stream_bytes"][1] == 409600
    assert found["pysave_last_rounds"][1] == 1
    assert "pysave_last_end_timestamp_seconds" in found
    assert "pysave_last_downtime_seconds" not in found  # not known
    assert sorted(one.name for one in tmp_path.iterdir()) == ["web1.prom"]


def test_metrics_without_the_package_are_refused_at_once(tmp_path):
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from saverestore.cli import pymigrate; sys.exit(pymigrate.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--metrics", f"{tmp_path}/x.prom", "web1", "b"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.USAGE
    assert "prometheus_client (Debian: python3-prometheus-client)" in done.stderr
