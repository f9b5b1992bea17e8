"""Reports: the same figures as data, as lines and as a page that needs nothing else."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import stat
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from memory_guests import CHANNELS, image_of
from stream_samples import MemorySink, source_of

from saverestore.engine.policy import Limits, OnStall
from saverestore.engine.progress import RestoreReport, SaveReport
from saverestore.engine.restore import restore
from saverestore.engine.save import save
from saverestore.engine.session import Stalled
from saverestore.engine.settings import SaveSettings
from saverestore.errors import ErrorName, TransportError, UsageError
from saverestore.migrate.source_link import LinkReport
from saverestore.report import files, svg
from saverestore.report.facts import Outcome, facts_of_restore, facts_of_save
from saverestore.report.page import page_of
from saverestore.report.text import lines_of
from saverestore.stream.reader import LibxcReader
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemoryRestore, MemorySave, empty_like
from saverestore.transport.route import Route

BEGAN = datetime.datetime(2026, 3, 1, 3, 0, tzinfo=datetime.UTC)
SAVED = Outcome("pysave", "web1", "web1.img", BEGAN, 1.5, {"live": True, "codec": None})
MIGRATED = Outcome("pymigrate", "web1", None, BEGAN, 1.5, {"host": "host2"})
RESTORED = Outcome("pyrestore", "web1", "web1.img", BEGAN, 1.5, {"paused": False})
LIVE = {
    "suspended": SaveSettings(),
    "log": SaveSettings(live=True, dirty="log"),
    "digest": SaveSettings(live=True, dirty="digest"),
}
HOW = pytest.mark.parametrize("how", LIVE)


def saved(how: str, **more: object) -> SaveReport:
    """The report of a real save of a domain that writes 200 pages a round."""
    guest = MemorySave(MemoryDomain.pvh(2000))
    plain = guest.domain.data_pfns()[:200]
    for number in range(9):
        guest.moments.on(
            "check_layout",
            number,
            lambda number=number: guest.domain.suspended or guest.domain.write(plain, number),
        )
    report = SaveReport()
    with contextlib.suppress(Stalled):
        save(guest, MemorySink(), replace(LIVE[how], **more), None, report)
    guest.domain.close()
    return report


def restored() -> RestoreReport:
    domain = MemoryDomain.pvh(500)
    image = image_of(MemorySave(domain))
    report = RestoreReport()
    with source_of(image) as source:
        restore(LibxcReader(source), source, MemoryRestore(empty_like(domain)), CHANNELS, None, report)
    return report


def test_a_migration_is_reported_as_a_save_without_an_image():
    facts = facts_of_save(MIGRATED, saved("log"))
    assert (facts["image"], facts["image_path"]) == (None, None)
    page = page_of(facts)
    assert "downtime" in page
    assert "a pipe" not in page


@HOW
def test_the_data_are_those_of_the_save(how):
    report = saved(how)
    facts = facts_of_save(SAVED, report)
    assert facts["pages"]["sent"] == sum(one["sent_pages"] for one in facts["rounds"])
    assert facts["pages"]["resent"] == facts["pages"]["sent"] - 2000
    assert [one["final"] for one in facts["rounds"]].index(True) == len(facts["rounds"]) - 1
    assert facts["bytes"]["stream"] > facts["pages"]["sent"] * 4096
    parts = [facts["downtime"][f"{name}_s"] for name in ("suspend", "last_round", "state", "resume")]
    assert facts["downtime"]["total_s"] == pytest.approx(sum(parts), abs=0.05)
    if how == "suspended":
        assert facts["decision"] is None
        assert facts["rounds"][0]["expected_downtime_s"] is None
    else:
        last_live = facts["rounds"][-2]
        assert facts["decision"]["decision"] == "stop"
        assert facts["decision"]["expected_downtime_s"] == last_live["expected_downtime_s"]
        assert last_live["dirty_pages_per_s"] > 0
    assert json.loads(json.dumps(facts)) == facts


def test_every_key_is_documented():
    text = (Path(__file__).parents[3] / "docs/reference/report.md").read_text()
    documented = set(re.findall(r"`([a-z_.]+)`", text))

    def keys(value: object, before: str = "") -> set[str]:
        found = set()
        if isinstance(value, list):
            return set().union(*(keys(one, before) for one in value))
        if isinstance(value, dict) and before != "options.":
            for name, inner in value.items():
                found |= {f"{before}{name}"} | keys(inner, f"{before}{name}.")
        return found

    made = keys(facts_of_save(SAVED, saved("log"))) | keys(facts_of_restore(RESTORED, restored()))
    made |= keys({"link": asdict(LinkReport(route=Route("eth0")))})  # which the command adds for a migration
    groups = {name.rpartition(".")[0] for name in made}
    assert made - documented - groups == set()
    assert {name for name in documented if "." in name} - made <= {"report.json", "report.html"}


def test_every_name_of_an_error_is_documented_with_its_meaning_and_no_other():
    text = (Path(__file__).parents[3] / "docs/reference/errors.md").read_text()
    table = text.partition("## Names of errors")[2]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE)
    assert rows == [(name.value, name.meaning) for name in ErrorName]


@pytest.mark.parametrize(
    ("outcome", "result"),
    [
        (SAVED, "done"),
        (replace(SAVED, exit_code=5, error="disk full"), "failed"),
        (replace(SAVED, exit_code=130, error="interrupted by Ctrl-C"), "interrupted"),
    ],
)
def test_a_run_is_done_failed_or_interrupted(outcome, result):
    assert facts_of_save(outcome, SaveReport())["result"] == result


class Page(HTMLParser):
    """Tags as they open and close, and what a browser would go and fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.seen: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "rect", "line", "circle", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("rect", "line", "circle", "polyline"):
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)


def assert_page(text: str) -> Page:
    page = Page(re.sub(r"<(line|circle|polyline)([^>]*)/>", r"<\1\2></\1>", text))
    assert page.open == []
    assert page.fetched == []
    assert not {"script", "link", "img", "iframe"} & set(page.seen)
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    for drawing in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        ElementTree.fromstring(drawing)
        assert "nan" not in drawing
    return page


@HOW
def test_the_page_is_whole_and_needs_nothing_else(how):
    facts = facts_of_save(SAVED, saved(how))
    page = assert_page(page_of(facts))
    assert page.seen.count("svg") == (1 if how == "suspended" else 4)


def test_the_page_of_a_restore_has_its_phases():
    page = assert_page(page_of(facts_of_restore(RESTORED, restored())))
    assert page.seen.count("svg") == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda outcome: facts_of_save(outcome, SaveReport()),
        lambda outcome: facts_of_restore(replace(outcome, tool="pyrestore"), RestoreReport()),
    ],
    ids=["save", "restore"],
)
def test_a_failure_before_anything_was_done_is_a_page_too(make):
    outcome = replace(SAVED, domain=None, exit_code=3, error="there is no domain 'web1' <b>")
    text = page_of(make(outcome))
    assert_page(text)
    assert "&lt;b&gt; (exit code 3)" in text
    assert lines_of(make(outcome)) == []


@pytest.mark.parametrize("name", [ErrorName.DOMAIN_NOT_FOUND, ErrorName.DOMAIN_AMBIGUOUS])
def test_of_a_domain_that_does_not_exist_nothing_is_said(name):
    facts = facts_of_save(replace(SAVED, exit_code=3, error="no 'web1'", error_name=name), SaveReport())
    assert facts["domain_state"] == "none"
    text = page_of(facts)
    assert "failed; there is no domain" in text
    assert "suspended" not in text and "MiB" not in text


def test_of_a_restore_that_failed_as_its_domain_is_there_it_is_not_said_that_there_is_none():
    outcome = replace(
        SAVED, tool="pyrestore", exit_code=3, error="the domain is there already: web1 (domain 6)"
    )
    text = page_of(facts_of_restore(outcome, RestoreReport()))
    assert "failed; no domain was restored" in text
    assert "there is no domain" not in text


def test_a_domain_that_is_suspended_has_no_share_of_the_processor():
    rounds = facts_of_save(SAVED, saved("log"))["rounds"]
    assert [one["cpu_percent"] for one in rounds[-2:]] == [100, None]


def test_a_round_says_for_how_long_the_link_was_broken_in_it():
    report = saved("log")
    report.rounds[1] = replace(report.rounds[1], broken_s=30.0)
    assert [one["broken_s"] for one in facts_of_save(SAVED, report)["rounds"][:2]] == [0.0, 30.0]


def test_a_save_that_was_given_up_shows_its_rounds_and_no_downtime():
    report = saved("log", limits=Limits(on_stall=OnStall.ABORT))
    facts = facts_of_save(replace(SAVED, exit_code=3, error="stalled"), report)
    assert facts["downtime"] is None
    assert facts["decision"]["decision"] == "abort"
    assert len(facts["rounds"]) == 2
    assert_page(page_of(facts))
    assert not any("downtime" in line for line in lines_of(facts))


def test_names_that_look_like_markup_are_shown_as_they_are():
    facts = facts_of_save(replace(SAVED, domain="<script>", image="a&b.img"), saved("suspended"))
    text = page_of(facts)
    assert_page(text)
    assert "&lt;script&gt;" in text
    assert "a&amp;b.img" in text


def test_the_lines_tell_what_was_expected_and_what_came_of_it():
    report = saved("log")
    report.downtime.total_s = 0.261
    report.verdict = replace(
        report.verdict,
        prediction=replace(report.verdict.prediction, suspend_s=0.1, rest_s=0.09, state_s=0.05),
    )
    lines = lines_of(facts_of_save(SAVED, report))
    assert any(line.startswith("downtime 261 ms, predicted 240 ms: suspend") for line in lines)
    assert any("of them resent" in line for line in lines)
    assert any(line.startswith("peak memory use ") for line in lines)


def test_one_is_no_plural():
    facts = facts_of_save(SAVED, saved("suspended"))
    facts["pages"] |= {"sent": 1, "resent": 0}
    facts["link"] = {
        "streams": 1,
        "reconnects": 1,
        "broken_s": 2.0,
        "resent_pages": 1,
        "over": "tls",
        "cipher": None,
        "fallback": "",
    }
    assert "; 1 page sent, 0 of them resent" in lines_of(facts)[0]
    assert "broken for 2.0 s, 1 page sent again<" in page_of(facts)
    facts = facts_of_restore(RESTORED, restored())
    facts["pages"]["restored"] = facts["records"] = 1
    assert lines_of(facts)[0].endswith("; 1 page in 1 record")
    assert ">1 in 1 record<" in page_of(facts)


@pytest.mark.parametrize(
    ("per_s", "text"),
    [
        (64 << 10, "64 KiB/s"),
        (1.5 * (1 << 20), "1.5 MiB/s"),
        (48.2 * (1 << 20), "48 MiB/s"),
        (2048 * (1 << 20), "2,048 MiB/s"),
    ],
)
def test_a_slow_rate_is_not_rounded_to_nothing(per_s, text):
    facts = facts_of_save(replace(SAVED, options={"bwlimit": per_s}), saved("suspended"))
    facts["rates"]["stream_bytes_per_s"] = per_s
    assert lines_of(facts)[0].partition(";")[0].endswith(f" at {text}")
    assert page_of(facts).count(f"<td>{text}</td>") == 2


# ---- charts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (9, "9"),
        (950, "950"),
        (1234, "1.2k"),
        (65536, "66k"),
        (3.4e6, "3.4M"),
        (2e9, "2G"),
    ],
)
def test_numbers_of_a_chart_are_short(value, text):
    assert svg.short(value) == text


@pytest.mark.parametrize("values", [[0], [None], [], [0, 0], [1e-9], [1e12, None, 0]])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_any_values_can_be_drawn(values, logarithmic):
    names = [str(i) for i in range(len(values))]
    one = svg.Series("x", "s1", values)
    for drawn in (
        svg.lines("t", names, [one], logarithmic=logarithmic, mark=("aim", 0.3)),
        svg.bars("t", names, [one]),
        svg.phases("t", [("a", [("p", "s1", value or 0) for value in values])]),
    ):
        ElementTree.fromstring(re.search(r"<svg.*</svg>", drawn)[0])
        assert "nan" not in drawn


# ---- files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["report.txt", "report", ".json", "absent/report.json", "report.JSON"])
def test_what_cannot_be_a_reports_name_is_refused_before_anything_is_done(tmp_path, name):
    with pytest.raises(UsageError):
        files.checked(str(tmp_path / name))


def test_a_folder_is_no_report(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(UsageError, match="directory"):
        files.checked(str(tmp_path / "a.json"))


@pytest.mark.parametrize("ending", files.ENDINGS)
def test_a_report_replaces_the_one_before_and_is_the_administrators_alone(tmp_path, ending):
    path = files.checked(str(tmp_path / f"report{ending}"))
    path.write_text("the one before")
    files.write(path, facts_of_save(SAVED, saved("log")))
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    if ending == ".json":
        assert json.loads(path.read_text())["domain"] == "web1"
    else:
        assert_page(path.read_text())


def test_a_report_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    path.write_text("the one before")

    def fail(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(TransportError, match="No space left"):
        files.write(path, facts_of_save(SAVED, SaveReport()))
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "the one before"
