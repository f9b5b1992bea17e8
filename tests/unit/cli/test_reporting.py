"""--report of pysave and pyrestore: written whatever comes of the work, and never the reason for a failure of it."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from saverestore.cli import common, pymigrate, pyrestore, pysave
from saverestore.engine.policy import RoundStats
from saverestore.engine.progress import DomainState
from saverestore.errors import DomainError, ErrorName, ExitCode, ImageError, TransportError
from saverestore.operations import restore, save
from saverestore.operations.preflight import Findings
from saverestore.report import page


@pytest.fixture
def saving(monkeypatch):
    """What `pysave` calls to do the work: a round is sent, and then `end` is called."""
    found = SimpleNamespace(end=lambda: None, report=lambda report: None)

    def save_domain(request, progress, report, **_):
        report.dirty_source = "log"
        report.rounds.append(RoundStats(0, 100, 5, 0.5, sent_bytes=409600))
        report.pages_sent, report.total_s, report.stream_bytes = 100, 0.5, 409600
        found.report(report)
        found.end()
        report.domain_state = DomainState.DESTROYED

    monkeypatch.setattr(save, "save_domain", save_domain)
    return found


def raising(error: BaseException):
    def end() -> None:
        raise error

    return end


def test_a_save_leaves_its_report_and_a_page(tmp_path, saving, capsys):
    both = ["--report", str(tmp_path / "r.json"), "--report", str(tmp_path / "r.html")]
    assert pysave.main(["--live", "--downtime-ms", "300", *both, "web1", str(tmp_path / "a.img")]) == 0
    facts = json.loads((tmp_path / "r.json").read_text())
    assert (facts["result"], facts["domain_state"], facts["error"]) == ("done", "destroyed", None)
    assert facts["error_name"] is None
    assert facts["options"]["downtime_s"] == 0.3
    assert facts["rounds"][0]["sent_pages"] == 100
    assert facts["image_path"] == str(tmp_path / "a.img")
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")
    (summary,) = capsys.readouterr().err.splitlines()
    assert f", {facts['seconds']['total']:.1f} s" in summary


def test_options_that_were_left_out_are_reported_with_their_defaults(tmp_path, saving):
    path = tmp_path / "r.json"
    assert pysave.main(["--live", "--report", str(path), "web1", str(tmp_path / "a.img")]) == 0
    options = json.loads(path.read_text())["options"]
    assert (options["digest"], options["suspend_timeout"], options["max_rounds"]) == ("xxh3", 60, 5)
    assert pysave.main(["--plain", "--report", str(path), "web1", str(tmp_path / "b.img")]) == 0
    options = json.loads(path.read_text())["options"]
    assert (options["digest"], options["max_rounds"]) == ("none", None)


@pytest.mark.parametrize(
    ("error", "code", "name"),
    [
        (DomainError("stalled", name=ErrorName.SAVE_STALLED), ExitCode.DOMAIN, "save_stalled"),
        (TransportError("No space left", name=ErrorName.DISK_FULL), ExitCode.IO, "disk_full"),
        (MemoryError(), ExitCode.IO, "out_of_memory"),
        (OSError(5, "Input/output error"), ExitCode.IO, "io_failed"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_save_that_fails_leaves_one_too_with_the_error_and_what_was_done(
    tmp_path, saving, error, code, name
):
    error.add_note("web1 is running")
    saving.end = raising(error)
    path = tmp_path / "r.json"
    assert pysave.main(["--report", str(path), "web1", str(tmp_path / "a.img")]) == code
    facts = json.loads(path.read_text())
    assert (facts["result"], facts["exit_code"], facts["domain_state"]) == ("failed", code, "unchanged")
    assert facts["error_name"] == name
    assert facts["error"].endswith("; web1 is running")
    assert facts["pages"]["sent"] == 100


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_save_that_is_interrupted_leaves_one_too(tmp_path, saving, number):
    saving.end = lambda: os.kill(os.getpid(), number)
    path = tmp_path / "r.json"
    assert pysave.main(["--report", str(path), "web1", str(tmp_path / "a.img")]) == ExitCode.INTERRUPTED
    assert json.loads(path.read_text())["result"] == "interrupted"


@pytest.mark.parametrize("error", [None, DomainError("stalled")], ids=["done", "failed"])
def test_a_report_that_cannot_be_written_is_a_warning(tmp_path, saving, monkeypatch, capsys, error):
    if error is not None:
        saving.end = raising(error)

    def fail(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    path = tmp_path / "r.json"
    code = pysave.main(["--report", str(path), "web1", str(tmp_path / "a.img")])
    assert code == (0 if error is None else ExitCode.DOMAIN)
    said = capsys.readouterr().err
    assert f"pysave: warning: {path} was not written: " in said
    assert "No space left" in said
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_making_the_report_is_no_failure_of_the_save(tmp_path, saving, capsys):
    saving.report = lambda report: report.rounds.append("not a round")
    command = ["--report", str(tmp_path / "r.html"), "web1", str(tmp_path / "a.img")]
    assert pysave.main(command) == 0
    assert (
        "the report was not written: AttributeError: 'str' object has no attribute" in capsys.readouterr().err
    )


def test_verbose_tells_more_and_quiet_nothing(tmp_path, saving, capsys):
    assert pysave.main(["-v", "web1", str(tmp_path / "a.img")]) == 0
    said = capsys.readouterr().err
    assert "100 pages sent, 0 of them resent" in said
    assert pysave.main(["-q", "web1", str(tmp_path / "a.img")]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("command", "arguments", "what"),
    [
        (pysave, ["--report", "r.txt", "web1", "a.img"], "must end in .json or .html"),
        (pysave, ["--report", "absent/r.json", "web1", "a.img"], "there is no directory absent"),
        (pysave, ["--report", "a.json", "web1", "a.json"], "is the image"),
        (pysave, ["--report", "r.json", "--dry-run", "web1", "a.img"], "--dry-run makes no changes"),
        (pysave, ["--report", "r.json", "--recover", "web1"], "--recover makes none"),
        (pyrestore, ["--report", "r.txt", "a.img"], "must end in .json or .html"),
        (pyrestore, ["--report", "r.json", "--dry-run", "a.img"], "--dry-run makes no changes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_makes_no_sense_is_wrong_usage(tmp_path, monkeypatch, capsys, saving, command, arguments, what):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == ExitCode.USAGE
    assert what in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_keeps_no_other_from_being_written(
    tmp_path, saving, monkeypatch, capsys
):
    def fail(_: object) -> None:
        raise ValueError("a mistake in the page")

    monkeypatch.setattr(page, "page_of", fail)
    both = ["--report", str(tmp_path / "r.html"), "--report", str(tmp_path / "r.json")]
    assert pysave.main(["--json", *both, "web1", str(tmp_path / "a.img")]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["result"] == "done"
    assert json.loads((tmp_path / "r.json").read_text())["result"] == "done"
    assert f"warning: {tmp_path}/r.html was not written: ValueError: a mistake in the page" in printed.err


@pytest.mark.parametrize("ending", ["html", "json"])
def test_names_that_are_not_utf_8_can_be_reported(tmp_path, saving, ending):
    path = tmp_path / f"r.{ending}"
    image = os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.img")
    assert pysave.main(["--report", str(path), "web1", image]) == 0
    assert ("a\\udcff.img" if ending == "json" else "a\\xff.img") in path.read_text()


def test_a_failure_can_neither_colour_the_terminal_nor_begin_a_line(tmp_path, saving, capsys):
    saving.end = raising(DomainError("'web\x1b[31m\n1' does not answer"))
    assert pysave.main(["web1", str(tmp_path / "a.img")]) == ExitCode.DOMAIN
    assert capsys.readouterr().err == "pysave: 'web\\x1b[31m\\x0a1' does not answer\n"


def test_a_dry_run_names_what_this_terminal_cannot_show(monkeypatch):
    found = Findings(dry=True)
    found.note("web\x1b[31mü\udcff would be saved")
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    given = SimpleNamespace(verbose=0)
    assert common.run("pysave", given, lambda: common.print_findings("pysave", lambda: found)) == 0
    sys.stdout.flush()
    text = sys.stdout.buffer.getvalue().decode()
    assert text.splitlines()[0] == "web\\x1b[31m\\xfc\\xdcff would be saved"


# ---- pyrestore ---------------------------------------------------------------------------------------


def test_a_restore_leaves_its_report(tmp_path, monkeypatch, capsys):
    def restore_domain(request, progress, report, **_):
        report.pages, report.domain_state = 7, DomainState.RUNNING
        return restore.Restored(5, "web1", report)

    monkeypatch.setattr(restore, "restore_domain", restore_domain)
    path = tmp_path / "r.json"
    assert pyrestore.main(["--report", str(path), "-v", str(tmp_path / "a.img")]) == 0
    facts = json.loads(path.read_text())
    assert (facts["domain"], facts["result"], facts["domain_state"]) == ("web1", "done", "running")
    assert facts["pages"]["restored"] == 7
    assert capsys.readouterr().out == "5\n"


def test_a_restore_that_fails_leaves_one_too(tmp_path, monkeypatch):
    def restore_domain(*_: object, **__: object) -> None:
        raise ImageError("damaged", offset=16)

    monkeypatch.setattr(restore, "restore_domain", restore_domain)
    path = tmp_path / "r.html"
    assert pyrestore.main(["--report", str(path), str(tmp_path / "a.img")]) == ExitCode.IMAGE
    assert "damaged (at byte 0x10 = 16) (exit code 4)" in path.read_text()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (pysave, ["--tls", "--cert", "{}/absent.pem", "web1", "tcp://127.0.0.1:1"]),
        (pysave, ["web1", "tcp://nonsense"]),
        (pymigrate, ["--config", "{}/absent.cfg", "--ssh", "false", "web1", "host2"]),
        (pymigrate, ["--cert", "{}/absent.pem", "web1", "tls://host2"]),
        (pymigrate, ["--to-xl", "--config", "{}/absent.cfg", "web1", "host2"]),
    ],
)
def test_a_save_or_migration_that_cannot_even_begin_is_reported_too(tmp_path, capsys, command, words):
    path = tmp_path / "r.json"
    code = command.main(["--json", "--report", str(path), *(word.format(tmp_path) for word in words)])
    facts = json.loads(capsys.readouterr().out)
    assert (facts["result"], facts["exit_code"], facts["domain_state"]) == ("failed", code, "unchanged")
    assert json.loads(path.read_text()) == facts


@pytest.mark.parametrize(
    "words",
    [
        ["--store", "{}/web9"],
        ["--config", "{}/absent.cfg", "a.img"],
        ["tcp://nonsense"],
        ["--tls", "--cert", "{}/absent.pem", "tcp://127.0.0.1:1"],
    ],
    ids=" ".join,
)
def test_a_restore_that_cannot_even_begin_is_reported_too(tmp_path, capsys, words):
    path = tmp_path / "r.json"
    given = [word.format(tmp_path) for word in words]
    code = pyrestore.main(["--json", "--report", str(path), *given])
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert (facts["result"], facts["exit_code"], facts["domain_state"]) == ("failed", code, "none")
    assert facts["exit_code"] != 0
    assert printed.err == f"pyrestore: {facts['error']}\n"
    assert json.loads(path.read_text()) == facts


def test_the_result_is_printed_as_json_and_nothing_else_goes_to_standard_output(tmp_path, saving, capsys):
    assert pysave.main(["--json", "-q", "web1", str(tmp_path / "a.img")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["result"], facts["domain"], facts["image"]) == ("done", "web1", str(tmp_path / "a.img"))


def test_a_failure_is_printed_as_json_too(tmp_path, saving, capsys):
    saving.end = raising(DomainError("it does not answer", name=ErrorName.DOMAIN_UNRESPONSIVE))
    assert pysave.main(["--json", "web1", str(tmp_path / "a.img")]) == ExitCode.DOMAIN
    facts = json.loads(capsys.readouterr().out)
    assert (facts["result"], facts["error_name"]) == ("failed", "domain_unresponsive")


@pytest.mark.parametrize("more", [["web1", "-"], ["--dry-run", "web1", "a.img"], ["--recover", "web1"]])
def test_json_is_refused_where_there_is_no_result_or_no_room_for_it(more, capsys):
    with pytest.raises(SystemExit) as caught:
        pysave.main(["--json", *more])
    assert caught.value.code == ExitCode.USAGE
    assert "--json" in capsys.readouterr().err
