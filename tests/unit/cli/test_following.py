"""--events and --metrics: what programs can follow, and never a reason for the work to fail or to wait."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from hypothesis import given
from hypothesis import strategies as st

from saverestore.cli import pymigrate, pyrestore, pysave
from saverestore.engine.policy import RoundStats
from saverestore.engine.progress import DomainState, Silence
from saverestore.errors import DomainError, ErrorName, ExitCode, ImageError
from saverestore.operations import restore, save
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
        "event": "progress", "at": 0, "round": 0, "done_pages": 50, "round_pages": 100, "bytes": 204800,
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


@pytest.mark.parametrize("text", ["x" * 5000, "ü" * 1400, "\U0001f600" * 1000, "\x1b" * 1400])
def test_the_last_event_is_written_however_long_the_error_and_the_domain_are(tmp_path, saving, text):
    def fail() -> None:
        raise DomainError(text)

    saving.end = fail
    path = tmp_path / "events"
    assert pysave.main(["-q", "--events", str(path), text, str(tmp_path / "a.img")]) == ExitCode.DOMAIN
    first, *_, last = lines_of(path.read_text())
    assert (first["event"], last["event"]) == ("begin", "end")
    assert len(last["error"]) > 100 and text.startswith(last["error"])
    assert len(first["domain"]) > 20 and text.startswith(first["domain"])


def test_progress_without_rounds_names_no_round():
    read, write = os.pipe()
    events = Events(write, close_fd=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "EVERY_S", 0.0)
        events.pages(7, 4096)
    events.close_file()
    with os.fdopen(read) as file:
        (line,) = lines_of(file.read())
    assert (line["round"], line["round_pages"], line["done_pages"]) == (None, None, 7)


def test_a_named_pipe_that_nobody_reads_yet_delays_nothing(tmp_path, saving):
    path = tmp_path / "events"
    os.mkfifo(path)
    reader: list[int] = []
    saving.end = lambda: reader.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    assert pysave.main(["-q", "--events", str(path), "web1", str(tmp_path / "a.img")]) == 0
    with os.fdopen(reader[0]) as file:
        assert [one["event"] for one in lines_of(file.read())][-1] == "end"


def test_a_descriptor_that_is_open_for_reading_only_is_refused(tmp_path, saving, capsys):
    saving.end = fail
    with Path(os.devnull).open() as file:
        code = pysave.main(["--events", str(file.fileno()), "web1", str(tmp_path / "a.img")])
        assert code == ExitCode.USAGE
        assert f"{file.fileno()}: this descriptor is not open for writing" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--events", "{}"], ["--metrics", "{}"]])
@pytest.mark.parametrize("image", ["{}", "{}/../a.prom"])
def test_the_image_is_no_file_for_events_or_metrics(tmp_path, monkeypatch, capsys, words, image):
    (tmp_path / "d").mkdir()
    (tmp_path / "a.prom").write_bytes(b"image")
    given = str(tmp_path / "a.prom")
    named = given if image == "{}" else str(tmp_path / "d/../a.prom")
    for command in (pysave, pyrestore):
        domain = ["--overwrite", "web1"] if command is pysave else []
        with pytest.raises(SystemExit) as caught:
            command.main([words[0], given, *domain, named])
        assert caught.value.code == ExitCode.USAGE
        assert f"{words[0]}: {given} is the image" in capsys.readouterr().err
    assert (tmp_path / "a.prom").read_bytes() == b"image"


@pytest.mark.parametrize(
    "words",
    [["--events", "1", "web1", "-"], ["--events", "01", "web1", "fd:1"], ["--events", "7", "web1", "fd:7"]],
    ids=" ".join,
)
def test_events_and_the_image_do_not_share_a_descriptor(words, capsys):
    with pytest.raises(SystemExit) as caught:
        pysave.main(words)
    assert caught.value.code == ExitCode.USAGE
    assert "--events" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["r.json", "x.prom"])
def test_a_report_and_metrics_do_not_replace_the_file_of_events(tmp_path, capsys, name):
    pytest.importorskip("prometheus_client")
    option, path = "--report" if name == "r.json" else "--metrics", str(tmp_path / name)
    with pytest.raises(SystemExit) as caught:
        pysave.main([option, path, "--events", path, "web1", str(tmp_path / "a.img")])
    assert caught.value.code == ExitCode.USAGE
    assert f"{option}: {path} is the file of --events" in capsys.readouterr().err


def test_events_and_the_image_do_not_share_a_pipe_under_two_numbers(monkeypatch, capsys):
    read, write = os.pipe()
    with pytest.raises(SystemExit) as caught:
        pysave.main(["--events", str(os.dup(write)), "web1", f"fd:{write}"])
    assert caught.value.code == ExitCode.USAGE
    assert "is the image" in capsys.readouterr().err
    os.close(read)
    os.close(write)


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        (pysave, ["--dry-run", "--events", "{}", "web1", "a.img"], "--dry-run makes no changes"),
        (pyrestore, ["--dry-run", "--events", "{}", "a.img"], "--dry-run makes no changes"),
        (pymigrate, ["--dry-run", "--events", "{}", "web1", "host2"], "--dry-run makes no changes"),
        (pysave, ["--recover", "--events", "{}", "web1"], "--recover makes none"),
        (pysave, ["--recover", "--metrics", "{}.prom", "web1"], "--recover makes none"),
    ],
)
def test_events_and_metrics_are_refused_where_none_would_come(tmp_path, capsys, command, words, said):
    with pytest.raises(SystemExit) as caught:
        command.main([word.format(tmp_path / "e") for word in words])
    assert caught.value.code == ExitCode.USAGE
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_metrics_can_be_read_by_everybody_whatever_the_umask_is(tmp_path, saving):
    pytest.importorskip("prometheus_client")
    path = tmp_path / "web1.prom"
    before = os.umask(0o077)
    try:
        assert pysave.main(["-q", "--metrics", str(path), "web1", str(tmp_path / "a.img")]) == 0
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


def test_metrics_of_a_domain_that_is_not_known_have_no_word_for_it(tmp_path, monkeypatch):
    pytest.importorskip("prometheus_client")

    def restore_domain(*_: object, **__: object) -> None:
        raise ImageError("damaged")

    monkeypatch.setattr(restore, "restore_domain", restore_domain)
    path = tmp_path / "x.prom"
    assert pyrestore.main(["--metrics", str(path), str(tmp_path / "a.img")]) == ExitCode.IMAGE
    assert 'pyrestore_last_success{domain=""} 0.0' in path.read_text()


def test_a_directory_is_no_file_for_metrics(tmp_path, saving, capsys):
    pytest.importorskip("prometheus_client")
    (tmp_path / "x.prom").mkdir()
    with pytest.raises(SystemExit) as caught:
        pysave.main(["--metrics", str(tmp_path / "x.prom"), "web1", str(tmp_path / "a.img")])
    assert caught.value.code == ExitCode.USAGE
    assert "is a directory" in capsys.readouterr().err


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
